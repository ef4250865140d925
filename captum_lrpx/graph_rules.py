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
from captum_lrpx.trace.operations import has_summand, is_length, kind_of

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
        rule: ``"factors"``, ``"secant"``, ``"norm"`` or ``"contiguous"``.
        factors: For ``"factors"``, one per operand; None holds it constant.
    """

    number: int
    rule: Literal["factors", "secant", "norm", "contiguous"]
    factors: tuple[float | None, ...] = ()


class Problem(NamedTuple):
    """An operation without a rule."""

    number: int
    reason: str


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


_HIDDEN: Final = "it adds what depends on the input through something without a gradient"


def plan_of(
    graph: Graph,
    roles: Roles,
    recipe: Recipe,
    explained: Collection[int] = (),
    detached: Collection[int] = (),
) -> Plan:
    """Find out what to do at each node.

    Args:
        graph: The graph.
        roles: Its operations.
        recipe: The rules.
        explained: Nodes that belong to the explained function: their own gradient is taken.
        detached: Nodes that use a number which depends on the input without a gradient.
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
        if number not in explained:
            factors = _act(plan, graph, number, roles[number], recipe)
            if number in detached and _adds(graph, number):
                plan.problems.append(Problem(number, _HIDDEN))
        for edge, factor in zip(edges, factors, strict=True):
            if edge is not None and factor is not None:
                alive[edge.node] = True
    return plan


def _adds(graph: Graph, number: int) -> bool:
    """Whether a node takes another operand as something else than a factor."""
    name, detail = graph.names[number], graph.detail(number)
    return has_summand(name) or kind_of(name, detail) not in ("product", "quotient", "projection")


def is_homogeneous(name: str) -> bool:
    """Whether the own gradient of an operator times its operand is its result."""
    return name in nodes.HOMOGENEOUS or is_length(name)


def _act(
    plan: Plan, graph: Graph, number: int, operation: Operation, recipe: Recipe
) -> tuple[float | None, ...]:
    """Note the action of a node.

    Returns:
        Factors of its operands.
    """
    name, edges = graph.names[number], graph.operands[number]
    plain: tuple[float | None, ...] = (1.0,) * len(edges)
    role = operation.role
    if role == "activation":
        if isinstance(recipe.activation, ActivationGradient) or is_homogeneous(name):
            return plain
        if nodes.has_secant(graph.nodes[number], name):
            plan.actions.append(Action(number, "secant"))
        else:
            plan.problems.append(Problem(number, "it is not linear and has no rule"))
        return plain
    if role == "norm":
        if not isinstance(recipe.norm, NormGradient):
            plan.actions.append(Action(number, "norm"))
        return plain
    if role in ("undecided", "unknown"):
        reason = (
            "it multiplies two things that depend on the input, without a rule"
            if role == "undecided"
            else "it is not linear and has no rule"
        )
        plan.problems.append(Problem(number, reason))
        return plain
    if role in ("linear", "softmax", "rule"):
        if "BatchNorm" in name:
            plan.actions.append(Action(number, "contiguous"))
        if not operation.constant and not operation.weights:
            return plain
    factors = _factors(operation, edges, recipe)
    if has_summand(name):
        factors = (1.0, *factors[1:])
    if factors != plain:
        plan.actions.append(Action(number, "factors", factors))
    return factors


def _factors(
    operation: Operation, edges: tuple[object, ...], recipe: Recipe
) -> tuple[float | None, ...]:
    role = operation.role
    count = len(edges)
    if role == "kernel":
        return _of_kernel(edges, recipe)
    if role in ("composite", "scores", "similarity"):
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
    if operation.weights and isinstance(recipe.attention, ConstantWeights):
        return _without(count, operation.constant + operation.weights)
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
            node.register_hook(nodes.scaled(factors))  # type: ignore[arg-type]
        elif rule == "secant":
            name = graph.names[number]
            z = inputs[node] if name in nodes.NEED_INPUT else None
            node.register_hook(nodes.secant(node, name, z))  # type: ignore[arg-type]
        elif rule == "norm":
            node.register_hook(nodes.frozen_norm(node, graph.names[number]))  # type: ignore[arg-type]
        else:
            node.register_prehook(nodes.contiguous)  # type: ignore[arg-type]
