"""Plans and attaches the rules of a recipe on a graph: one action per node that needs one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from captum_lrpx.parallel import PASSING
from captum_lrpx.rules import node_rules
from captum_lrpx.rules.declarations import UNIFORM_SHARE
from captum_lrpx.trace.operations import VIEWS, is_length, is_mean, kind_of, summand_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, KeysView, Mapping

    from torch import Tensor
    from torch.autograd.graph import Node
    from torch.utils.hooks import RemovableHandle

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.rules import AttentionRule
    from captum_lrpx.rules.declarations import Share, Shares
    from captum_lrpx.trace.graph import Edge, Graph
    from captum_lrpx.trace.natures import Operation, Role
    from captum_lrpx.trace.roles import Roles

_Factors = tuple["Share", ...]
"""Factor of each operand's gradient; None holds the operand constant."""


class _Action(NamedTuple):
    """The treatment of one node.

    Attributes:
        number: Index of the node.
        operator: Its operator.
        rule: ``"factors"``, ``"secant"``, ``"norm"``, ``"gated"`` or ``"contiguous"``.
        factors: For ``"factors"``, one per operand; None holds it constant.
    """

    number: int
    operator: str
    rule: Literal["factors", "secant", "norm", "gated", "contiguous"]
    factors: tuple[float | None, ...] = ()

    def is_idle(self, operands: Collection[Edge | None]) -> bool:
        """Whether no gradient changes, as operands held constant have none by themselves.

        An attention kernel computes their gradients nevertheless, which can be skipped.
        """
        live = [factor for factor, edge in zip(self.factors, operands, strict=False) if edge]
        return bool(live) and set(live) == {1.0} and "Attention" not in self.operator


Why = Literal[
    "undecided",
    "unknown",
    "detached",
    "overwritten",
    "hidden",
    "in place",
    "unwatched",
    "again",
]


@dataclass(frozen=True)
class Seen:
    """Knowledge about a forward pass beyond its graph.

    Attributes:
        explained: Nodes of the explained function, which keep their own gradient.
        detached: Nodes that use a number which depends on the input without a gradient.
        overwritten: Nodes whose results are overwritten behind the graph.
        written: Nodes in which a function, not known to be linear, works in place on a part of a
            tensor.
        inputs: Nodes whose input was kept because they do not save it; None if none was kept.
        paths: For each node the path of its module, for a recipe with overrides.
    """

    explained: Collection[int] = ()
    detached: Collection[int] = ()
    overwritten: Collection[int] = ()
    written: Collection[int] = ()
    inputs: Collection[Node] | None = None
    paths: Mapping[int, str] = field(default_factory=dict)


@dataclass
class Plan:
    """The actions of a recipe on graphs of one structure.

    Attributes:
        actions: The treatment of nodes.
        problems: For each node without a rule the reason.
        factors: For each node that relevance passes through, the factors of its operands; None for
            an operand that gets nothing.
        in_norms: Indices of nodes that are parts of a norm with its ordinary gradient.
        unasked: Indices of nodes of functions written in Python without any relevance.
    """

    actions: list[_Action] = field(default_factory=list)
    problems: dict[int, Why] = field(default_factory=dict)
    factors: dict[int, _Factors] = field(default_factory=dict)
    in_norms: set[int] = field(default_factory=set)
    unasked: list[int] = field(default_factory=list)

    @property
    def alive(self) -> KeysView[int]:
        """Indices of the nodes that relevance passes through."""
        return self.factors.keys()

    def needs_inputs(self) -> bool:
        """Whether some action needs an input that the node of its function does not save."""
        return any(
            action.rule == "secant" and action.operator in node_rules.NEED_INPUT
            for action in self.actions
        )

    def renumbered(self, numbers: Mapping[int, int], part: Graph) -> Plan:
        """This plan for a graph that lacks nodes without relevance.

        Args:
            numbers: New numbers of the nodes that it has.
            part: The graph.
        """
        return Plan(
            actions=[
                action._replace(number=new)
                for action in self.actions
                if not action.is_idle(part.operands[new := numbers[action.number]])
            ],
            problems={numbers[number]: why for number, why in self.problems.items()},
            factors={numbers[number]: factors for number, factors in self.factors.items()},
            in_norms={numbers[number] for number in self.in_norms if number in numbers},
            unasked=[numbers[number] for number in self.unasked if number in numbers],
        )


def plan_of(
    graph: Graph,
    roles: Roles,
    recipe: Recipe,
    seen: Seen,
) -> Plan:
    """Decide what to do at each node.

    Args:
        graph: The graph.
        roles: Its operations.
        recipe: The rules.
        seen: Further knowledge about the pass.
    """
    planner = _Planner(graph, roles, recipe, seen)
    alive = [False] * len(graph.nodes)
    for root in graph.roots:
        alive[root] = True
    for number, node in reversed(list(enumerate(graph.nodes))):
        if alive[number]:
            factors = planner.plan.factors[number] = planner.act(number)
            for edge, factor in zip(graph.operands[number], factors, strict=True):
                if edge is not None and factor is not None:
                    alive[edge.node] = True
                    planner.reached.add(edge)
        elif graph.names[number] not in PASSING and node_rules.is_of_python(node):
            planner.plan.unasked.append(number)
    return planner.plan


def _adds(graph: Graph, number: int) -> bool:
    """Whether a node takes another operand as something else than a factor.

    A matrix product of more than two dimensions ends in a view of the product.
    """
    while graph.names[number] in VIEWS and (edge := graph.operands[number][0]) is not None:
        number = edge.node
    name, detail = graph.names[number], graph.detail(number)
    factors = ("product", "quotient", "projection", "rule")
    bare = getattr(graph.nodes[number], "_saved_bias_sym_sizes_opt", None) == (0,)
    adds = summand_of(name) is not None and not bare
    return adds or kind_of(name, detail) not in factors


class _Planner:
    """Collects the actions of one recipe on one graph."""

    def __init__(self, graph: Graph, roles: Roles, recipe: Recipe, seen: Seen) -> None:
        self.graph = graph
        self.roles = roles
        self.recipe = recipe
        self.seen = seen
        self.plan = Plan()
        self.reached: set[Edge] = set()  # results that get relevance

    def plain(self, number: int) -> _Factors:
        """Factors of an operation without a rule."""
        return (1.0,) * len(self.graph.operands[number])

    def act(self, number: int) -> _Factors:
        """Record the action of a node, and return the factors of its operands."""
        if number in self.seen.explained:
            return self.plain(number)
        if self._keeps_gradient(number):
            self._corrected(number)
            return self.plain(number)
        if number in self.seen.written:
            self.plan.problems[number] = "unwatched" if self.seen.inputs is None else "in place"
            return self.plain(number)
        if number in self.seen.overwritten:
            self.plan.problems[number] = "overwritten"
        elif number in self.seen.detached and _adds(self.graph, number):
            self.plan.problems[number] = "detached"
        return self._by_role(number)

    def _keeps_gradient(self, number: int) -> bool:
        path = self.seen.paths.get(number, "")
        return self.roles[number].role != "router" and self.recipe.is_gradient_at(path)

    def _by_role(self, number: int) -> _Factors:
        role = self.roles[number].role
        if number in self.plan.in_norms:
            self._stay_in_norm(number)
        elif role == "activation":
            self._activation(number)
        elif role == "norm":
            if not self._rule("norm", number).own_gradient:
                self._replaced(number, "norm")
        elif role in ("undecided", "unknown") and not self._is_mean(number):
            self.plan.problems[number] = role
        else:
            return self._scaled(number)
        return self.plain(number)

    def _is_mean(self, number: int) -> bool:
        """Whether a node computes variance and mean, and only the mean is used."""
        return is_mean(self.graph.names[number], 1) and (number, 0) not in self.reached

    def _rule(self, role: str, number: int) -> Any:
        return self.recipe.rule_for(role, self.seen.paths.get(number, ""))

    def _stay_in_norm(self, number: int) -> None:
        """Extend a norm to the nodes its scale is computed from, as far as the squares."""
        if self.graph.names[number] not in _ENDS_OF_SCALES:
            taken = self.graph.operands[number]
            self.plan.in_norms.update(edge.node for edge in taken if edge is not None)

    def _activation(self, number: int) -> None:
        name, node, inputs = self.graph.names[number], self.graph.nodes[number], self.seen.inputs
        own = self._rule("activation", number).own_gradient
        # The gradient of a homogeneous function times its operand is its result.
        if own or name in node_rules.HOMOGENEOUS or is_length(name):
            return
        if not node_rules.has_secant(node, name):
            self.plan.problems[number] = "unknown"
        elif name in node_rules.NEED_INPUT and (inputs is None or node not in inputs):
            self.plan.problems[number] = "unwatched" if inputs is None else "hidden"
        else:
            self._replaced(number, "secant")

    def _replaced(self, number: int, rule: Literal["norm", "secant"]) -> None:
        """Record an action that computes the gradient from the node's saved tensors."""
        if node_rules.is_checkpointed(self.graph.nodes[number]):
            self.plan.problems[number] = "again"
        else:
            self.plan.actions.append(_Action(number, self.graph.names[number], rule))

    # Factors ----------------------------------------------------------------------------------

    def _scaled(self, number: int) -> _Factors:
        name, plain = self.graph.names[number], self.plain(number)
        if name == "Glu":
            self.plan.actions.append(_Action(number, name, "gated"))
        self._corrected(number)
        factors = self._factors(number)
        summand = summand_of(name)
        if summand is not None:
            factors = tuple(1.0 if each == summand else one for each, one in enumerate(factors))
        if factors != plain:
            self.plan.actions.append(_Action(number, name, "factors", factors))
        return factors

    def _corrected(self, number: int) -> None:
        """Record an action if PyTorch's gradient of the node is wrong for some gradients."""
        name = self.graph.names[number]
        if "BatchNorm" in name:
            self.plan.actions.append(_Action(number, name, "contiguous"))

    def _factors(self, number: int) -> _Factors:
        operation, edges = self.roles[number], self.graph.operands[number]
        role, count = operation.role, len(edges)
        attention: AttentionRule = self._rule("attention", number)
        if role == "kernel":
            return _of_kernel(edges, attention)
        shares = self._shares(role, number, attention)
        if shares is not None:
            return _by_shares(operation, count, shares)
        scales = {
            edge.node
            for place in operation.constant
            if (edge := edges[place]) is not None and self.roles[edge.node].nature == "scale"
        }
        if scales and self._rule("norm", number).own_gradient:
            self.plan.in_norms |= {number, *scales}
            return self.plain(number)
        # A sum of softmax weights and other terms is constant where weights are.
        weights = operation.weights if attention.constant_weights else ()
        constant = (*operation.constant, *weights)
        return tuple(None if place in constant else 1.0 for place in range(count))

    def _shares(self, role: Role, number: int, attention: AttentionRule) -> Shares | None:
        """Shares of the two operands of a product with a role; None for another operation."""
        if role == "attention":
            return attention.shares
        if role == "scores":
            return attention.of_scores, attention.of_scores
        if role in ("gated product", "router"):
            shares: Shares = self._rule("gate" if role == "gated product" else role, number).shares
            return shares
        if role == "composite" and self._rule("activation", number).own_gradient:
            return 1.0, 1.0
        return (None, 1.0) if role in ("similarity", "composite") else None


_ENDS_OF_SCALES: Final = frozenset(
    {"Pow", "Mul", "Square", "LinalgVectorNorm", "Norm", "Std", "StdMean", "Var", "VarMean"}
)


def _by_shares(operation: Operation, count: int, shares: Shares) -> _Factors:
    """Factors of a product's operands; equal shares where none is to be constant."""
    constant, signal = shares
    if constant is None and not operation.constant:
        constant = signal = UNIFORM_SHARE
    share = dict.fromkeys(operation.constant, constant) | dict.fromkeys(operation.signal, signal)
    return tuple(share.get(place, 1.0) for place in range(count))


def _of_kernel(edges: tuple[object, ...], rule: AttentionRule) -> _Factors:
    """Factors of queries, keys, values and perhaps a mask."""
    of_weights, of_values = rule.shares
    rest = len(edges) - 3
    if of_weights is None:
        return (None, None, of_values, *[None] * rest)
    if not rule.own_gradient and None in edges[:2]:
        return (None, None, 1.0, *[None] * rest)  # pooling, whose weights are held constant
    if edges[2] is None:  # a product with a constant is linear: the other factor gets everything
        of_weights = 1.0
    of_scores = of_weights * rule.of_scores
    return (of_scores, of_scores, of_values, *[of_weights] * rest)


# Attaching ----------------------------------------------------------------------------------------

_FRESH: Final = frozenset({"Mul", "Bmm", "Baddbmm", "Div"})
"""Operators whose gradients are newly allocated, as by attention kernels."""


def attach(
    graph: Graph,
    plan: Plan,
    inputs: Mapping[Node, Tensor],
    done: set[Node],
    zeros: node_rules.Zeros,
    frozen: Collection[int] = (),
) -> Iterator[RemovableHandle | node_rules.Unasked]:
    """Register the hooks on the nodes, and yield a handle for each.

    A hook refers to its node, so the graph is only freed once the hook is removed.

    Args:
        graph: The graph.
        plan: What to do.
        inputs: The input of each node of an activation that does not save it.
        done: Nodes that already have their rule; this call adds its nodes.
        zeros: Zeros of the pass.
        frozen: Norms whose own gradient already holds their scale constant.
    """
    nodes = graph.nodes
    yield from (node_rules.Unasked(nodes[each]) for each in plan.unasked)
    last = -1  # several actions of a node follow one another
    for number, name, rule, factors in plan.actions:
        node = nodes[number]
        if node in done and number != last:
            continue
        done.add(node)
        last = number
        if rule == "factors":
            yield node.register_hook(
                node_rules.scaled(factors, fresh=name in _FRESH or "Attention" in name)
            )
        elif rule == "secant":
            z = inputs[node] if name in node_rules.NEED_INPUT else None
            yield node.register_hook(node_rules.secant(node, name, z))
        elif rule == "norm":
            if number not in frozen:
                yield node.register_hook(node_rules.frozen_norm(node, name, zeros))
        elif rule == "gated":
            yield node.register_hook(node_rules.gated(node))
        else:
            yield node.register_prehook(node_rules.contiguous)
