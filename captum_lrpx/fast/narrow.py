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
from torch import Tensor
from torch.utils import _pytree as pytree
from typing_extensions import Self

from captum_lrpx.fast.sparse import product_of_sparse
from captum_lrpx.parallel import is_spread

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

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

    Those behind the last attention, and those of whose results a part gets no relevance.

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


class _MostlyZero(Tensor):
    """A gradient ``[N, F]`` that is zero in most rows or features, of which a product makes use."""

    whole: Tensor

    @staticmethod
    def __new__(cls: type[Self], whole: Tensor) -> Self:
        """PyTorch's way to make a tensor that only looks like one."""
        return Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, whole.shape, strides=whole.stride(), dtype=whole.dtype, device=whole.device
        )

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        if func is torch.ops.aten.mm.default and type(args[0]) is cls:
            return product_of_sparse(args[0].whole, args[1])
        if func is torch.ops.aten._grouped_mm.default and type(args[0]) is cls:  # noqa: SLF001
            return product_of_sparse(args[0].whole, *args[1:3])
        args, kwargs = pytree.tree_map_only(cls, lambda each: each.whole, (args, kwargs or {}))
        return func(*args, **kwargs)


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


_WORTH_IT: Final = 1 << 13
"""Numbers in a gradient below which a look at them takes longer than the product."""


def _mostly_zero(taken: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
    if taken[0] is None or taken[0].numel() < _WORTH_IT or is_spread(taken[0]):
        return None  # processes may have other zeros than this one
    return (_MostlyZero(taken[0]), *taken[1:])
