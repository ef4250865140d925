"""Linear layers whose gradient is mostly zero go backward over the rest alone.

An explained value is read at one position of one sequence: until the last attention has spread it,
the gradient is zero at all other positions. A fused projection whose queries and keys are held
constant gets a gradient in the features of its values alone. PyTorch multiplies the zeros as well.
Here the operation is handed the rows and features that are not zero, and what it gives is put where
it belongs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.fast.sparse import is_worth_a_look, product_of_sparse
from captum_lrpx.parallel import is_spread
from captum_lrpx.rules.answering import Answering

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from captum_lrpx.graph_rules import Plan
    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.trace.roles import Roles

__all__ = ["narrow", "narrowing_of"]

_OPERAND: Final = {"Mm": 0, "Addmm": 1, "GroupedMm": 0}
"""Which operand of a linear node its input is; the others are weight and bias."""

_PARTS: Final = frozenset({"Split", "SplitWithSizes", "Unbind", "Select", "Slice"})
"""Operations that hand on a part of what they take."""

_FORM_ONLY: Final = frozenset(
    (
        *("View", "UnsafeView", "ViewAs", "Reshape", "Transpose", "T", "Permute"),
        *("Unsqueeze", "Squeeze", "Clone", "Alias"),
    )
)
"""Operations that hand on all of it."""

_MIXING: Final = frozenset({"kernel", "attention"})
"""Roles of operations that read several positions at once."""


def narrowing_of(graph: Graph, roles: Roles, plan: Plan) -> frozenset[int]:
    """The linear nodes whose gradients are mostly zero.

    Those after the last attention, and those of whose results a part gets no relevance.

    Args:
        graph: The graph.
        roles: Its operations.
        plan: What rules will do.
    """
    linear = {number for number in plan.alive if _is_linear(graph, number)}
    mixing = {number for number in plan.alive if roles[number].role in _MIXING}
    last = max(mixing, default=len(graph.nodes))
    takers: dict[int, list[tuple[int, bool]]] = {}
    for number, edges in enumerate(graph.operands):
        factors = plan.factors.get(number, (None,) * len(edges))
        for edge, factor in zip(edges, factors, strict=True):
            if edge is not None:
                takers.setdefault(edge.node, []).append((number, factor is not None))
    return frozenset(
        number for number in linear if number > last or _is_partly_dead(graph, takers, number)
    )


def _is_linear(graph: Graph, number: int) -> bool:
    operand = _OPERAND.get(graph.names[number])
    return operand is not None and all(
        (edge is not None) == (place == operand)
        for place, edge in enumerate(graph.operands[number])
    )


def _is_partly_dead(
    graph: Graph, takers: Mapping[int, list[tuple[int, bool]]], number: int
) -> bool:
    """Whether a part of a result gets relevance, and another part does not."""
    ends, todo = set(), [(number, False)]
    while todo:
        node, in_parts = todo.pop()
        for taker, alive in takers.get(node, ()):
            name = graph.names[taker]
            part = in_parts or name in _PARTS
            if alive and name in _FORM_ONLY | _PARTS:
                todo.append((taker, part))
            elif part:
                ends.add(alive)
    return ends == {True, False}


def _of_groups(
    gradient: Tensor, weights: Tensor, ends: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """Without the bias and the type of the result, which a backward pass does not give."""
    return product_of_sparse(gradient, weights, ends)


_ANSWERS: Final[Mapping[Any, Callable[..., Tensor]]] = {
    torch.ops.aten.mm.default: product_of_sparse,
    torch.ops.aten._grouped_mm.default: _of_groups,  # noqa: SLF001
}
"""What a gradient ``[N, F]`` that is zero in most rows or features makes of a product."""


def narrow(graph: Graph, where: Collection[int]) -> Iterator[RemovableHandle]:
    """Put hooks on the linear nodes of a graph.

    Args:
        graph: The graph.
        where: The nodes.

    Yields:
        What takes each off again.
    """
    for number in where:
        yield graph.nodes[number].register_prehook(_mostly_zero)


def _mostly_zero(taken: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
    if taken[0] is None or not is_worth_a_look(taken[0]) or is_spread(taken[0]):
        return None  # processes may have other zeros than this one
    return (Answering(taken[0], _ANSWERS), *taken[1:])
