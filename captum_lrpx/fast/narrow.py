"""Restricts the backward pass of linear layers to the non-zero part of their gradient.

An explained value is read at one position of one sequence: until the last attention spreads it,
the gradient is zero at all other positions. A fused projection with constant queries and keys
gets a gradient in the features of its values alone. PyTorch multiplies the zeros as well.
Here the operation only gets the rows and features that are not zero, and its result is scattered
back.
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


_OPERAND: Final = {"Mm": 0, "Addmm": 1, "GroupedMm": 0}
"""Place of the input among the operands of a linear node; the others are weight and bias."""

_PARTS: Final = frozenset({"Split", "SplitWithSizes", "Unbind", "Select", "Slice"})
"""Operations that pass on a part of their operand."""

_FORM_ONLY: Final = frozenset(
    (
        *("View", "UnsafeView", "ViewAs", "Reshape", "Transpose", "T", "Permute"),
        *("Unsqueeze", "Squeeze", "Clone", "Alias"),
    )
)
"""Operations that pass on the whole operand."""

_MIXING: Final = frozenset({"kernel", "attention"})
"""Roles of operations that read several positions at once."""


def narrowing_of(graph: Graph, roles: Roles, plan: Plan) -> frozenset[int]:
    """Linear nodes whose gradients are mostly zero.

    These are the nodes after the last attention, and those with results that partly get no
    relevance.

    Args:
        graph: The graph.
        roles: Its operations.
        plan: The actions of the rules.
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
    """Whether one part of a result gets relevance, and another part does not."""
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
    """Product for groups of rows, without bias and output type, absent in backward passes."""
    return product_of_sparse(gradient, weights, ends)


_ANSWERS: Final[Mapping[Any, Callable[..., Tensor]]] = {
    torch.ops.aten.mm.default: product_of_sparse,
    torch.ops.aten._grouped_mm.default: _of_groups,  # noqa: SLF001
}
"""Replacements of products for a gradient ``[N, F]`` that is zero in most rows or features."""


def narrow(graph: Graph, where: Collection[int]) -> Iterator[RemovableHandle]:
    """Register hooks on linear nodes of a graph.

    Args:
        graph: The graph.
        where: The nodes.

    Yields:
        A handle that removes each hook.
    """
    for number in where:
        yield graph.nodes[number].register_prehook(_mostly_zero)


def _mostly_zero(taken: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
    if taken[0] is None or not is_worth_a_look(taken[0]) or is_spread(taken[0]):
        return None  # other processes may have other zeros
    return (Answering(taken[0], _ANSWERS), *taken[1:])
