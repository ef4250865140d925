"""Names the line to which a function's leak belongs."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from captum_lrpx.trace.natures import SIGNALS
from captum_lrpx.trace.operations import ADDITIONS, PROJECTIONS, summand_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from captum_lrpx.conservation.book import Kind
    from captum_lrpx.trace.origins import Added, Origin
    from captum_lrpx.traced import TracedPass

Place = tuple["Kind", str]
"""Kind and path of a line."""

_WITH_BETA: Final = frozenset(
    {
        "BatchNormImplIndex",
        "CudnnBatchNorm",
        "MiopenBatchNorm",
        "NativeBatchNorm",
        "NativeGroupNorm",
        "NativeLayerNorm",
    }
)
_FILLING: Final = frozenset(
    {
        "Cat",
        "ConstantPadNd",
        "Copy",
        "CopySlices",
        "Fill",
        "IndexAdd",
        "IndexCopy",
        "IndexFill",
        "IndexPut",
        "IndexPutImpl",
        "MaskedFill",
        "MaskedScatter",
        "Maximum",
        "Minimum",
        "Scatter",
        "ScatterAdd",
        "SelectScatter",
        "SliceScatter",
        "Stack",
        "Threshold",
        "Where",
    }
)
"""Operators that may write a constant."""

_ORDER: Final[tuple[Kind, ...]] = ("output", "softmax", "rule", "absorbed", "bias")
"""If several operators of one function leak, the first kind names the line."""


class Places:
    """Lines of a graph with rules.

    Args:
        passed: A watched pass, with its rules on the graph.
        leading: Indices of the nodes that depend on the sources of relevance.
    """

    def __init__(self, passed: TracedPass, leading: Collection[int]) -> None:
        graph, structure = passed.graph, passed.structure
        assert graph is not None and structure is not None  # noqa: S101, PT018
        self._graph = graph
        self._structure = structure
        self._plan = structure.plans[passed.recipe]
        self._recipe = passed.recipe
        self._leading = leading
        self._problems = self._plan.problems.keys()
        self._paths = {module: path for path, module in passed.model.named_modules()}
        self._scores = self._find_scores()

    def _find_scores(self) -> set[int]:
        """Nodes between queries and keys and a softmax that weights something."""
        graph, roles = self._graph, self._structure.roles
        weighing: set[int] = set()
        found: set[int] = set()
        for number in range(len(graph.nodes) - 1, -1, -1):
            operands = {edge.node for edge in graph.operands[number] if edge is not None}
            role, projects = roles[number].role, graph.names[number] in PROJECTIONS
            if projects or (number in weighing and role == "linear"):
                weighing |= operands
            if (number in weighing and role == "softmax") or (
                number in found and role in ("linear", "activation") and not projects
            ):
                found |= operands
        return found

    # Constants --------------------------------------------------------------------------------

    def of_constant(self, number: int, constant: Added) -> Place | None:
        """Line of a constant that a function adds.

        Args:
            number: Index of the node of its result; -1 if nothing explained depends on it.
            constant: The constant.

        Returns:
            None if it belongs to the explained function, to a gate or a scale, or to nothing, or
            may hide values that depend on the inputs.
        """
        explained = number in self._structure.explained
        signal = number in self._plan.alive and self._structure.roles[number].nature in SIGNALS
        if number in self._problems or not (constant.origins or (signal and not explained)):
            return None
        return self._named(number, constant.origins)

    def of_mask(self, number: int, *, of_values: bool) -> tuple[Place, float] | None:
        """Line of the mask of an attention, and the factor of its gradient.

        Args:
            number: Index of the node of the attention.
            of_values: Whether the values depend on the inputs as well as the weights.

        Returns:
            None if the rule holds the weights constant.
        """
        share = self._rule("attention", number).shares[0]
        if share is None:
            return None
        return ("score_bias", self._module(number)), share if of_values else 1.0

    def _named(self, number: int, origins: Iterable[Origin]) -> Place:
        if number in self._scores and not self._projects(number):
            return "score_bias", self._module(number)
        known = list(origins)
        paths = [f"{self._paths.get(each.module, '')}.{each.name}".strip(".") for each in known]
        kinds = {each.kind for each in known}
        kind: Kind = kinds.pop() if len(kinds) == 1 else "token_types" if kinds else "bias"
        return kind, _common(paths) or self._module(number)

    def _projects(self, number: int) -> bool:
        """Whether the function of a node is a linear layer, whatever its last operator."""
        return self._structure.places.get(number, ("", "", ""))[2].endswith(".linear")

    def _module(self, number: int) -> str:
        path, _, function = self._structure.places.get(number, ("", "", ""))
        return path or function

    # Other leaks --------------------------------------------------------------------------------

    def of_rest(
        self, members: list[int], constants: Iterable[Added], *, told: bool
    ) -> Place | None:
        """Line of a function's leak beyond constants with known values.

        Args:
            members: Indices of its nodes.
            constants: Known constants in it.
            told: Whether all their values are known, so that it can add nothing else.

        Returns:
            None if it cannot leak.
        """
        kinds = {self._kind(number, told=told) for number in members}
        kind = next((each for each in _ORDER if each in kinds), None)
        if kind is None:
            return None
        if kind == "output":
            return kind, ""
        if kind != "bias":
            return kind, self._module(members[-1])
        return self._named(members[-1], [each for one in constants for each in one.origins])

    def _kind(self, number: int, *, told: bool) -> Kind | None:
        if number in self._structure.explained:
            return "output"
        if number in self._problems:
            return None
        return self._by_rule(number) or self._by_constant(number, told=told)

    def _by_rule(self, number: int) -> Kind | None:
        """Kind of a node's leak, if its rule does not conserve."""
        operation = self._structure.roles[number]
        role = operation.role
        attention = self._rule("attention", number)
        gradient = attention.own_gradient
        if role == "rule" or self._rounds(number):
            return "absorbed"
        if role == "softmax" or (role == "kernel" and not attention.conserves):
            return "rule" if gradient else "softmax"
        if number in self._plan.in_norms or role == "norm":
            return None if self._rule("norm", number).conserves else "rule"
        rules = {"activation": "activation", "composite": "activation", "gated product": "gate"}
        keeps = role in rules and not self._rule(rules[role], number).conserves
        keeps |= role == "router" and self._rule("router", number).own_gradient
        keeps |= role in ("attention", "scores") and gradient and not attention.conserves
        ruled = role == "router" or (role == "linear" and operation.nature in SIGNALS)
        keeps |= self._recipe.is_gradient_at(self._path(number)) and not ruled
        # A function that is not 0 at 0 has a constant part there that no slope carries.
        return "rule" if keeps or operation.kind == "gate function" else None

    def _rounds(self, number: int) -> bool:
        """Whether a layer multiplies rounded numbers, unknown to its gradient."""
        name, structure = self._graph.names[number], self._structure
        unheard_of = structure.roles[number].kind == "projection" and name not in PROJECTIONS
        rounds = unheard_of or number in structure.detached
        return name == "MatMul8bitLt" or (number in structure.linear and rounds)

    def _path(self, number: int) -> str:
        return self._structure.places.get(number, ("", "", ""))[0]

    def _rule(self, role: str, number: int) -> Any:
        return self._recipe.rule_for(role, self._path(number))

    def _by_constant(self, number: int, *, told: bool) -> Kind | None:
        """Kind of a node's leak, if it may add a constant of unknown value."""
        graph, roles = self._graph, self._structure.roles
        name = graph.names[number]
        edges = [
            edge if edge is not None and edge.node in self._leading else None
            for edge in graph.operands[number]
        ]
        missing = None in edges or len(edges) < 2
        summand = summand_of(name)
        adds = (
            name in _WITH_BETA
            or name == "Rsub"
            or summand == 2  # a bias
            or (summand == 0 and edges[0] is None)
            or (missing and (name in ADDITIONS or name in _FILLING))
        )
        if adds:
            return None if told else "bias"
        held = self._rule("attention", number).constant_weights
        return "absorbed" if roles[number].weights and held else None


def _common(paths: list[str]) -> str:
    """Common prefix of dotted paths."""
    parts = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(each[0] for each in takewhile(lambda each: len(set(each)) == 1, parts))
