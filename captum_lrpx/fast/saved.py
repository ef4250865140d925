"""Keeps, of the tensors that operations save for their gradients, only those that the rules read.

PyTorch decides in the forward pass what each operation saves. Once a graph of the same structure
has been read, it is known which of these tensors are never used: tensors of branches that a
rule holds constant, of factors that get no relevance, of norms and activations whose own gradient
is replaced. They are not kept. An operation that insists on one gets zeros of its shape,
and a rule drops the result.

Relevances are the same bit by bit. It saves most where a rule holds much constant:
LRPx on a Llama keeps a third of what the graph alone would.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from captum_lrpx.fast.least import Least
from captum_lrpx.rules import node_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping

    from captum_lrpx.graph_rules import Plan
    from captum_lrpx.trace.graph import Graph


SCALAR: Final = torch.Size()

_PREFIX: Final = "_raw_saved_"

_READ: Final[Mapping[str, Mapping[str, tuple[int, ...]]]] = {
    "Mul": {"self": (1,), "other": (0,)},
    "Div": {"self": (1,)},
    "Mm": {"self": (1,), "mat2": (0,)},
    "Bmm": {"self": (1,), "mat2": (0,)},
    "Addmm": {"mat1": (2,), "mat2": (1,)},
    "Baddbmm": {"batch1": (2,), "batch2": (1,)},
}
"""Operands whose gradients need a saved tensor, by operation; all, if not listed."""

_READ_BY_KERNELS: Final[Mapping[str, tuple[int, ...]]] = dict.fromkeys(
    ("value", "output", "out"), (0, 1, 3)
)
"""The same for attention kernels: the gradient of the values needs the weights alone."""

_READ_BY_NORMS: Final = {
    "NativeLayerNorm": ("weight", "result2"),
    "NativeGroupNorm": ("weight", "result2"),
    "FusedRmsNorm": ("weight", "result1"),
}
"""Saved tensors needed by a norm with constant scale."""


_OF_SCALES: Final = frozenset({"input", "result1"})
"""Saved tensors of a layer norm needed only for the derivative of its scale."""


@dataclass(frozen=True)
class Economy:
    """Saved tensors of a pass that need not be kept.

    Tensors are named by the order in which they are saved.

    Attributes:
        key: Key of the graph that it is for.
        count: Number of saved tensors.
        absent: Tensors that are not kept; True if the zeros in their place must be allocated, not
            expanded.
        again: Results of activations that are recomputed from their input, which is kept.
        frozen: For each layer norm the input and mean that its own gradient reads. With zeros in
            their place, that gradient holds the scale constant.
        spared: Number of elements not kept, per position of the inputs.
        device: Type of device of these tensors.
    """

    key: Hashable
    count: int
    absent: Mapping[int, bool] = field(default_factory=dict)
    again: Mapping[int, tuple[int, Callable[[Tensor], Tensor]]] = field(default_factory=dict)
    frozen: Mapping[int, Collection[int]] = field(default_factory=dict)
    spared: float = 0.0
    device: str = "cpu"

    @cached_property
    def sources(self) -> frozenset[int]:
        """Tensors from which others are recomputed."""
        return frozenset(source for source, _ in self.again.values())


class Numbered:
    """Placeholder of a saved tensor.

    Attributes:
        number: Index in the order of saving.
    """

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number = number


class _Absent:
    """Placeholder of a saved tensor that is not kept."""

    __slots__ = ("shape", "whole", "zero")

    def __init__(self, zero: Tensor, shape: torch.Size, whole: bool) -> None:
        self.zero, self.shape, self.whole = zero, shape, whole


class _Again:
    """Placeholder of a saved tensor that is recomputed."""

    __slots__ = ("function", "source")

    def __init__(self, source: _Kept, function: Callable[[Tensor], Tensor]) -> None:
        self.source = source
        self.function = function


class _Kept(Numbered):
    """A saved tensor, and its version when it was saved."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor, number: int) -> None:
        super().__init__(number)
        self.tensor = tensor
        self.version = tensor._version  # noqa: SLF001 - like autograd itself

    def value(self) -> Tensor:
        if self.tensor._version != self.version:  # noqa: SLF001
            raise RuntimeError(
                "One of the tensors that the backward pass needs has been modified by an in-place "
                f"operation: of shape {tuple(self.tensor.shape)}, it is at version "
                f"{self.tensor._version} instead of {self.version}."  # noqa: SLF001
            )
        return self.tensor


class Saved(saved_tensors_hooks):
    """The tensors saved in a forward pass, for a ``with`` block.

    Args:
        economy: Tensors that need not be kept; None to measure.
        zeros: Zeros of the pass.

    Attributes:
        economy: As given.
        count: Number of tensors saved so far.
        left_out: Those that were not kept.
        sizes: Their sizes, while the economy is unknown.
        device: Type of device of the last one.
    """

    def __init__(self, economy: Economy | None, zeros: node_rules.Zeros) -> None:
        self.economy = economy or Economy(None, 0)
        self.count = 0
        self.left_out: set[int] = set()
        self.sizes: dict[int, int] = {}
        self.device = "cpu"
        self._sources: dict[int, _Kept] = {}
        self._zeros = zeros

    def __enter__(self) -> None:
        """Keep what is saved from here on."""
        super().__init__(self._pack, self._unpack)
        super().__enter__()
        del self.pack_hook, self.unpack_hook  # PyTorch has them; they would keep this alive

    def fits(self, key: Hashable) -> bool:
        """Whether the tensors kept suffice for the backward pass of a graph."""
        self._sources.clear()
        economy = self.economy
        nothing_left_out = not (economy.absent or economy.again)
        return nothing_left_out or (key, self.count) == (economy.key, economy.count)

    def frozen(self) -> set[int]:
        """Layer norms whose own gradient already holds their scale constant."""
        orders = self.economy.frozen.items()
        return {number for number, own in orders if own and self.left_out.issuperset(own)}

    def _pack(self, tensor: Tensor) -> Any:
        number = self._number(tensor)
        return self._packed(tensor, number, self.economy)

    def _number(self, tensor: Tensor) -> int:
        number = self.count
        self.count += 1
        if self.economy.key is None:
            self.sizes[number] = tensor.numel()
            self.device = tensor.device.type
        return number

    def _packed(self, tensor: Tensor, number: int, economy: Economy) -> Any:
        owns = economy.absent.get(number)
        if owns is not None and type(tensor) is Tensor:
            self.left_out.add(number)
            return _Absent(self._zeros.of(SCALAR, tensor.dtype, tensor.device), tensor.shape, owns)
        again = economy.again.get(number)
        if again is not None and again[0] in self._sources:
            return _Again(self._sources[again[0]], again[1])
        kept = _Kept(tensor, number)
        if number in economy.sources:
            self._sources[number] = kept
        return kept

    def _unpack(self, packed: Any) -> Tensor:
        if type(packed) is _Absent:
            if packed.whole:
                return self._zeros.of(packed.shape, packed.zero.dtype, packed.zero.device)
            return packed.zero.expand(packed.shape)
        if type(packed) is _Again:
            with torch.no_grad():
                return packed.function(packed.source.value())
        kept: Tensor = packed.value()
        return kept


_FEW_POSITIONS: Final = 64
_FEW_NUMBERS: Final = Least(1 << 22, 1 << 26)
"""Savings below which keeping less takes more time than it is worth."""


def is_worth_it(economy: Economy | None, positions: int) -> bool:
    """Whether keeping fewer tensors of a pass pays.

    Args:
        economy: Tensors that need not be kept; None if unknown.
        positions: Number of positions of the inputs.
    """
    if economy is None:
        return positions >= _FEW_POSITIONS
    return economy.spared * positions >= _FEW_NUMBERS.of(economy.device)


def economy_of(graph: Graph, plan: Plan, saved: Saved, positions: int) -> Economy:
    """Find out which tensors need not be kept in passes like the last one.

    Args:
        graph: Its graph.
        plan: The actions of the rules.
        saved: Its saved tensors.
        positions: Number of positions of the inputs.
    """
    places = _places(graph)
    key = graph.key
    actions = {action.number: action.rule for action in plan.actions if action.rule != "factors"}
    norms = {number for number in actions if graph.names[number] == "NativeLayerNorm"}
    absent = {
        order: number in norms or "Attention" in graph.names[number]
        for (number, name), order in places.items()
        if not _is_read(graph, plan, actions.get(number), number, name)
    }
    again = {}
    for (number, name), order in places.items():
        if order not in absent and graph.names[number] == "Mul":
            found = _made_from(graph, number, 0 if name == "self" else 1)
            source = None if found is None else places.get((found, "self"))
            if found is not None and source is not None and source not in absent:
                made = node_rules.function_of(graph.nodes[found], graph.names[found])
                again[order] = (source, made)
    frozen: dict[int, set[int]] = {number: set() for number in norms}
    for (number, name), order in places.items():
        if number in norms and name in _OF_SCALES:
            frozen[number].add(order)
    spared = sum(saved.sizes[order] for order in {*absent, *again}) / positions
    return Economy(key, saved.count, absent, again, frozen, spared, saved.device)


def _places(graph: Graph) -> dict[tuple[int, str], int]:
    """Index in the order of saving, by node and name of the saved tensor."""
    found = {}
    for number, node in enumerate(graph.nodes):
        for attribute in dir(node):
            if attribute.startswith(_PREFIX):
                # The placeholder, not the tensor: other hooks may allow only one read of that.
                kept = getattr(getattr(node, attribute), "data", None)
                if isinstance(kept, Numbered):
                    found[number, attribute.removeprefix(_PREFIX)] = kept.number
    return found


def _is_read(graph: Graph, plan: Plan, rule: str | None, number: int, name: str) -> bool:
    """Whether a saved tensor is used for a gradient that counts."""
    operator = graph.names[number]
    if number not in plan.alive:
        return False
    if rule == "norm":
        return name in _READ_BY_NORMS.get(operator, (name,))
    if rule == "secant":
        return name != "result"
    table = _READ_BY_KERNELS if "Attention" in operator else _READ.get(operator, {})
    if rule is not None or name not in table:
        return True
    factors, operands = plan.factors[number], graph.operands[number]
    return any(
        place < len(operands) and operands[place] is not None and factors[place] is not None
        for place in table[name]
    )


def _made_from(graph: Graph, number: int, place: int) -> int | None:
    """Activation that computed an operand, if it can be recomputed; else None."""
    edge = graph.operands[number][place]
    if edge is None or not node_rules.can_run_again(graph.nodes[edge.node], graph.names[edge.node]):
        return None
    return edge.node
