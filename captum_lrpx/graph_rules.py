"""What a recipe does to a graph: one action per node that needs one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from captum_lrpx.rules import (
    ActivationGradient,
    AttentionGradient,
    ConstantWeights,
    NormGradient,
    ProductGradient,
    SignalTakeAll,
    Uniform,
    nodes,
)
from captum_lrpx.rules.functional import CONSTANT_WEIGHTS, UNIFORM_SHARE
from captum_lrpx.trace.operations import has_summand

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor
    from torch.autograd.graph import Node

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.trace.roles import Operation, Roles

__all__ = ["Plan", "attach", "plan_of"]


class Action(NamedTuple):
    """What is done at a node.

    Attributes:
        number: Index of the node.
        rule: ``"factors"``, ``"secant"``, ``"norm"``, ``"gated"`` or ``"contiguous"``.
        factors: For ``"factors"``, one per operand; None holds it constant.
    """

    number: int
    rule: Literal["factors", "secant", "norm", "gated", "contiguous"]
    factors: tuple[float | None, ...] = ()


Why = Literal["undecided", "unknown", "hidden", "in place", "unwatched"]


class Problem(NamedTuple):
    """An operation without a rule."""

    number: int
    why: Why


@dataclass
class Plan:
    """The actions of a recipe on graphs of one structure.

    Attributes:
        actions: What is done where.
        problems: What has no rule.
        alive: Indices of the nodes that relevance goes through.
    """

    actions: list[Action] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    alive: set[int] = field(default_factory=set)


_CUT: Final = None


def plan_of(
    graph: Graph,
    roles: Roles,
    recipe: Recipe,
    explained: Collection[int] = (),
    inputs: Collection[Node] | None = None,
    written: Collection[int] = (),
) -> Plan:
    """Find out what to do at each node.

    Args:
        graph: The graph.
        roles: Its operations.
        recipe: The rules.
        explained: Nodes that belong to the explained function: their own gradient is taken.
        inputs: Nodes whose input has been kept, because they do not; None for a pass that was not
            watched.
        written: Nodes in which a function works on a part of a tensor, in place, and is not known
            to be linear.
    """
    plan = Plan()
    alive = [False] * len(graph.nodes)
    for root in graph.roots:
        alive[root] = True
    for number in range(len(graph.nodes) - 1, -1, -1):
        if not alive[number]:
            continue
        plan.alive.add(number)
        edges = graph.operands[number]
        factors: tuple[float | None, ...] = (1.0,) * len(edges)
        if number in written:
            plan.problems.append(Problem(number, "unwatched" if inputs is None else "in place"))
        elif number not in explained:
            factors = _act(plan, graph, number, roles[number], recipe, inputs)
        for edge, factor in zip(edges, factors, strict=True):
            if edge is not None and factor is not None:
                alive[edge.node] = True
    return plan


def _act(
    plan: Plan,
    graph: Graph,
    number: int,
    operation: Operation,
    recipe: Recipe,
    inputs: Collection[Node] | None,
) -> tuple[float | None, ...]:
    """Note the action of a node.

    Returns:
        Factors of its operands.
    """
    name, edges = graph.names[number], graph.operands[number]
    plain: tuple[float | None, ...] = (1.0,) * len(edges)
    role = operation.role
    if role in _WITHOUT_RULE:
        plan.problems.append(Problem(number, _WITHOUT_RULE[role]))
    elif role == "activation":
        _act_on_activation(plan, graph, number, recipe, inputs)
    elif role == "norm":
        if not isinstance(recipe.norm, NormGradient):
            plan.actions.append(Action(number, "norm"))
    elif role in ("linear", "softmax", "rule"):
        if name == "Glu" or "BatchNorm" in name:
            plan.actions.append(Action(number, "gated" if name == "Glu" else "contiguous"))
    else:
        factors = _factors(operation, edges, recipe)
        if has_summand(name):
            factors = (1.0, *factors[1:])
        if factors != plain:
            plan.actions.append(Action(number, "factors", factors))
        return factors
    return plain


_WITHOUT_RULE: Final[dict[str, Why]] = {"undecided": "undecided", "unknown": "unknown"}
_REASONS: Final[dict[Why, str]] = {
    "undecided": "it multiplies two things that depend on the input, without a rule",
    "unknown": "it is not linear and has no rule",
    "hidden": "it hides what an activation inside of it is given",
    "in place": "it works in place on a view of another tensor, which hides what it does",
    "unwatched": "the forward pass has taken a way here that it had not taken before",
}

_REMEDIES: Final[dict[Why, str]] = {
    "undecided": (
        "Which factor is the signal and which the gate cannot be seen from the operations: a hint "
        "has to say so (captum_lrpx.hints)."
    ),
    "hidden": (
        "Use a module that calls its functions one by one instead of one that is a single function "
        "(a recurrent layer written out in steps, say)."
    ),
    "in place": "Let it return a new tensor (inplace=False, or without the underscore).",
    "unwatched": "Call it again: the next pass is watched.",
}

_WAY_OUT: Final = (
    "Or pass strict=False: its ordinary gradient is then taken, the relevances no longer decompose "
    "the value, and a warning says so."
)


def reason_and_remedy(why: Why) -> tuple[str, str]:
    """Why an operation has no rule, and what a user can do about it, in words."""
    return _REASONS[why], f"{_REMEDIES.get(why, '')} {_WAY_OUT}".strip()


def rule_in_words(operation: Operation, recipe: Recipe) -> str:
    """The rule that an operation gets from a recipe."""
    by_role: dict[str, object] = {
        "activation": recipe.activation,
        "norm": recipe.norm,
        "attention": recipe.attention,
        "scores": recipe.attention,
        "softmax": recipe.attention,
        "kernel": recipe.attention,
        "gated product": recipe.gate,
        "rule": recipe.linear,
    }
    if operation.role in by_role:
        return repr(by_role[operation.role]).removesuffix("()")
    one_constant = operation.role in ("constant factor", "linear")
    return "one factor constant" if one_constant else "shared equally"


def _act_on_activation(
    plan: Plan, graph: Graph, number: int, recipe: Recipe, inputs: Collection[Node] | None
) -> None:
    name, node = graph.names[number], graph.nodes[number]
    if isinstance(recipe.activation, ActivationGradient) or name in nodes.HOMOGENEOUS:
        return
    if not nodes.has_secant(node, name):
        plan.problems.append(Problem(number, "unknown"))
    elif name in nodes.NEED_INPUT and (inputs is None or node not in inputs):
        plan.problems.append(Problem(number, "unwatched" if inputs is None else "hidden"))
    else:
        plan.actions.append(Action(number, "secant"))


def _factors(
    operation: Operation, edges: tuple[object, ...], recipe: Recipe
) -> tuple[float | None, ...]:
    role = operation.role
    count = len(edges)
    if role == "kernel":
        return _of_kernel(edges, recipe)
    if role in ("composite", "scores"):
        rule_is_gradient = role == "scores" and isinstance(recipe.attention, AttentionGradient)
        share = 1.0 if rule_is_gradient else UNIFORM_SHARE
        return tuple(share if place in operation.signal else 1.0 for place in range(count))
    if role == "attention":
        if isinstance(recipe.attention, ConstantWeights):
            return _without(count, operation.constant)
        share = 1.0 if isinstance(recipe.attention, AttentionGradient) else UNIFORM_SHARE
        return (share,) * count
    if role == "gated product":
        return _of_gate(operation, count, recipe)
    return _without(count, operation.constant)


def _without(count: int, constant: tuple[int, ...]) -> tuple[float | None, ...]:
    return tuple(None if place in constant else 1.0 for place in range(count))


def _of_gate(operation: Operation, count: int, recipe: Recipe) -> tuple[float | None, ...]:
    rule = recipe.gate
    if isinstance(rule, Uniform):
        return (UNIFORM_SHARE,) * count
    if isinstance(rule, SignalTakeAll):
        return _without(count, operation.constant if rule.signal == "up" else operation.signal)
    assert isinstance(rule, ProductGradient)  # noqa: S101 - the last of its kind
    return (1.0,) * count


def _of_kernel(edges: tuple[object, ...], recipe: Recipe) -> tuple[float | None, ...]:
    """Queries, keys, values and perhaps a mask."""
    if isinstance(recipe.attention, ConstantWeights):
        query, key, value = (factor or None for factor in CONSTANT_WEIGHTS)
        return (query, key, value, *(None for _ in edges[3:]))
    if isinstance(recipe.attention, AttentionGradient):
        return (1.0,) * len(edges)
    scores = UNIFORM_SHARE * (UNIFORM_SHARE if None not in edges[:2] else 1.0)
    weights = None if edges[2] is None else UNIFORM_SHARE
    if weights is None:  # constant values: all to the weights
        scores *= 2
    return (scores, scores, weights, *(UNIFORM_SHARE for _ in edges[3:]))


def attach(graph: Graph, plan: Plan, inputs: Mapping[Node, Tensor], done: set[Node]) -> None:
    """Put the hooks on the nodes.

    Args:
        graph: The graph.
        plan: What to do.
        inputs: The input of each node of an activation that does not save it.
        done: Nodes that have their rule already; those of this call are added.
    """
    for number, rule, factors in plan.actions:
        node = graph.nodes[number]
        if node in done:
            continue
        done.add(node)
        if rule == "factors":
            node.register_hook(nodes.scaled(factors))
        elif rule == "secant":
            name = graph.names[number]
            z = inputs[node] if name in nodes.NEED_INPUT else None
            node.register_hook(nodes.secant(node, name, z))
        elif rule == "norm":
            node.register_hook(nodes.frozen_norm(node, graph.names[number]))
        elif rule == "gated":
            node.register_hook(nodes.gated(node))
        else:
            node.register_prehook(nodes.contiguous)
