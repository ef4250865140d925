"""One forward pass, watched: which function in which module made which node of the graph.

Nothing is attached to the model. A ``TorchFunctionMode`` of the calling thread sees every function,
functional ones too; hooks that PyTorch calls for all modules say which module is running, and look
at nothing that another thread does.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakTensorKeyDictionary

from captum_lrpx.onlookers import looking_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch.autograd.graph import Node

__all__ = ["Call", "Run", "Traced", "Watch", "trace", "watching"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VALUE_INDEPENDENT: Final = _names(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros "
    "new_ones new_empty new_full new_tensor size stride"
)
"""Functions whose result does not depend on the values of what they are given."""

_SECOND_ONLY_FOR_ITS_FORM: Final = _names("to type_as view_as expand_as reshape_as broadcast_to")
"""Functions that look at the type or shape of their second operand only."""


class Run(NamedTuple):
    """Tensors of a forward pass.

    Attributes:
        explained: The explained values.
        attributed: What relevance is attributed to; none for all inputs.
        inputs: Inputs and embeddings of the model; none for all leaves that are no parameters.
    """

    explained: list[Tensor]
    attributed: list[Tensor]
    inputs: list[Tensor]


class Call(NamedTuple):
    """A function that was called.

    Attributes:
        number: Of the call, in the order of the forward pass.
        function: Its name.
        module: The innermost running module; None outside of all.
    """

    number: int
    function: str
    module: nn.Module | None


@dataclass
class Traced:
    """What a watched forward pass left.

    Attributes:
        roots: Nodes of the explained values.
        sources: Nodes of what relevance is attributed to; none for all inputs.
        inputs: Nodes of the inputs of the model; none for all leaves that are no parameters.
        calls: For each node of the graph, the call that made it.
        hidden: For nodes that use a value which depends on the inputs but has no graph (a
            comparison, a detached tensor): the nodes that this value was computed from.
    """

    roots: list[Node] = field(default_factory=list)
    sources: frozenset[Node] = frozenset()
    inputs: frozenset[Node] = frozenset()
    calls: dict[Node, Call] = field(default_factory=dict)
    hidden: dict[Node, set[Node]] = field(default_factory=dict)


def trace(
    run: Callable[[], Run],
    opaque: Iterable[nn.Module],
    modules: Iterable[nn.Module],
) -> Traced:
    """Watch a forward pass.

    Training flags are off while it runs (dropout is no part of what is judged, and checkpointed
    blocks show their graph), random states and buffers are put back, and nothing else is touched.

    Args:
        run: Runs the forward pass with rules attached.
        opaque: Modules under a rule of their own: what happens inside is that rule's affair.
        modules: All modules that may have to leave training mode.

    Returns:
        What was seen. Without roots if the explained values have no graph.
    """
    with ExitStack() as stack:
        modules = list(modules)
        stack.enter_context(torch.random.fork_rng(devices=_devices(modules)))
        stack.enter_context(_evaluation(modules))
        stack.enter_context(_same_buffers(modules))
        stack.enter_context(torch.enable_grad())
        watch = stack.enter_context(watching(opaque))
        found = run()
    return watch.traced_to(found)


@contextmanager
def watching(opaque: Iterable[nn.Module]) -> Iterator[Watch]:
    """Watch what the calling thread computes within a ``with`` block, which nothing else changes.

    Args:
        opaque: As for :func:`trace`.
    """
    watch = Watch(frozenset(map(id, opaque)))
    with watch.modules(), watch:
        yield watch


def _devices(modules: list[nn.Module]) -> list[torch.device]:
    """The accelerators whose random state the forward pass could use."""
    tensors = (each for module in modules for each in module.parameters(recurse=False))
    return list({tensor.device for tensor in tensors if tensor.device.type == "cuda"})


@contextmanager
def _evaluation(modules: list[nn.Module]) -> Iterator[None]:
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _same_buffers(modules: list[nn.Module]) -> Iterator[None]:
    """Put back what a forward pass writes into buffers: statistics, counters, caches."""
    buffers = [(module, dict(module._buffers)) for module in modules if module._buffers]  # noqa: SLF001
    kept = {
        tensor: (tensor._version, tensor.clone())  # noqa: SLF001 - no public name
        for _, named in buffers
        for tensor in named.values()
        if tensor is not None and not tensor.is_inference()
    }
    try:
        yield
    finally:
        for module, named in buffers:
            module._buffers.update(named)  # noqa: SLF001 - assignment would refuse some
        for tensor, (version, values) in kept.items():
            if tensor._version != version:  # noqa: SLF001
                with torch.no_grad():
                    tensor.copy_(values)


class Watch(TorchFunctionMode):
    """Sees the functions that one thread calls."""

    def __init__(self, opaque: frozenset[int]) -> None:
        super().__init__()
        self.traced = Traced()
        self._opaque = opaque
        self._running: list[nn.Module] = []
        self._thread = threading.get_ident()
        # Tensors that depend on the inputs without a graph -> the nodes that they come from, and
        # the module that computed them.
        self._hidden = WeakTensorKeyDictionary()

    def traced_to(self, found: Run) -> Traced:
        """What was seen, with the tensors that the forward pass led to."""
        traced = self.traced
        graphs = [tensor for tensor in found.explained if tensor.requires_grad]
        traced.roots = [node for node in map(_node_of, graphs) if node is not None]
        for tensor in graphs:
            self.claim(tensor, "", None)
        traced.sources = frozenset(filter(None, map(_node_of, found.attributed)))
        traced.inputs = frozenset(filter(None, map(_node_of, found.inputs)))
        return traced

    # Functions --------------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function and look at what it made."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = list(_tensors(result))
        name = getattr(func, "__name__", "")
        if made and name not in _VALUE_INDEPENDENT:
            seen = args[:1] if name in _SECOND_ONLY_FOR_ITS_FORM else (args, kwargs)
            self._look(func, list(_tensors(seen)), made)
        return result

    def _look(self, func: Callable[..., Any], taken: list[Tensor], made: list[Tensor]) -> None:
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        module = self._running[-1] if self._running else None
        hidden = self._origins(taken)
        nodes = {node for node in map(_node_of, taken) if node is not None}
        for tensor in made:
            if torch.is_grad_enabled() and tensor.requires_grad:
                self.claim(tensor, name, module)
                if hidden and not self._in_opaque():
                    self._flag(tensor, hidden)
            elif (hidden or nodes) and not any(tensor is each for each in taken):
                self._hidden[tensor] = hidden | nodes, module

    def _origins(self, taken: list[Tensor]) -> set[Node]:
        """The nodes that operands without a graph were computed from."""
        found: set[Node] = set()
        for tensor in taken:
            if tensor in self._hidden:
                if (
                    _node_of(tensor) is not None
                ):  # what a torch.autograd.Function computed inside itself
                    origins, module = self._hidden.pop(tensor)  # type: ignore[no-untyped-call]
                    self.claim(tensor, "", module)
                    self._flag(tensor, origins)
                else:
                    found |= self._hidden[tensor][0]
        return found

    def _flag(self, tensor: Tensor, origins: set[Node]) -> None:
        node = _node_of(tensor)
        if node is not None:
            self.traced.hidden.setdefault(node, set()).update(origins)

    def claim(self, tensor: Tensor, function: str, module: nn.Module | None) -> None:
        """Note a call as the one that made a tensor, with all of its graph that is new."""
        call = Call(len(self.traced.calls), function, module)
        nodes = [_node_of(tensor)]
        while nodes:
            node = nodes.pop()
            if node is not None and node not in self.traced.calls:
                self.traced.calls[node] = call
                nodes += [each for each, _ in node.next_functions]

    # Modules ----------------------------------------------------------------------------------

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Know which module is running."""
        before = module_hooks.register_module_forward_pre_hook(self._enter)
        after = module_hooks.register_module_forward_hook(self._leave, always_call=True)
        with looking_only(before, after):
            yield

    def _enter(self, module: nn.Module, _args: Any) -> None:
        if threading.get_ident() == self._thread:
            self._running.append(module)

    def _leave(self, module: nn.Module, _args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread or module not in self._running:
            return
        for tensor in _tensors(output):
            if tensor.requires_grad:
                self.claim(tensor, "", module)
            if self._in_opaque():  # constant under a rule, and so by intention
                self._hidden.pop(tensor, None)  # type: ignore[no-untyped-call]
        while self._running.pop() is not module:
            pass

    def _in_opaque(self) -> bool:
        return any(id(module) in self._opaque for module in self._running)


def _node_of(tensor: Tensor) -> Node | None:
    """The node that a tensor's gradient arrives at; None without a graph.

    Inside of a torch.autograd.Function a view of what needs a gradient has no node yet.
    """
    if not tensor.requires_grad or tensor.is_inference():
        return None
    if tensor.grad_fn is not None:
        return tensor.grad_fn
    if tensor._is_view():  # noqa: SLF001 - no public name
        return None
    # A parameter depends on no input, and another thread may be freezing it just now.
    return None if isinstance(tensor, nn.Parameter) else get_gradient_edge(tensor).node


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a structure."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
