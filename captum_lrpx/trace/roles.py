"""Assigns a role to each operation: products, softmax and gates by kind and provenance.

Two passes over the graph. Forward, each tensor gets a *nature*; backward, operations that
end in scores are found. The role of a product follows from the natures of its factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_lrpx.trace.natures import PRIORITY, SIGNALS, Operation
from captum_lrpx.trace.operations import (
    CHOICES,
    ELEMENTWISE,
    Kind,
    has_held,
    is_clamp,
    is_length,
    is_mean,
    kind_of,
    summand_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from captum_lrpx.trace.graph import Edge, Graph
    from captum_lrpx.trace.natures import Nature, Role

Roles = list[Operation]


def roles_of(
    graph: Graph, hints: Mapping[Edge, Nature] | None = None, linear: Collection[int] = ()
) -> Roles:
    """Assign a role to every node of a graph.

    Args:
        graph: The graph.
        hints: The natures of some results, which the graph does not show.
        linear: Indices of nodes that are linear whatever their operator.

    Returns:
        One operation per node.
    """
    finder = _Finder(graph, hints or {}, linear)
    for number in range(len(graph.nodes)):
        finder.visit(number)
    return finder.found


class _Finder:
    def __init__(self, graph: Graph, hints: Mapping[Edge, Nature], linear: Collection[int]) -> None:
        self.graph = graph
        self.hints = hints
        self.found: Roles = []
        self.kinds = [
            kind_of(name, graph.detail(number)) for number, name in enumerate(graph.names)
        ]
        for number in linear:
            known = self.kinds[number] not in ("unknown", "projection")
            self.kinds[number] = "linear" if known else "projection"
        self.is_score = self._is_score()
        # Per node, the inputs that it depends on, one bit each.
        self.inputs: list[int] = []
        # Per node, the tensors that it is an element-wise function of, and whether 0 maps to 0.
        self.functions: list[dict[Edge, bool]] = []
        # Per node, whether it comes from the product of a query and a key.
        self.scored: list[bool] = []
        # Per node, whether it was selected by a router, or is a function of such a value.
        self.chosen: list[bool] = []

    # Backward ---------------------------------------------------------------------------------

    def _is_score(self) -> list[bool]:
        """Whether a node is only used for scores of a softmax, or of another gate."""
        graph, kinds = self.graph, self.kinds
        score = [True] * len(kinds)
        used = [False] * len(kinds)
        for number in range(len(kinds) - 1, -1, -1):
            passes = score[number] and used[number] and self._passes_scores(number)
            for place, edge in enumerate(graph.operands[number]):
                if edge is not None:
                    mask = kinds[number] == "kernel" and place > 2
                    used[edge.node] = True
                    score[edge.node] &= (
                        passes or mask or kinds[number] in ("softmax", "gate function")
                    )
        return [each and taken for each, taken in zip(score, used, strict=True)]

    def _passes_scores(self, number: int) -> bool:
        """Whether the operands of a node that yields scores are scores."""
        kind, edges = self.kinds[number], self.graph.operands[number]
        if kind in ("linear", "activation"):
            return True
        summand = summand_of(self.graph.names[number])
        factors = tuple(edge for place, edge in enumerate(edges) if place != summand)
        return kind in ("product", "quotient", "projection") and _dependent(factors) < 2

    # Forward ----------------------------------------------------------------------------------

    def visit(self, number: int) -> None:
        """Assign the role of a node whose operands have theirs."""
        kind = self.kinds[number]
        edges = self.graph.operands[number]
        self.functions.append(self._functions(number, kind))
        inputs = 0
        for edge in edges:
            inputs |= 0 if edge is None else self.inputs[edge.node]
        self.inputs.append(inputs if any(edges) else 1 << number)
        self.found.append(self._operation(number, kind))
        self.scored.append(self._is_scored(number, kind))
        self.chosen.append(self._is_chosen(number, kind))

    def nature(self, edge: Edge) -> Nature:
        """Nature of an operand."""
        hint = self.hints.get(edge)
        if hint is None and is_mean(self.graph.names[edge.node], edge.output):
            (of,) = self.graph.operands[edge.node]
            return "signal" if of is None else self.nature(of)
        return self.found[edge.node].nature if hint is None else hint

    def _operation(self, number: int, kind: Kind) -> Operation:
        edges = self.graph.operands[number]
        places = [place for place, edge in enumerate(edges) if edge is not None]
        if not places:
            return Operation("input", "linear", "signal")
        natures = [self.nature(edge) for edge in edges if edge is not None]
        if places[:2] == [0, 1] and has_held(self.graph.names[number], kind):
            nature = natures[0] if kind == "linear" else "activated"
            return Operation(kind, "constant factor", nature, (1,), (0, *places[2:]))
        if kind == "linear":
            return self._sum(number, places, natures)
        if kind in ("projection", "solution", "product"):
            return self._of_factors(number, kind, places, natures)
        if kind == "quotient":
            return self._quotient(places, natures)
        return self._of_one(self.graph.names[number], kind, natures)

    def _is_scored(self, number: int, kind: Kind) -> bool:
        if self.found[number].role == "scores":
            return True
        if kind not in ("linear", "activation", "product", "quotient", "projection", "softmax"):
            return False
        weighs = self.found[number].nature == "weights"
        return any(  # a sum weighted by attention is a value again
            edge is not None
            and self.scored[edge.node]
            and (weighs or self.nature(edge) != "weights")
            for edge in self.graph.operands[number]
        )

    def _is_chosen(self, number: int, kind: Kind) -> bool:
        if self.graph.names[number] in CHOICES:
            return True
        if kind not in ("linear", "activation", "gate function", "softmax", "product", "quotient"):
            return False
        taken = [edge for edge in self.graph.operands[number] if edge is not None]
        values = self.found[number].nature in SIGNALS
        return (all if values else any)(self.chosen[edge.node] for edge in taken) and bool(taken)

    def _sum(self, number: int, places: list[int], natures: list[Nature]) -> Operation:
        nature = self._of_sum(number, natures)
        if nature not in SIGNALS:
            return Operation("linear", "linear", nature)
        constants, weights = (_where(each, natures, places) for each in ("constant", "weights"))
        return Operation("linear", "linear", nature, tuple(constants), weights=tuple(weights))

    def _of_factors(
        self, number: int, kind: Kind, places: list[int], natures: list[Nature]
    ) -> Operation:
        """A product, if two or more of its factors depend on the input; else a linear operation."""
        summand = summand_of(self.graph.names[number])
        factors = [place for place in places if place != summand]
        if len(factors) > 1:
            return self._product(number, factors, element_wise=kind == "product")
        if kind == "product":
            return Operation("linear", "linear", self._mixed(natures))
        if kind == "solution" and factors == [0]:
            return Operation(kind, "unknown", "gate")
        last = natures[places.index(factors[-1]) if factors else -1]
        nature = last if last in ("weights", "constant") else "signal"
        return Operation(kind, "linear", nature)

    def _of_one(self, name: str, kind: Kind, natures: list[Nature]) -> Operation:
        """An operation on one tensor, or one with a rule for the whole operator."""
        first = natures[0]
        kept = is_clamp(name) or first in ("weights", "gate", "scale", "constant")
        by_kind: dict[Kind, tuple[Role, Nature]] = {
            "activation": ("activation", first if kept else "activated"),
            "gate function": ("activation", _gate(natures)),
            "scale": ("activation" if is_length(name) else "unknown", "scale"),
            "norm": ("norm", "constant" if first == "constant" else "signal"),
            "kernel": ("kernel", "signal"),
            "softmax": ("softmax", "weights"),
            "rule": ("rule", self._mixed(natures)),
        }
        role, nature = by_kind.get(kind, ("unknown", self._mixed(natures)))
        return Operation(kind, role, nature)

    @staticmethod
    def _mixed(natures: list[Nature]) -> Nature:
        if len(set(natures)) == 1:
            return natures[0]
        if "signal" in natures:
            return "signal"
        return next(nature for nature in PRIORITY if nature in natures)

    def _of_sum(self, number: int, natures: list[Nature]) -> Nature:
        nature = self._mixed(natures)
        return "gate" if nature == "activated" and self._adds_constant(number) else nature

    def _adds_constant(self, number: int) -> bool:
        name, edges = self.graph.names[number], self.graph.operands[number]
        return name == "Rsub" or (name in ("Add", "Sub") and _dependent(edges) < max(2, len(edges)))

    # Products ---------------------------------------------------------------------------------

    def _product(self, number: int, factors: list[int], *, element_wise: bool) -> Operation:
        if len(factors) > 2:
            return Operation("product", "undecided", "signal", signal=tuple(factors))
        edges = [
            edge for place in factors if (edge := self.graph.operands[number][place]) is not None
        ]
        natures = (self.nature(edges[0]), self.nature(edges[1]))
        if "constant" in natures and not SIGNALS.intersection(natures):
            return Operation("product", "constant factor", "constant", tuple(factors))
        for nature in ("constant", "scale"):
            if nature in natures:
                held = _where(nature, natures, factors)
                other = natures[1 - natures.index(nature)]
                return _held(held, factors, other if element_wise else _mixing(other))
        if self.kinds[number] == "solution":
            return _held(factors[:1], factors, _mixing(natures[1]))
        if element_wise:
            found = self._composite(number, factors, natures)
            if found is not None:
                return found
        return self._by_nature(number, factors, natures, element_wise=element_wise)

    def _composite(
        self, number: int, factors: list[int], natures: tuple[Nature, Nature]
    ) -> Operation | None:
        """A product of two functions of one tensor, which together are one function of it."""
        edges = self.graph.operands[number]
        ways = [self._ways(edge) for place in factors if (edge := edges[place]) is not None]
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
        return Operation("product", "composite", "activated", (constant,), (signal,))

    def _by_nature(
        self,
        number: int,
        factors: list[int],
        natures: tuple[Nature, Nature],
        *,
        element_wise: bool,
    ) -> Operation:
        for nature in ("weights", "gate"):
            if nature in natures:
                return self._with_constant(
                    number, nature, factors, natures, element_wise=element_wise
                )
        if element_wise and sorted(natures) == ["activated", "signal"]:
            place = natures.index("activated")
            activated, other = (factors[place],), (factors[1 - place],)
            return Operation("product", "gated product", "signal", activated, other)
        role: Role = "undecided"
        if self.is_score[number]:
            role = "scores"
        elif self._are_of_two_inputs(number, factors):
            role = "similarity"
        return Operation("product", role, "signal", signal=tuple(factors))

    def _with_constant(
        self,
        number: int,
        nature: Nature,
        factors: list[int],
        natures: tuple[Nature, Nature],
        *,
        element_wise: bool,
    ) -> Operation:
        """A product with the weights of a softmax, or with a gate."""
        place = natures.index(nature)
        other = natures[1 - place]
        constant, signal = (factors[place],), (factors[1 - place],)
        if natures == ("gate", "gate"):
            return Operation("product", "composite", "gate", signal=tuple(factors))
        edge = self.graph.operands[number][factors[place]]
        routes = edge is not None and self.chosen[edge.node] and other in SIGNALS
        role: Role = "router" if routes else "constant factor"
        attends = nature == "weights" and edge is not None and self.scored[edge.node]
        if element_wise and not (attends and other in SIGNALS):
            return Operation("product", role, other, constant, signal)
        if not attends:  # a gate, a router, weights of a pooling
            return Operation("product", role, "signal", constant, signal)
        result: Nature = "weights" if other == "weights" else "signal"
        return Operation("product", "attention", result, constant, signal)

    def _are_of_two_inputs(self, number: int, factors: list[int]) -> bool:
        edges = self.graph.operands[number]
        first, second = (self.inputs[edge.node] for place in factors if (edge := edges[place]))
        return bool(first & ~second) and bool(second & ~first)

    @staticmethod
    def _quotient(places: list[int], natures: list[Nature]) -> Operation:
        if places == [0]:
            return Operation("linear", "linear", natures[0])
        if places == [1]:
            return Operation("quotient", "unknown", _gate(natures))
        return Operation("quotient", "constant factor", natures[0], (1,), (0,))

    # Functions of one tensor --------------------------------------------------------------------

    def _ways(self, edge: Edge) -> dict[Edge, bool]:
        return {edge: True} | self.functions[edge.node]

    def _functions(self, number: int, kind: Kind) -> dict[Edge, bool]:
        name = self.graph.names[number]
        if name not in ELEMENTWISE:
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


def _where(nature: Nature, natures: Sequence[Nature], places: Sequence[int]) -> list[int]:
    return [place for place, each in zip(places, natures, strict=True) if each == nature]


def _mixing(nature: Nature) -> Nature:
    """Nature of a sum of products with a factor of this nature."""
    return "signal" if nature == "activated" else nature


def _gate(natures: list[Nature]) -> Nature:
    return natures[0] if natures[0] in ("scale", "constant") else "gate"


def _held(constant: list[int], factors: list[int], nature: Nature) -> Operation:
    signal = tuple(place for place in factors if place not in constant)
    return Operation("product", "constant factor", nature, tuple(constant), signal)
