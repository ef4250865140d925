"""From kinds and provenance to roles: what each product, softmax and gate is for.

Two passes over the graph, no module and no name of a family in sight. Forward, each tensor gets a
*nature*: the kind of thing that it is. Backward, it is found out what ends in the scores of a
softmax. With these the role of a product follows from its two factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from captum_lrpx.trace.operations import ELEMENTWISE, Kind, has_summand, is_clamp, kind_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from captum_lrpx.trace.graph import Edge, Graph

__all__ = ["Nature", "Role", "Roles", "roles_of"]

Nature = Literal["signal", "activated", "gate", "weights", "scale", "constant"]
"""What a tensor is.

- ``"signal"``: linear in the residual stream, or a product that has one;
- ``"activated"``: a signal behind an activation with g(0) = 0;
- ``"gate"``: a function that is not 0 at 0 (sigmoid, exp, softplus, 1 + tanh);
- ``"weights"``: a softmax;
- ``"scale"``: what a norm divides by;
- ``"constant"``: held constant by a hint (the key of a recurrence).
"""

Role = Literal[
    "linear",
    "activation",
    "norm",
    "softmax",
    "attention",
    "scores",
    "gated product",
    "composite",
    "constant factor",
    "kernel",
    "rule",
    "undecided",
    "unknown",
]
"""What an operation is for.

- ``"attention"``: weights times values; ``"scores"``: query times key;
- ``"gated product"``: an activated branch times another;
- ``"composite"``: a product of functions of one tensor, part of an activation;
- ``"constant factor"``: a product or quotient one side of which is held constant in every recipe:
  gates, routers, scales of norms, denominators.
"""

_PRIORITY: Final[tuple[Nature, ...]] = ("weights", "gate", "activated", "scale", "constant")


@dataclass(frozen=True)
class Operation:
    """A node with its role.

    Attributes:
        kind: What the operator does.
        role: What it is for.
        nature: What its result is.
        constant: Places of operands that the role holds constant (``"constant factor"``); the
            weights of ``"attention"``; the activated branch of a ``"gated product"``.
        signal: Places of the operands that get relevance beside those.
    """

    kind: Kind
    role: Role
    nature: Nature
    constant: tuple[int, ...] = ()
    signal: tuple[int, ...] = ()


Roles = list[Operation]


def roles_of(graph: Graph, constants: Collection[Edge] = ()) -> Roles:
    """The role of every node of a graph.

    Args:
        graph: The graph.
        constants: Results of nodes that a hint holds constant.

    Returns:
        One operation per node.
    """
    finder = _Finder(graph, frozenset(constants))
    for number in range(len(graph.nodes)):
        finder.visit(number)
    return finder.found


class _Finder:
    def __init__(self, graph: Graph, constants: frozenset[Edge]) -> None:
        self.graph = graph
        self.constants = constants
        self.found: Roles = []
        self.kinds = [
            kind_of(name, graph.detail(number)) for number, name in enumerate(graph.names)
        ]
        self.ends_in_softmax = self._ends_in_softmax()
        # Node -> the tensors that it is an element-wise function of -> whether it is 0 where they are.
        self.functions: list[dict[Edge, bool]] = []

    # Backward ---------------------------------------------------------------------------------

    def _ends_in_softmax(self) -> list[bool]:
        graph, kinds = self.graph, self.kinds
        ends = [False] * len(kinds)
        for number in range(len(kinds) - 1, -1, -1):
            kind, edges = kinds[number], graph.operands[number]
            if kind == "softmax":
                taken: tuple[Edge | None, ...] = edges
            elif kind == "kernel":
                taken = edges[3:]  # an additive mask
            elif (ends[number] and kind in ("linear", "activation")) or (ends[number] and kind in ("product", "quotient") and _dependent(edges) == 1):
                taken = edges
            elif ends[number] and has_summand(graph.names[number]):
                taken = edges[:1]
            else:
                continue
            for edge in taken:
                if edge is not None:
                    ends[edge.node] = True
        return ends

    # Forward ----------------------------------------------------------------------------------

    def visit(self, number: int) -> None:
        """Find the role of a node whose operands have theirs."""
        kind = self.kinds[number]
        self.functions.append(self._functions(number, kind))
        self.found.append(self._operation(number, kind))

    def nature(self, edge: Edge) -> Nature:
        """What an operand is."""
        if self.constants and edge in self.constants:
            return "constant"
        return self.found[edge.node].nature

    def _operation(self, number: int, kind: Kind) -> Operation:  # noqa: PLR0911 - one for each kind
        edges = self.graph.operands[number]
        places = [place for place, edge in enumerate(edges) if edge is not None]
        if not places:
            return Operation("input", "linear", "signal")
        natures = [self.nature(edge) for edge in edges if edge is not None]
        name = self.graph.names[number]
        if kind == "linear":
            return Operation(kind, "linear", self._of_sum(number, natures))
        if kind == "projection":
            factors = [place for place in places if place or not has_summand(name)]
            if len(factors) > 1:
                return self._product(number, factors, element_wise=False)
            nature: Nature = natures[-1] if natures[-1] in ("weights", "constant") else "signal"
            return Operation(kind, "linear", nature)
        if kind == "product":
            factors = [place for place in places if place or not has_summand(name)]
            if len(factors) > 1:
                return self._product(number, factors, element_wise=True)
            return Operation("linear", "linear", self._mixed(natures))
        if kind == "quotient":
            return self._quotient(places, natures, edges)
        if kind == "activation":
            if is_clamp(name) or natures[0] in ("weights", "gate", "scale", "constant"):
                return Operation(kind, "activation", natures[0])
            return Operation(kind, "activation", "activated")
        if kind == "gate function":
            return Operation(kind, "activation", _gate(natures))
        if kind == "scale":
            return Operation(kind, "unknown", "scale")
        if kind == "norm":
            return Operation(kind, "norm", "signal")
        if kind == "softmax":
            return Operation(kind, "softmax", "weights")
        if kind == "kernel":
            return Operation(kind, "kernel", "signal")
        if kind == "rule":
            return Operation(kind, "rule", self._mixed(natures))
        return Operation(kind, "unknown", self._mixed(natures))

    @staticmethod
    def _mixed(natures: list[Nature]) -> Nature:
        if len(set(natures)) == 1:
            return natures[0]
        if "signal" in natures:
            return "signal"
        return next(nature for nature in _PRIORITY if nature in natures)

    def _of_sum(self, number: int, natures: list[Nature]) -> Nature:
        nature = self._mixed(natures)
        return "gate" if nature == "activated" and self._adds_constant(number) else nature

    def _adds_constant(self, number: int) -> bool:
        name, edges = self.graph.names[number], self.graph.operands[number]
        return name == "Rsub" or (name in ("Add", "Sub") and _dependent(edges) < max(2, len(edges)))

    # Products ---------------------------------------------------------------------------------

    def _product(self, number: int, factors: list[int], *, element_wise: bool) -> Operation:
        edges = self.graph.operands[number]
        if len(factors) > 2:
            return Operation("product", "undecided", "signal", signal=tuple(factors))
        first, second = factors
        taken = edges[first], edges[second]
        assert taken[0] is not None and taken[1] is not None  # noqa: S101, PT018
        natures = self.nature(taken[0]), self.nature(taken[1])
        for nature in ("constant", "scale"):
            if nature in natures:
                constant = [
                    place for place, each in zip(factors, natures, strict=True) if each == nature
                ]
                other = natures[1] if natures[0] == nature else natures[0]
                return _held(constant, factors, other)
        if element_wise:
            found = self._composite(number, factors, natures)
            if found is not None:
                return found
        return self._by_nature(number, factors, natures, element_wise=element_wise)

    def _composite(
        self, number: int, factors: list[int], natures: tuple[Nature, Nature]
    ) -> Operation | None:
        """A product of two functions of one tensor: as a whole a function of it."""
        edges = self.graph.operands[number]
        ways = [self._ways(edges[place]) for place in factors]
        common = ways[0].keys() & ways[1].keys()
        if not common:
            return None
        nearest = max(common)
        zero = [way[nearest] for way in ways]
        if natures == ("gate", "gate") or not any(zero):
            return Operation("product", "composite", "gate", signal=tuple(factors))
        if all(zero):
            return Operation("product", "composite", "activated", signal=tuple(factors))
        constant = factors[zero.index(False)]
        signal = factors[zero.index(True)]
        return Operation("product", "constant factor", "activated", (constant,), (signal,))

    def _by_nature(
        self,
        number: int,
        factors: list[int],
        natures: tuple[Nature, Nature],
        *,
        element_wise: bool,
    ) -> Operation:
        both = tuple(factors)
        scores = self.ends_in_softmax[number]
        if "weights" in natures:
            place = natures.index("weights")
            other = natures[1 - place]
            weights, values = (factors[place],), (factors[1 - place],)
            if element_wise:
                return Operation("product", "constant factor", other, weights, values)
            nature: Nature = "weights" if other == "weights" else "signal"
            return Operation("product", "attention", nature, weights, values)
        if "gate" in natures:
            if natures == ("gate", "gate"):
                return Operation("product", "composite", "gate", signal=both)
            place = natures.index("gate")
            gate, signal = (factors[place],), (factors[1 - place],)
            nature = natures[1 - place] if element_wise else "signal"
            return Operation("product", "constant factor", nature, gate, signal)
        if scores:
            return Operation("product", "scores", "signal", signal=both)
        if element_wise and sorted(natures) == ["activated", "signal"]:
            place = natures.index("activated")
            activated, other_branch = (factors[place],), (factors[1 - place],)
            return Operation("product", "gated product", "signal", activated, other_branch)
        return Operation("product", "undecided", "signal", signal=both)

    def _quotient(
        self, places: list[int], natures: list[Nature], edges: tuple[Edge | None, ...]
    ) -> Operation:
        if places == [0]:
            return Operation("linear", "linear", natures[0])
        denominator = natures[-1]
        if places == [1]:
            nature: Nature = "scale" if denominator == "scale" else "gate"
            return Operation("quotient", "constant factor", nature, (1,))
        del edges
        return Operation("quotient", "constant factor", natures[0], (1,), (0,))

    # Functions of one tensor --------------------------------------------------------------------

    def _ways(self, edge: Edge | None) -> dict[Edge, bool]:
        return {} if edge is None else {edge: True} | self.functions[edge.node]

    def _functions(self, number: int, kind: Kind) -> dict[Edge, bool]:
        if self.graph.names[number] not in ELEMENTWISE:
            return {}
        ways = [self._ways(edge) for edge in self.graph.operands[number] if edge is not None]
        if len(ways) == 1:
            zero = kind != "gate function" and not self._adds_constant(number)
            if kind == "quotient" and self.graph.operands[number][0] is None:
                zero = False
            return {tensor: each and zero for tensor, each in ways[0].items()}
        if len(ways) == 2:
            common = ways[0].keys() & ways[1].keys()
            return {tensor: self._zero(kind, ways[0][tensor], ways[1][tensor]) for tensor in common}
        return {}

    @staticmethod
    def _zero(kind: Kind, first: bool, second: bool) -> bool:
        if kind == "product":
            return first or second
        return first if kind == "quotient" else first and second


def _dependent(edges: tuple[Edge | None, ...]) -> int:
    return sum(edge is not None for edge in edges)


def _gate(natures: list[Nature]) -> Nature:
    return natures[0] if natures[0] in ("scale", "constant") else "gate"


def _held(constant: list[int], factors: list[int], nature: Nature) -> Operation:
    signal = tuple(place for place in factors if place not in constant)
    return Operation("product", "constant factor", nature, tuple(constant), signal)
