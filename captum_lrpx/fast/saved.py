"""Saved tensors: of what operations keep for their gradients, only what the rules read.

PyTorch decides in the forward pass what each operation saves. Once a graph of the same structure
has been read, it is known which of these tensors nothing will look at: those of branches that a
rule holds constant, of factors that get no relevance, of norms and activations whose own gradient
is replaced. They are not kept. Where an operation insists on one, it is given zeros of its shape,
and what it computes from them is what a rule drops.

Relevances are those without it, bit by bit. It is worth most where a rule holds much constant:
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
    from captum_lrpx.rules.zeros import Zeros
    from captum_lrpx.trace.graph import Graph

__all__ = ["SCALAR", "Economy", "Numbered", "Saved", "economy_of", "is_worth_it"]

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
"""For which operands' gradients an operation reads what it has saved; for all, if not listed."""

_READ_BY_KERNELS: Final[Mapping[str, tuple[int, ...]]] = dict.fromkeys(
    ("value", "output", "out"), (0, 1, 3)
)
"""The same for attention kernels: the gradient of the values needs the weights alone."""

_READ_BY_NORMS: Final = {
    "NativeLayerNorm": ("weight", "result2"),
    "NativeGroupNorm": ("weight", "result2"),
    "FusedRmsNorm": ("weight", "result1"),
}
"""What a norm with its scale held constant needs."""


_OF_SCALES: Final = frozenset({"input", "result1"})
"""What of a layer norm its gradient takes the derivative of its scale from."""


@dataclass(frozen=True)
class Economy:
    """What of the tensors that are saved in a pass need not be kept.

    Tensors are named by the order in which they are saved.

    Attributes:
        key: Of the graph that it is for.
        count: How many tensors are saved.
        absent: Those that are not kept; True where what takes the zeros instead of them wants to
            find them in memory, one by one.
        again: Results of activations that are computed again from their input, which is kept.
        frozen: For each layer norm the input and mean that its own gradient takes. Where they are
            zeros, it is the one with the scale held constant.
        spared: Numbers that are not kept, for each position of the inputs.
        device: Type of the device that they would be on.
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
        """Those from which others are computed again."""
        return frozenset(source for source, _ in self.again.values())


class Numbered:
    """Stands for a saved tensor.

    Attributes:
        number: The order in which it was saved.
    """

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number = number


class _Absent:
    """Stands for a saved tensor that is not kept."""

    __slots__ = ("shape", "whole", "zero")

    def __init__(self, zero: Tensor, shape: torch.Size, whole: bool) -> None:
        self.zero, self.shape, self.whole = zero, shape, whole


class _Again:
    """Stands for a saved tensor that is computed again."""

    __slots__ = ("function", "source")

    def __init__(self, source: _Kept, function: Callable[[Tensor], Tensor]) -> None:
        self.source = source
        self.function = function


class _Kept(Numbered):
    """A saved tensor, and how often it had been written to by then."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor, number: int) -> None:
        super().__init__(number)
        self.tensor = tensor
        self.version = tensor._version  # noqa: SLF001 - as autograd itself does

    def value(self) -> Tensor:
        if self.tensor._version != self.version:  # noqa: SLF001
            raise RuntimeError(
                "One of the tensors that the backward pass needs has been modified by an in-place "
                f"operation: of shape {tuple(self.tensor.shape)}, it is at version "
                f"{self.tensor._version} instead of {self.version}."  # noqa: SLF001
            )
        return self.tensor


class Saved(saved_tensors_hooks):
    """The tensors that are saved in a forward pass, for a ``with`` block.

    Args:
        economy: What need not be kept; None to find out.
        zeros: Of the pass.

    Attributes:
        economy: As given.
        count: How many tensors have been saved.
        left_out: Which of them have not been kept.
        sizes: How large they are, where that is not known yet.
        device: Type of the device of the last one.
    """

    def __init__(self, economy: Economy | None, zeros: Zeros) -> None:
        self.economy = economy or Economy(None, 0)
        self.count = 0
        self.left_out: set[int] = set()
        self.sizes: dict[int, int] = {}
        self.device = "cpu"
        self._sources: dict[int, _Kept] = {}
        self._zeros = zeros
        super().__init__(self._pack, self._unpack)

    def fits(self, key: Hashable) -> bool:
        """Whether a graph may go backward with what has been kept of it."""
        self._sources.clear()
        economy = self.economy
        nothing_left_out = not (economy.absent or economy.again)
        return nothing_left_out or (key, self.count) == (economy.key, economy.count)

    def frozen(self) -> set[int]:
        """The layer norms whose own gradient has their scale held constant already."""
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
"""Below, what a graph keeps is not worth the time that it takes to keep less."""


def is_worth_it(economy: Economy | None, positions: int) -> bool:
    """Whether it pays to keep less of a pass.

    Args:
        economy: What need not be kept; None if that is not known yet.
        positions: Of its inputs.
    """
    if economy is None:
        return positions >= _FEW_POSITIONS
    return economy.spared * positions >= _FEW_NUMBERS.of(economy.device)


def economy_of(graph: Graph, plan: Plan, saved: Saved, positions: int) -> Economy:
    """What need not be kept of passes like the one that has just been run.

    Args:
        graph: Its graph.
        plan: What rules will do.
        saved: What it has saved.
        positions: Of its inputs.
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
    """For each node and name of a saved tensor the order in which it was saved."""
    found = {}
    for number, node in enumerate(graph.nodes):
        for attribute in dir(node):
            if attribute.startswith(_PREFIX):
                # Not what it stands for: others' hooks may allow that to be asked only once.
                kept = getattr(getattr(node, attribute), "data", None)
                if isinstance(kept, Numbered):
                    found[number, attribute.removeprefix(_PREFIX)] = kept.number
    return found


def _is_read(graph: Graph, plan: Plan, rule: str | None, number: int, name: str) -> bool:
    """Whether something that counts looks at a saved tensor."""
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
    """The activation whose result an operand is, if it can be computed again; else None."""
    edge = graph.operands[number][place]
    if edge is None or not node_rules.can_run_again(graph.nodes[edge.node], graph.names[edge.node]):
        return None
    return edge.node
