"""The autograd graph of some tensors as a list: which node takes which nodes' results.

With parameters frozen, PyTorch's own graph *is* the list of operations that depend on the inputs:
a tensor is in it exactly if it depends on one of them, and an operand that does not is no edge.
"""

from __future__ import annotations

import re
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torch.autograd.graph import get_gradient_edge

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

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
_numbers: dict[str, int] = {}
"""Names of nodes as PyTorch spells them, numbered in the order in which they were met."""
_operators: list[str] = []
"""The operators that they belong to, in the same order."""

_OUTPUTS: Final = 1 << 20
_END: Final = -2


def _statistics(node: Any) -> str:
    """What a batch norm normalizes with: ``"running"``, its one ``"row"``, or the ``"batch"``."""
    if not node._saved_training:  # noqa: SLF001
        return "running"
    alone = node._saved_running_mean is None and len(node._saved_input) == 1  # noqa: SLF001
    return "row" if alone else "batch"


_DETAILS: Final[dict[str, Callable[[Any], Any]]] = {
    "PowBackward0": attrgetter("_saved_exponent"),
    "NativeBatchNormBackward0": _statistics,
    "CudnnBatchNormBackward0": _statistics,
    "ScatterReduceBackward0": attrgetter("_saved_reduce"),
}
"""Nodes that are of different kinds, by an argument that they keep."""


class Graph:
    """The nodes between some tensors and the leaves that they depend on.

    Args:
        tensors: The tensors.
        constants: Nodes that count as constants, as do all that depend on nothing else: those of
            parameters that need a gradient.

    Attributes:
        nodes: All nodes, operands first.
        index: Node -> its index.
        roots: Indices of the nodes of the tensors.
    """

    def __init__(self, tensors: Iterable[Tensor], constants: Iterable[Node] = ()) -> None:
        self._constants = set(constants)
        self.nodes: list[Node] = []
        self.index: dict[Node, int] = {}
        self._shape: list[int] = []  # per node: its name's number, then its operands
        roots = [node for node in map(node_of, tensors) if node is not None]
        for node in roots:
            self._read(node)
        self.roots = [self.index[node] for node in roots]

    def _read(self, root: Node) -> None:
        """Walk to the leaves. It happens at every explanation, so it does as little as it can."""
        nodes, index, shape, constants = self.nodes, self.index, self._shape, self._constants
        entered: dict[Node, Any] = {}
        stack = [root]
        while stack:
            node = stack[-1]
            edges = entered.get(node)
            if edges is None:
                edges = entered[node] = node.next_functions
                for operand, _ in edges:
                    if operand is not None and operand not in entered:
                        stack.append(operand)
                continue
            stack.pop()
            if node in index:
                continue
            if constants:
                if node in constants or (
                    edges and all(each in constants for each, _ in edges if each)
                ):
                    constants.add(node)
                    continue
                edges = tuple((None, 0) if each in constants else (each, at) for each, at in edges)
            index[node] = len(nodes)
            nodes.append(node)
            name = node.name()
            number = _numbers.get(name)
            if number is None:
                number = _numbers[name] = len(_numbers)
                _operators.append(_SUFFIX.sub("", name.rpartition("::")[2]))
            shape.append(number)
            for operand, output in edges:
                shape.append(-1 if operand is None else index[operand] * _OUTPUTS + output)
            shape.append(_END)

    @cached_property
    def names(self) -> list[str]:
        """The operator of each node (``"Mul"``), ``"AccumulateGrad"`` for leaves."""
        return [_operators[_numbers[node.name()]] for node in self.nodes]

    @cached_property
    def operands(self) -> list[tuple[Edge | None, ...]]:
        """For each node an edge per operand, None for one without a gradient."""
        return [
            tuple(
                None
                if operand is None or operand in self._constants
                else Edge(self.index[operand], output)
                for operand, output in node.next_functions
            )
            for node in self.nodes
        ]

    def detail(self, number: int) -> Any:
        """The argument that decides what kind of operation a node is; None if there is none."""
        node = self.nodes[number]
        detail = _DETAILS.get(node.name())
        value = None if detail is None else detail(node)
        return value if isinstance(value, (bool, int, float, str)) else None

    def results(self, number: int) -> int:
        """How many results a node has."""
        return len(getattr(self.nodes[number], "_input_metadata", (None,)))

    @cached_property
    def key(self) -> Hashable:
        """Equal for graphs of the same operations in the same order."""
        details = [
            _DETAILS[name](node)
            for node, name in ((node, node.name()) for node in self.nodes)
            if name in _DETAILS
        ]
        return tuple(self._shape), tuple(self.roots), repr(details)


def name_of(node: Node) -> str:
    """The operator that a node belongs to, without prefix and number."""
    return _SUFFIX.sub("", node.name().rpartition("::")[2])


def node_of(tensor: Tensor) -> Node | None:
    """The node that a tensor's gradient arrives at; None without a graph."""
    if not tensor.requires_grad or tensor.is_inference():
        return None
    return tensor.grad_fn if tensor.grad_fn is not None else get_gradient_edge(tensor).node
