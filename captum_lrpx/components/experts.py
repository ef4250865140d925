"""Modules that hold all experts of a layer, and the contribution of each expert."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrpx.attr.capture import map_tensors
from captum_lrpx.onlookers import hooked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def calls_of(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """Keep the arguments of layers, within the ``with`` block.

    Yields:
        A dictionary that fills with copies of ``(args, kwargs)``.
    """
    found: dict[nn.Module, Any] = {}

    def keep(layer: nn.Module, *call: Any) -> None:
        found[layer] = map_tensors(call, lambda each: each.detach().clone())

    with hooked(layers, before=keep):
        yield found


@contextmanager
def mixtures_of(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Find the modules that hold all experts of a layer, within the ``with`` block.

    Yields:
        A list that fills with modules called with selected experts and their weights.
    """
    found: list[nn.Module] = []

    def note(layer: nn.Module, *call: Any) -> None:
        with suppress(ValueError):
            choices_of(call, layer)
            found.append(layer)

    layers = [each for each in model.modules() if isinstance(_count(each), int)]
    with hooked(layers, before=note):
        yield found


def choices_of(call: Any, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Selected experts ``[N, k]`` and their weights ``[N, k]`` among the arguments of a module.

    Args:
        call: ``(args, kwargs)``.
        layer: The module.

    Raises:
        ValueError: If there are none among the arguments.
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
    return chosen[0], weights[0]


def without_experts(call: Any, layer: nn.Module, experts: Tensor) -> Any:
    """Arguments of a module of experts, with weight zero for some experts.

    Args:
        call: ``(args, kwargs)``: hidden states, selected experts ``[N, k]`` and their weights.
        layer: The module.
        experts: Indices of experts.

    Raises:
        ValueError: If there are no selected experts and weights among the arguments.
    """
    chosen, weights = choices_of(call, layer)
    gone = torch.isin(chosen, experts.to(chosen.device))

    def zeroed(tensor: Tensor) -> Tensor:
        return tensor.masked_fill(gone, 0) if tensor is weights else tensor

    return map_tensors(call, zeroed)


@torch.no_grad()
def parts_by_choice(layer: nn.Module, call: Any, values: Tensor) -> Tensor:
    """Summand of each selected expert in the output of a module of experts, weight included.

    Args:
        layer: The module.
        call: Its arguments.
        values: Its output ``[B, T, D]``.

    Returns:
        ``[B, T, k, D]``, which sums to the output over k.

    Raises:
        ValueError: If the module takes other arguments, or its output is not their sum.
    """
    chosen, weights = choices_of(call, layer)
    parts = []

    def one_choice(place: int, each: Tensor) -> Tensor:
        return each[:, place : place + 1] if each is chosen or each is weights else each

    for place in range(chosen.shape[1]):
        args, kwargs = map_tensors(call, partial(one_choice, place))
        parts.append(layer(*args, **kwargs).reshape(values.shape))
    found = torch.stack(parts, dim=-2)
    allowed = torch.finfo(values.dtype).eps ** 0.5 * float(values.abs().max())
    if not torch.allclose(found.sum(-2), values, rtol=0, atol=allowed):
        raise ValueError(
            f"The output of {type(layer).__name__} is not the sum of its chosen experts' "
            "outputs: its relevance cannot be assigned to experts."
        )
    return found


def parts_of(layer: nn.Module, call: Any, values: Tensor) -> Tensor:
    """Summand of each expert in the output of a module of experts.

    Args:
        layer: The module.
        call: Its arguments.
        values: Its output ``[B, T, D]``.

    Returns:
        ``[B, T, E, D]``, which sums to the output over E.

    Raises:
        ValueError: As :func:`parts_by_choice`, or if the module has no number of
            experts.
    """
    count = number_of(layer)
    parts = parts_by_choice(layer, call, values)
    chosen = choices_of(call, layer)[0].reshape(*parts.shape[:-1], 1).expand_as(parts)
    return by_expert(parts, chosen, count, dim=-2)


def by_expert(parts: Tensor, chosen: Tensor, count: int, dim: int) -> Tensor:
    """Turn sums over choices into sums over experts.

    Args:
        parts: One per choice, ``[..., k, ...]``.
        chosen: Index of the expert, likewise; an index out of range counts for no expert.
        count: Number of experts.
        dim: The dimension of choices.

    Returns:
        ``[..., E, ...]``.
    """
    shape = list(parts.shape)
    shape[dim] = count + 1
    index = chosen.clamp(max=count)
    return parts.new_zeros(shape).scatter_add(dim, index, parts).narrow(dim, 0, count)


def number_of(layer: nn.Module) -> int:
    """Number of experts in a module.

    Raises:
        ValueError: If the module does not declare it.
    """
    count = _count(layer)
    if not isinstance(count, int):
        raise ValueError(  # noqa: TRY004 - the layer lacks something, its type is right
            f"{type(layer).__name__} has no `num_experts`: give the module that holds all experts "
            "of a layer."
        )
    return count


def _count(layer: nn.Module) -> Any:
    return getattr(layer, "num_experts", None)
