"""Experts: modules that hold all experts of a layer, and what each of them adds to the output."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrpx.attr.capture import map_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["calls_of", "parts_of", "weighted"]


@contextmanager
def calls_of(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """Keep what layers are called with, within the ``with`` block.

    Yields:
        A dictionary that fills with copies of ``(args, kwargs)``.
    """
    found: dict[nn.Module, Any] = {}

    def keep(layer: nn.Module, args: Any, kwargs: Any) -> None:
        found[layer] = map_tensors((args, kwargs), lambda each: each.detach().clone())

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def weighted(call: Any, layer: nn.Module, experts: Tensor, *, keep: bool) -> Any:
    """The arguments of a module of experts, with weight zero for some of these.

    Args:
        call: ``(args, kwargs)``: hidden states, chosen experts ``[N, k]`` and their weights.
        layer: The module.
        experts: Indices of experts.
        keep: Whether these keep their weight, or all others.

    Raises:
        ValueError: If there are no chosen experts and weights among the arguments.
    """
    args, kwargs = call
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    chosen = [each for each in given if not each.is_floating_point() and each.ndim == 2]
    weights = [
        each
        for each in given
        if chosen and each.is_floating_point() and each.shape == chosen[0].shape
    ]
    if len(chosen) != 1 or len(weights) != 1:
        raise ValueError(
            f"{type(layer).__name__} does not take chosen experts [N, k] and their weights [N, k]: "
            "give the module that holds all experts of a layer."
        )
    among = torch.isin(chosen[0], experts.to(chosen[0].device))
    gone = ~among if keep else among

    def zeroed(tensor: Tensor) -> Tensor:
        return tensor.masked_fill(gone, 0) if tensor is weights[0] else tensor

    return map_tensors(call, zeroed)


@torch.no_grad()
def parts_of(layer: nn.Module, call: Any, values: Tensor) -> Tensor:
    """What each expert adds to the output of a module of experts.

    Args:
        layer: The module.
        call: What it was called with.
        values: What it gave ``[B, T, D]``.

    Returns:
        ``[B, T, E, D]``, which sums to the output over E.

    Raises:
        ValueError: If the module does not say how many experts it has, or takes other arguments.
    """
    count = getattr(layer, "num_experts", None)
    if not isinstance(count, int):
        raise ValueError(  # noqa: TRY004 - the layer lacks something, its type is right
            f"{type(layer).__name__} has no `num_experts`: give the module that holds all experts "
            "of a layer."
        )
    parts = []
    for expert in range(count):
        args, kwargs = weighted(call, layer, torch.tensor([expert]), keep=True)
        parts.append(layer(*args, **kwargs).reshape(values.shape))
    return torch.stack(parts, dim=-2)
