"""The autograd graph of some tensors as a list of nodes and their operands.

With parameters frozen, PyTorch's own graph *is* the list of operations that depend on the inputs:
a tensor is in it exactly if it depends on one of them, and a constant operand is no edge.
"""

from __future__ import annotations

import re
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

from captum_lrpx.parallel import PASSING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from torch import Tensor
    from torch.autograd.graph import Node


class Edge(NamedTuple):
    """An operand of an operation.

    Attributes:
        node: Index of the node that computed it.
        output: Index among that node's results.
    """

    node: int
    output: int


class Form(NamedTuple):
    """The part of a graph without its nodes, equal for graphs with the same key.

    Attributes:
        order: Place at which each node was found, operands first.
        names: See :attr:`Graph.names`.
        operands: See :attr:`Graph.operands`.
    """

    order: list[int]
    names: list[str]
    operands: list[tuple[Edge | None, ...]]


_SUFFIX: Final = re.compile(r"Backwards?\d*$")
_numbers: dict[Any, int] = {}
"""Numbers of node classes, in the order in which they were met; names where no class exists."""
_operators: list[str] = []
"""Operators of these classes, in the same order."""
_details: dict[int, Callable[[Any], Any]] = {}
"""For some classes, a function of the node that decides about the kind of operation."""

_OUTPUTS: Final = 1 << 20
_END: Final = -2


def _statistics(node: Any) -> str:
    """Statistics that a batch norm uses: ``"running"``, of its one ``"row"``, or ``"batch"``."""
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
"""Nodes whose kind depends on an argument that they save."""


class Graph:
    """The nodes between some tensors and the leaves that they depend on.

    It is read at every explanation, and therefore does as little as possible: nodes are found in
    any order, from which :attr:`key` is made. Everything else is computed on demand.

    Args:
        tensors: The tensors.
        constants: Nodes that count as constants, such as parameters that need a gradient; nodes
            that depend on nothing else count too.

    Attributes:
        key: Equal for graphs of the same operations in the same order.
    """

    key: Hashable

    def __init__(self, tensors: Iterable[Tensor], constants: Iterable[Node] = ()) -> None:
        ends = [node for node in map(node_of, tensors) if node is not None]
        self._constants = _constant_nodes(ends, set(constants))
        self._found: list[Node] = list(dict.fromkeys(ends))
        self._place = {node: place for place, node in enumerate(self._found)}
        self._ends = [self._place[node] for node in ends]
        self._order: list[int] | None = None
        self._read()

    def _read(self) -> None:
        nodes, places, numbers, constants = self._found, self._place, _numbers, self._constants
        shape: list[int] = []  # per node: the number of its class, then its operands
        details: dict[Node, Any] = {}
        for node in nodes:  # grows during iteration
            number = numbers.get(type(node))
            if number is None:
                number = _number_of(node)
            shape.append(number)
            if number in _details:
                details[node] = _details[number](node)
            for operand, output in node.next_functions:
                if operand is None or operand in constants:
                    shape.append(-1)
                    continue
                place = places.get(operand)
                if place is None:
                    place = places[operand] = len(nodes)
                    nodes.append(operand)
                shape.append(place * _OUTPUTS + output)
            shape.append(_END)
        self._shape = shape
        self._details = details
        self.key = tuple(shape), tuple(self._ends), repr(list(details.values()))

    # In the order of the forward pass ---------------------------------------------------------

    @property
    def order(self) -> list[int]:
        """Places at which the nodes were found, operands first."""
        if self._order is None:
            self._order = _operands_first(self._edges, self._ends)
        return self._order

    @property
    def form(self) -> Form:
        """The part that is equal for graphs with the same key."""
        return Form(self.order, self.names, self.operands)

    def is_like(self, form: Form) -> None:
        """Reuse the form of a graph with the same key."""
        self._order = form.order
        self.__dict__.update(names=form.names, operands=form.operands)

    @cached_property
    def _edges(self) -> list[list[int]]:
        """Operands of each node, in the order in which nodes were found."""
        edges: list[list[int]] = []
        start = True
        for each in self._shape:
            if start:
                edges.append([])
            elif each != _END:
                edges[-1].append(each)
            start = each == _END
        return edges

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes, operands first."""
        found = self._found
        return [found[place] for place in self.order]

    @cached_property
    def index(self) -> dict[Node, int]:
        """Maps each node to its index."""
        return {node: number for number, node in enumerate(self.nodes)}

    @cached_property
    def roots(self) -> list[int]:
        """Indices of the nodes of the given tensors."""
        return [self.index[self._found[place]] for place in self._ends]

    @cached_property
    def names(self) -> list[str]:
        """Operator of each node (``"Mul"``); ``"AccumulateGrad"`` for leaves."""
        return [_operators[_number_of(node)] for node in self.nodes]

    @cached_property
    def operands(self) -> list[tuple[Edge | None, ...]]:
        """For each node one edge per operand, None for an operand without a gradient."""
        return [
            tuple(self._edge(*operand) for operand in node.next_functions) for node in self.nodes
        ]

    def _edge(self, operand: Node | None, output: int) -> Edge | None:
        if operand is not None and operand not in self._constants:
            operand, output = maker_of(operand, output)
        if operand is None or operand in self._constants:
            return None
        return Edge(self.index[operand], output)

    def leading_to(self, sources: Iterable[Tensor]) -> set[int]:
        """Indices of the nodes that depend on some tensors, or on any leaf if none is in the graph.

        Nodes of these tensors do not count.
        """
        starts = {self.index[node] for node in map(node_of, sources) if node in self.index}
        leads = [False] * len(self.nodes)
        for number, edges in enumerate(self.operands):
            leads[number] = (
                number in starts
                or (not starts and not any(edges))
                or any(edge is not None and leads[edge.node] for edge in edges)
            )
        return {number for number, each in enumerate(leads) if each} - starts

    def detail(self, number: int) -> Any:
        """The argument that decides about the kind of a node's operation; None if there is none."""
        value = self._details.get(self.nodes[number])
        return value if isinstance(value, (bool, int, float, str)) else None

    def results(self, number: int) -> int:
        """Number of results of a node."""
        return len(getattr(self.nodes[number], "_input_metadata", (None,)))


def _number_of(node: Node) -> int:
    """Number of a node's class."""
    kind: Any = type(node)
    if kind.__name__ == "CppFunction":  # shared by nodes without their own class
        kind = node.name()
    number = _numbers.get(kind)
    if number is None:
        number = _numbers[kind] = len(_operators)
        _operators.append(_operator_of(node))
        if node.name() in _DETAILS:
            _details[number] = _DETAILS[node.name()]
    return number


def _operands_first(edges: list[list[int]], ends: Iterable[int]) -> list[int]:
    """Topological order of the nodes upstream of the ends: operands first."""
    order: list[int] = []
    entered = [False] * len(edges)
    for end in ends:
        stack = [end]
        while stack:
            place = stack.pop()
            if place < 0:
                order.append(~place)
            elif not entered[place]:
                entered[place] = True
                stack.append(~place)
                stack += [each // _OUTPUTS for each in edges[place] if each >= 0]
    return order


def _constant_nodes(ends: list[Node], constants: set[Node]) -> set[Node]:
    """The given constants, and all nodes that depend on nothing else."""
    entered: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(node, False) for node in ends] if constants else []
    while stack:
        node, left = stack.pop()
        operands = [operand for operand, _ in node.next_functions if operand is not None]
        if left and operands and all(operand in constants for operand in operands):
            constants.add(node)
        elif not left and node not in entered:
            entered.add(node)
            stack.append((node, True))
            stack += [(operand, False) for operand in operands]
    return constants


_KNOWN: Final = frozenset({"torch", "transformers", "bitsandbytes", "captum_lrpx"})
"""Packages whose functions written in Python are known by their names."""


def _operator_of(node: Node) -> str:
    """Operator of a node; of a foreign function written in Python with its module.

    Such a function may have the name of an operator of PyTorch and compute something else.
    """
    name = name_of(node)
    kind: Any = type(node)
    if not issubclass(kind, BackwardCFunction):
        return name
    module: str = getattr(kind, "_forward_cls", kind).__module__
    return name if module.partition(".")[0] in _KNOWN else f"{module}.{name}"


def name_of(node: Node) -> str:
    """Operator of a node, without prefix and number."""
    return _SUFFIX.sub("", node.name().rpartition("::")[2])


def node_of(tensor: Tensor) -> Node | None:
    """Node at which a tensor's gradient arrives; None without a graph."""
    if not tensor.requires_grad or tensor.is_inference():
        return None
    return tensor.grad_fn if tensor.grad_fn is not None else get_gradient_edge(tensor).node


def maker_of(node: Node | None, output: int) -> tuple[Node | None, int]:
    """Node that computed a result, skipping nodes that only pass it on."""
    while node is not None and _operators[_number_of(node)] in PASSING:
        node, output = node.next_functions[output]
    return node, output
