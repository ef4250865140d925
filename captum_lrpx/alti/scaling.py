"""Norms and factors with a frozen scale, between the output of heads and the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from captum_lrpx.alti.attention_weights import wide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from captum_lrpx.alti.pull import Pull
    from captum_lrpx.trace.graph import Edge


class Scaling(NamedTuple):
    """A norm or a factor with a frozen scale: ``x -> scale * center(x * weight)`` transposed.

    Attributes:
        scale: Scale of each position ``[B, T, 1]``.
        weight: Weight of each feature ``[D]``.
        centered: Whether the mean is subtracted.
    """

    scale: Tensor
    weight: Tensor
    centered: bool


def of_layer_norm(pull: Pull, order: Sequence[int], end: Edge, start: Edge) -> Scaling | None:
    """Scaling of a layer norm over features, read from its node; None for anything else.

    Args:
        pull: Knows the graph and its rules.
        order: The nodes in between.
        end: Its result.
        start: Its input.
    """
    number, graph = end.node, pull.graph
    node: Any = graph.nodes[number]
    action = pull.actions.get(number)
    alone = tuple(order) == (number,) and graph.operands[number][0] == start
    if not alone or graph.names[number] != "NativeLayerNorm" or action is None:
        return None
    width, weight = node._saved_normalized_shape, node._saved_weight  # noqa: SLF001
    scale = wide(node._saved_result2.detach())  # noqa: SLF001
    if len(width) != 1 or scale.ndim != 3 or action.rule != "norm":
        return None
    weight = scale.new_ones(width) if weight is None else wide(weight.detach())
    return Scaling(scale, weight, centered=True)


def measured(
    pulled: Callable[[Tensor], Tensor], seed: Tensor, lengths: tuple[int, int], same: float
) -> Scaling | None:
    """Scaling of arbitrary operations, measured by the gradients of three known tensors.

    Args:
        pulled: Pulls a gradient back through the operations.
        seed: Zeros of the shape of its result ``[..., D]``.
        lengths: Examples and positions.
        same: Relative tolerance for numbers that are equal in theory.

    Returns:
        The scaling; None if the operations are no such scaling.
    """
    width = seed.shape[-1]
    signs = torch.where(torch.arange(width, device=seed.device) % 2 == 0, 1.0, -1.0).to(seed)
    noise = torch.linspace(-1, 2, width, device=seed.device).to(seed).sin() + 0.1
    plain, signed, noisy = (
        wide(pulled((seed + each).contiguous())).reshape(-1, width)
        for each in (torch.ones_like(signs), signs, noise)
    )
    # A subtracted mean shows as a difference between even and odd features.
    difference = plain - signs * signed
    even, odd = (difference[:, first::2].mean(-1, keepdim=True) for first in (0, 1))
    for centered in (False, True):
        factors = plain - (even + odd) / 2 if centered else plain
        expected = factors * noise
        if centered:
            expected = expected - expected.mean(-1, keepdim=True)
        if (noisy - expected).norm() <= same * noisy.norm():
            found = rank_one(factors, same)
            if found is not None:
                return Scaling(found[0].view(*lengths, 1), found[1], centered)
    return None


def rank_one(factors: Tensor, same: float) -> tuple[Tensor, Tensor] | None:
    """Decompose ``[N, F]`` into ``[N, 1]`` times ``[F]``; None if its rank is higher than one."""
    weight = factors[factors.norm(dim=-1).argmax()]
    scale = (factors @ weight / (weight @ weight).clamp(min=1e-30)).unsqueeze(-1)
    difference = (factors - scale * weight).norm()
    return (scale, weight) if difference <= same * factors.norm() else None
