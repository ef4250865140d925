"""Linear layers whose gradient is mostly zero go backward over the rest alone.

An explained value is read at one position of one sequence: until the last attention has spread it,
the gradient is zero at all other positions. A fused projection whose queries and keys are held
constant gets a gradient in the features of its values alone. PyTorch multiplies the zeros as well.
Here the operation is handed the rows and features that are not zero, and what it gives is put where
it belongs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from typing_extensions import Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.utils.hooks import RemovableHandle

    from captum_lrpx.graph_rules import Plan
    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.trace.roles import Roles

__all__ = ["Narrowing", "narrow", "narrowing_of", "product_of_sparse"]

_OPERAND: Final = {"Mm": 0, "Addmm": 1}
"""Which operand of a linear node its input is; the others are weight and bias."""

_WORTH_IT: Final = 0.5
"""Share of rows or features up to which picking them saves anything."""

_FORM_ONLY: Final = frozenset(
    (
        *("View", "UnsafeView", "ViewAs", "Reshape", "Transpose", "T", "Permute", "Unsqueeze"),
        *("Squeeze", "Split", "SplitWithSizes", "Unbind", "Select", "Slice", "Clone", "Alias"),
    )
)
"""Operations that hand on what they take, or parts of it."""

_MIXING: Final = frozenset({"kernel", "attention"})
"""Roles of operations that read several positions at once."""


class Narrowing(NamedTuple):
    """Linear nodes of graphs of one structure whose gradients are mostly zero.

    Attributes:
        rows: Those behind the last attention.
        features: Those of whose results a part gets no relevance.
    """

    rows: frozenset[int]
    features: frozenset[int]


def narrowing_of(graph: Graph, roles: Roles, plan: Plan) -> Narrowing:
    """Find the linear nodes that are worth a look when the gradient comes.

    Args:
        graph: The graph.
        roles: Its operations.
        plan: What rules will do.
    """
    linear = {number for number in plan.alive if _is_linear(graph, number)}
    last = max((number for number in plan.alive if roles[number].role in _MIXING), default=None)
    rows = set() if last is None else {number for number in linear if number > last}
    takers: dict[int, list[tuple[int, bool]]] = {}
    for number, edges in enumerate(graph.operands):
        factors = plan.factors.get(number, (None,) * len(edges))
        for edge, factor in zip(edges, factors, strict=True):
            if edge is not None:
                takers.setdefault(edge.node, []).append((number, factor is not None))
    return Narrowing(
        frozenset(rows),
        frozenset(number for number in linear if _is_partly_dead(graph, takers, number)),
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
    """Whether some of what is made from a result gets relevance, and some does not."""
    ends, todo = set(), [number]
    while todo:
        for taker, alive in takers.get(todo.pop(), ()):
            if alive and graph.names[taker] in _FORM_ONLY:
                todo.append(taker)
            else:
                ends.add(alive)
    return ends == {True, False}


class _Rows:
    """Whether gradients still have rows of zeros, on the way down from the explained value."""

    def __init__(self) -> None:
        self.sparse = True

    def begin(self, _: object) -> None:
        """At the explained value: another backward pass may have come before."""
        self.sparse = True


class _MostlyZero(Tensor):
    """A gradient that is zero but for some rows and features; only a matrix product knows.

    Args:
        whole: ``[N, F]``.
        rows: Where it is not zero; None for everywhere.
        features: Likewise.
    """

    @staticmethod
    def __new__(cls: type[Self], whole: Tensor, *_: Tensor | None) -> Self:
        """PyTorch's way to make a tensor that only looks like one."""
        return Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, whole.shape, strides=whole.stride(), dtype=whole.dtype, device=whole.device
        )

    def __init__(self, whole: Tensor, rows: Tensor | None, features: Tensor | None) -> None:
        self.whole = whole
        self.rows = rows
        self.features = features

    def times(self, weight: Tensor) -> Tensor:
        """The product with a weight ``[F, G]``, ``[N, G]``."""
        picked = self.whole
        if self.features is not None:
            picked, weight = _picked(picked, 1, self.features), _picked(weight, 0, self.features)
        if self.rows is None:
            return picked @ weight
        product = picked.index_select(0, self.rows) @ weight
        whole = product.new_zeros((len(picked), product.shape[1]))
        return whole.index_copy_(0, self.rows, product)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        if func is torch.ops.aten.mm.default and type(args[0]) is cls:
            return args[0].times(args[1])
        args, kwargs = pytree.tree_map_only(cls, lambda each: each.whole, (args, kwargs or {}))
        return func(*args, **kwargs)


def _picked(tensor: Tensor, dim: int, places: Tensor) -> Tensor:
    first, count = int(places[0]), len(places)
    if int(places[-1]) - first + 1 == count:  # without a copy
        return tensor.narrow(dim, first, count)
    return tensor.index_select(dim, places)


def _places(gradient: Tensor, over: int) -> Tensor | None:
    """Indices along the other dimension that are not all zero, if they are few."""
    (found,) = torch.nonzero((gradient != 0).any(over), as_tuple=True)
    return found if 0 < len(found) <= _WORTH_IT * gradient.shape[1 - over] else None


def product_of_sparse(gradient: Tensor, weight: Tensor) -> Tensor:
    """The product ``[..., F] @ [F, G]`` of a gradient that may be zero in most rows."""
    flat = gradient.reshape(-1, gradient.shape[-1])
    rows = _places(flat, 1)
    product = flat @ weight if rows is None else _MostlyZero(flat, rows, None).times(weight)
    return product.view(*gradient.shape[:-1], -1)


def narrow(graph: Graph, where: Narrowing) -> Iterator[RemovableHandle]:
    """Put hooks on the linear nodes of a graph.

    Args:
        graph: The graph.
        where: The nodes.

    Yields:
        What takes each off again.
    """
    rows = _Rows()
    if where.rows:
        for root in graph.roots:
            yield graph.nodes[root].register_prehook(rows.begin)
    for number in where.rows | where.features:
        hook = partial(_narrowed, rows if number in where.rows else None, number in where.features)
        yield graph.nodes[number].register_prehook(hook)


def _narrowed(
    known: _Rows | None, some_features: bool, taken: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...] | None:
    """The gradient of a linear node, mostly zero if it is."""
    gradient = taken[0]
    if gradient is None:
        return None
    rows = _places(gradient, 1) if known is not None and known.sparse else None
    if known is not None:
        known.sparse = rows is not None
    features = _places(gradient, 0) if some_features else None
    if rows is None and features is None:
        return None
    return (_MostlyZero(gradient, rows, features), *taken[1:])
