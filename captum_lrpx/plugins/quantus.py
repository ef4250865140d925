"""LRP and AttnLRP as an ``explain_func`` of Quantus.

Quantus passes a model, a batch and targets, and expects an array. It is not imported
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from captum_lrpx.attr import AttnLRPx, LRPx
from captum_lrpx.names import suggestion

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

__all__ = ["explain"]

_METHODS = {"lrpx": LRPx, "attnlrpx": AttnLRPx}


def explain(
    model: nn.Module,
    inputs: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    method: Literal["lrpx", "attnlrpx"] = "attnlrpx",
    device: str | torch.device | None = None,
    **options: Any,
) -> npt.NDArray[np.float64]:
    """Compute relevances of a batch in the form that Quantus expects.

    Args:
        model: A module with one output per class ``[B, C]``.
        inputs: Floating inputs ``[B, ...]`` (pixels, features, embeddings), an array or tensor.
        targets: The explained class of each ``[B]``.
        method: The method, which sets the rules.
        device: Device to compute on. Default: the model's
        **options: Options of the method (``recipe``, ``strict``); other keywords of Quantus
            (``nr_samples``, ``channel_first`` and the like) are ignored.

    Returns:
        Relevances of the shape of the inputs.

    Raises:
        ValueError: If the method is unknown.

    Examples::

        >>> metric = quantus.FaithfulnessCorrelation()
        >>> metric(model, x, y, explain_func=captum_lrpx.plugins.quantus.explain)
    """
    if method not in _METHODS:
        raise ValueError(
            f"`method` is 'lrpx' or 'attnlrpx', not {method!r}{suggestion(method, _METHODS)}."
        )
    first = next(model.parameters())
    place = first.device if device is None else torch.device(device)
    batch = torch.as_tensor(inputs, dtype=first.dtype, device=place)
    classes = torch.as_tensor(targets, dtype=torch.int64, device=place).reshape(-1)
    own = {name: options[name] for name in ("recipe", "strict", "fast") if name in options}
    relevance: Any = _METHODS[method](model.to(place), **own).attribute(batch, target=classes)
    found: npt.NDArray[np.float64] = relevance.detach().cpu().numpy()
    return found
