"""Finds values that a forward pass changes behind its graph.

Under ``torch.no_grad``, and in ``tensor.data`` or ``tensor.detach()``, a write changes the value
that later functions see, and the graph still ends in the function that made the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from captum_lrpx.trace.graph import node_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.autograd.graph import Node


class _Written(NamedTuple):
    """A tensor that is about to be written, and the node of its present value."""

    tensor: Tensor
    node: Node
    version: int


class Behind:
    """Nodes of a pass whose results are overwritten without a record in the graph.

    Attributes:
        nodes: The nodes.
    """

    def __init__(self) -> None:
        self.nodes: set[Node] = set()
        self._aliases = WeakTensorKeyDictionary()

    def before(
        self, func: Callable[..., Any], args: tuple[Any, ...], written: list[Tensor]
    ) -> list[_Written]:
        """Tensors that a function may write behind the graph.

        Args:
            func: The function.
            args: Its arguments.
            written: The tensor that it writes into, after the one that this is a view of.
        """
        if func == _SET_DATA:
            self.nodes.update(filter(None, [self._node_of(args[0])]))
        recorded = torch.is_grad_enabled()
        found = []
        for tensor in written[:1]:
            node = None if recorded and tensor.requires_grad else self._node_of(tensor)
            if node is not None:
                found.append(_Written(tensor, node, tensor._version))  # noqa: SLF001
        return found

    def after(
        self, func: Callable[..., Any], args: tuple[Any, ...], result: Any, found: list[_Written]
    ) -> None:
        """Record what a function has written, and whether its result shares memory.

        Args:
            func: The function.
            args: Its arguments.
            result: What it returned.
            found: What :meth:`before` found.
        """
        for tensor, node, version in found:
            # requires_grad_ changes no version, and others change the form alone.
            if tensor._version != version and func not in _OF_FORM:  # noqa: SLF001 - no public name
                self.nodes.add(node)
        if isinstance(result, Tensor) and func in _WITHOUT_GRAPH:
            shared = self._node_of(args[0])
            if shared is not None:
                self._aliases[result] = shared

    def _node_of(self, tensor: Tensor) -> Node | None:
        if tensor.requires_grad:
            whole = tensor._base  # noqa: SLF001 - a view gets a new node when its base changes
            return node_of(tensor if whole is None or not whole.requires_grad else whole)
        alias: Node | None = self._aliases.get(tensor)  # type: ignore[no-untyped-call]
        return alias


_DATA: Any = Tensor.data
_GET_DATA, _SET_DATA = _DATA.__get__, _DATA.__set__
_OF_FORM = frozenset(
    getattr(Tensor, name)
    for name in ("squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_")
)
"""Functions that write a tensor's form, and none of its values."""
_WITHOUT_GRAPH = (Tensor.detach, torch.detach, _GET_DATA)
"""Functions that return their operand without its graph."""
