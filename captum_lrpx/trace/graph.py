"""The autograd graph of some tensors as a list: which node takes which nodes' results.

With parameters frozen, PyTorch's own graph *is* the list of operations that depend on the inputs:
a tensor is in it exactly if it depends on one of them, and an operand that does not is no edge.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torch.autograd.graph import get_gradient_edge

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from torch import Tensor
    from torch.autograd.graph import Node

__all__ = ["Edge", "Graph", "name_of", "node_of"]


class Edge(NamedTuple):
    """An operand of an operation.

    Attributes:
        node: Index of the node that made it.
        output: Which of that node's results it is.
    """

    node: int
    output: int


_SUFFIX: Final = re.compile(r"Backwards?\d*$")
_names: dict[str, str] = {}
"""Names of nodes as PyTorch spells them -> names of operators."""

_DETAILS: Final = {
    "Pow": "_saved_exponent",
    "NativeBatchNorm": "_saved_training",
    "NativeDropout": "_saved_train",
}
"""Operators that are of different kinds, by an argument that their nodes keep."""


class Graph:
    """The nodes between some tensors and the leaves that they depend on.

    Args:
        tensors: The tensors.

    Attributes:
        nodes: All nodes, operands first.
        names: The operator of each (``"Mul"``), ``"AccumulateGrad"`` for leaves.
        operands: For each node an edge per operand, None for one without a gradient.
        roots: Indices of the nodes of the tensors.
        index: Node -> its index.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.nodes: list[Node] = []
        self.names: list[str] = []
        self.operands: list[tuple[Edge | None, ...]] = []
        self.index: dict[Node, int] = {}
        self.roots: list[int] = []
        for tensor in tensors:
            node = node_of(tensor)
            if node is not None:
                self._add(node)
                self.roots.append(self.index[node])

    def _add(self, root: Node) -> None:
        index = self.index
        stack: list[tuple[Node, Any]] = [(root, None)]
        entered = set()
        while stack:
            node, taken = stack.pop()
            if node in index:
                continue
            if taken is None:
                if node in entered:
                    continue
                entered.add(node)
                taken = node.next_functions
                stack.append((node, taken))
                stack += [(each, None) for each, _ in taken if each is not None and each not in index]
                continue
            index[node] = len(self.nodes)
            self.nodes.append(node)
            self.names.append(name_of(node))
            self.operands.append(
                tuple(
                    None if each is None else Edge(index[each], output) for each, output in taken
                )
            )

    def detail(self, number: int) -> Any:
        """The argument that decides what kind of operation a node is; None if there is none."""
        attribute = _DETAILS.get(self.names[number])
        if attribute is None:
            return None
        value = getattr(self.nodes[number], attribute, None)
        return value if isinstance(value, (bool, int, float)) else None

    def results(self, number: int) -> int:
        """How many results a node has."""
        return len(getattr(self.nodes[number], "_input_metadata", (None,)))

    def key(self) -> Hashable:
        """Equal for graphs of the same operations in the same order."""
        details = tuple(
            self.detail(number) for number, name in enumerate(self.names) if name in _DETAILS
        )
        return tuple(self.names), tuple(self.operands), tuple(self.roots), details

    def consumers(self) -> list[list[tuple[int, int]]]:
        """For each node the nodes that take its results, with the place among their operands."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        for number, edges in enumerate(self.operands):
            for place, edge in enumerate(edges):
                if edge is not None:
                    found[edge.node].append((number, place))
        return found


def name_of(node: Node) -> str:
    """The operator that a node belongs to, without prefix and number."""
    raw = node.name()
    name = _names.get(raw)
    if name is None:
        name = _names[raw] = _SUFFIX.sub("", raw.rpartition("::")[2])
    return name


def node_of(tensor: Tensor) -> Node | None:
    """The node that a tensor's gradient arrives at; None without a graph."""
    if not tensor.requires_grad or tensor.is_inference():
        return None
    return tensor.grad_fn if tensor.grad_fn is not None else get_gradient_edge(tensor).node
