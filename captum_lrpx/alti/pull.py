"""Gradients pulled back through chosen nodes of a graph, under the rules of LRP.

PyTorch's engine would walk through every branch on the way; here only the nodes of the streams, the
head and the linear end of each attention are called, one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx.fast.sparse import is_worth_a_look, product_of_sparse
from captum_lrpx.parallel import is_spread
from captum_lrpx.rules import node_rules
from captum_lrpx.trace.graph import Edge
from captum_lrpx.trace.operations import VIEWS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from torch import Tensor
    from torch.autograd.graph import Node

    from captum_lrpx.graph_rules import Plan
    from captum_lrpx.trace.graph import Graph

Gradients = tuple["Tensor | None", ...]


class Pull:
    """Calls the nodes of a graph.

    Args:
        graph: A graph whose forward pass is over.
        plan: The rules of LRP on it.
        inputs: The inputs of functions that do not save them.
        need: Called with each node before its saved tensors are read.
    """

    def __init__(
        self, graph: Graph, plan: Plan, inputs: Mapping[Node, Tensor], need: Callable[[int], None]
    ) -> None:
        self.graph, self.need = graph, need
        self.actions = {action.number: action for action in plan.actions}
        self.inputs = inputs
        self._zeros = node_rules.Zeros()

    @torch.no_grad()
    def back(
        self,
        order: Sequence[int],
        gradients: dict[Edge, Tensor],
        stops: Collection[Edge],
        seen: Callable[[int, Tensor], None] | None = None,
        kept: Mapping[Edge, Callable[[Tensor], None]] | None = None,
    ) -> dict[Edge, Tensor]:
        """Pull gradients back to some edges.

        Args:
            order: The nodes in between, operands last.
            gradients: Gradients to start from.
            stops: The edges.
            seen: Called with each node and the gradient of its first result.
            kept: For some of the edges, a consumer that receives each part of their gradient
                instead.

        Returns:
            The gradient at each edge that is reached.
        """
        waiting = dict(gradients)
        found: dict[Edge, Tensor] = {}
        for number in order:
            taken = tuple(
                waiting.pop(Edge(number, output), None)
                for output in range(self.graph.results(number))
            )
            if all(each is None for each in taken):
                continue
            self.need(number)
            if seen is not None and taken[0] is not None:
                seen(number, taken[0])
            given = self.through(number, taken)
            for edge, gradient in zip(self.graph.operands[number], given, strict=True):
                if edge is None or gradient is None:
                    continue
                own = self._as_operand(edge, gradient)
                target = found if edge in stops else waiting
                target[edge] = target[edge] + own if edge in target else own
                if kept is not None and edge in kept:
                    kept[edge](target.pop(edge))
        return found

    def through(self, number: int, taken: Gradients) -> Gradients:
        """Gradients of a node's operands."""
        node: Any = self.graph.nodes[number]
        name, action = self.graph.names[number], self.actions.get(number)
        rule = None if action is None else action.rule
        edges = self.graph.operands[number]
        first: Any = taken[0]  # there is one, if a node has one result
        given: Any
        if rule == "norm":
            given = node_rules.frozen_norm(node, name, self._zeros)(taken, taken)
        elif rule == "secant":
            given = node_rules.secant(node, name, self.inputs.get(node))((first,), taken)
        elif rule == "gated":
            given = node_rules.gated(node)((first,), taken)
        elif name in ("Mul", "Div") and (alone := self._of_one_factor(number, first)) is not None:
            given = alone
        elif (
            name in ("Mm", "Addmm") and edges[-1] is None and not is_spread(node._saved_mat2)  # noqa: SLF001
        ):
            given = self._of_linear(number, first)
        elif name == "ToCopy":
            given = taken
        else:
            own = [
                each if each is None or name in VIEWS else each.to(metadata.dtype)
                for each, metadata in zip(taken, node._input_metadata, strict=True)  # noqa: SLF001
            ]
            given = node(*own) if callable(node) else node.apply(*own)
            given = given if isinstance(given, tuple) else (given,)
            if len(given) > len(edges):  # a torch.autograd.Function: one for each argument
                tensors = iter([each for each in given if each is not None])
                given = [None if edge is None else next(tensors, None) for edge in edges]
        given = (*given, *(None for _ in range(len(edges) - len(given))))
        if action is not None and rule == "factors":
            given = node_rules.scaled(action.factors)(given, taken) or given
        return tuple(given)

    def _of_linear(self, number: int, gradient: Tensor) -> Gradients:
        """Gradients of a linear layer with constant weights: of its input, and of its summand."""
        node: Any = self.graph.nodes[number]
        weight = node._saved_mat2.t()  # noqa: SLF001
        if is_worth_a_look(gradient):
            product = product_of_sparse(gradient, weight)
        else:
            product = gradient.to(weight.dtype) @ weight
        if self.graph.names[number] == "Mm":
            return product, None
        product = product if node._saved_alpha == 1 else product * node._saved_alpha  # noqa: SLF001
        added = self.graph.operands[number][0]
        return (None if added is None else gradient), product, None

    def _of_one_factor(self, number: int, gradient: Tensor) -> Gradients | None:
        """Gradients of a product or quotient with one operand that is not held constant."""
        action, edges = self.actions.get(number), self.graph.operands[number]
        live = [
            place
            for place, edge in enumerate(edges)
            if edge is not None
            and (action is None or not action.factors or action.factors[place] is not None)
        ]
        if len(live) != 1 or ((place := live[0]) and self.graph.names[number] == "Div"):
            return None
        node: Any = self.graph.nodes[number]
        other = node._saved_self if place else node._saved_other  # noqa: SLF001
        product = gradient / other if self.graph.names[number] == "Div" else gradient * other
        return tuple(product if each == place else None for each in range(len(edges)))

    def _as_operand(self, edge: Edge, gradient: Tensor) -> Tensor:
        """A gradient in the shape and on the device of an operand, in the wider of both dtypes."""
        node: Any = self.graph.nodes[edge.node]
        metadata = node._input_metadata[edge.output]  # noqa: SLF001
        shape = tuple(metadata.shape)
        if gradient.shape != shape:
            gradient = gradient.sum_to_size(shape)
        if (gradient.dtype, gradient.device) == (metadata.dtype, metadata.device):
            return gradient
        return gradient.to(metadata.device, torch.promote_types(metadata.dtype, gradient.dtype))


def tolerance(graph: Graph, numbers: Iterable[int]) -> float:
    """Relative tolerance for numbers that are equal in theory.

    Args:
        graph: The graph.
        numbers: The nodes that compute them: under autocast some are in half precision.
    """
    nodes: list[Any] = [graph.nodes[number] for number in numbers]
    dtypes = {each.dtype for node in nodes for each in node._input_metadata}  # noqa: SLF001
    return max([1e-3, *(4 * torch.finfo(each).eps for each in dtypes if each.is_floating_point)])
