"""The fields of an explanation that tell which text it is of, and which model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrpx._version import versions
from captum_lrpx.models import find_model

if TYPE_CHECKING:
    from torch import nn

    from captum_lrpx.targets.encoding import Encoding


_OF_TEXT = ("text", "tokens", "ids", "offsets", "special", "template")


def provenance(encoding: Encoding, model: nn.Module, model_name: str | None) -> dict[str, Any]:
    """Fields of an :class:`~captum_lrpx.Explanation` that text and model determine.

    Args:
        encoding: The text.
        model: The model, or a module that contains it.
        model_name: Its name in the record. Default: where it was loaded from, else its class.
    """
    inner: Any = find_model(model)
    return {
        **{name: getattr(encoding, name) for name in _OF_TEXT},
        "regions": encoding.regions or None,
        "model": model_name or str(getattr(inner, "name_or_path", "") or type(model).__name__),
        "dtype": str(next(inner.parameters()).dtype).removeprefix("torch."),
        "versions": versions(),
        "revision": getattr(inner.config, "_commit_hash", None),
    }
