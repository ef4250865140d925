"""Watches one forward pass: which function in which module made which node of the graph.

Nothing is attached to the model. A function mode of the calling thread sees every function,
functional calls included; PyTorch's global module hooks tell which module is running, and ignore
other threads. Every value is the model's own.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import Self

from captum_lrpx.onlookers import hooked, looks_only
from captum_lrpx.parallel import local
from captum_lrpx.trace.behind import Behind
from captum_lrpx.trace.graph import name_of, node_of
from captum_lrpx.trace.origins import Called, Origins, tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from torch.autograd.graph import Node
    from torch.utils.hooks import RemovableHandle


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VALUE_INDEPENDENT: Final = _names(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros "
    "new_ones new_empty new_full new_tensor size stride dim numel"
)
"""Functions whose result does not depend on the values of their first argument."""

_SECOND_ONLY_FOR_ITS_FORM: Final = _names("to type_as view_as expand_as reshape_as broadcast_to")
"""Functions that use only the type or shape of their second operand."""

_Hidden = Literal["choice", "value"]
"""Dependence on the input without a gradient: an index, mask or position; a detached number."""


class Call(NamedTuple):
    """A function call.

    Attributes:
        number: Index of the call, in the order of the forward pass.
        function: Name of the function.
        module: The innermost running module; None outside of all.
    """

    number: int
    function: str
    module: nn.Module | None


class Watch:
    """Observes the functions that one thread calls, for a ``with`` block.

    Args:
        modules: The modules of the model.
        need_input: Names of functions whose operand is kept, because their nodes do not save it.
        values: Whether to keep the results of functions.
        names: Whether to record which call made which node; else only these operands are kept.

    Attributes:
        calls: For each node of the graph, the call that made it.
        inputs: For each node of such a function, its operand.
        detached: Nodes that use a number which depends on the input but has no gradient.
        behind: Nodes whose results were overwritten behind the graph.
        dropping: Innermost modules in which a function dropped values at random.
        written: Nodes of functions that wrote into a part of a tensor.
        entered: Modules of the model that were called from outside of it.
        outputs: Nodes of their outputs.
        values: The value of each result of a node, if requested.
        origins: The constants in its functions, if values are requested; else None.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        need_input: frozenset[str],
        *,
        values: bool = False,
        names: bool = True,
    ) -> None:
        self._names = names
        self._handles: list[RemovableHandle] = []
        self.values: dict[tuple[Node, int], Tensor] = {}
        self._keeps_values = values
        self._by_storage: dict[int, list[tuple[dict[Any, Tensor], Any]]] = {}
        modules = list(modules)
        self._modules = frozenset(map(id, modules))
        self.origins = Origins(modules) if values else None
        self.calls: dict[Node, Call] = {}
        self.inputs: dict[Node, Tensor] = {}
        self.detached: set[Node] = set()
        self.behind = Behind()
        self.dropping: set[nn.Module | None] = set()
        self.entered: dict[nn.Module, None] = {}
        self.outputs: list[Node] = []
        self._need_input = need_input
        self._running: list[nn.Module] = []
        self._thread = threading.get_ident()
        self._hidden = WeakTensorKeyDictionary()

    def __enter__(self) -> Self:
        """Start watching."""
        if self._names:
            self._handles += [
                module_hooks.register_module_forward_pre_hook(self.enter),
                module_hooks.register_module_forward_hook(self._leave, always_call=True),
            ]
        self._mode = FunctionMode(self._call)
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching."""
        self._mode.__exit__(*error)  # type: ignore[no-untyped-call]
        del self._mode  # it refers back to this object, and would keep its tensors alive
        for handle in self._handles:
            handle.remove()

    # Functions --------------------------------------------------------------------------------

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function and record its results, or only an operand that its node lacks."""
        name = getattr(func, "__name__", "")
        needed = args[0] if args and name.rstrip("_") in self._need_input else None
        written = _written(name, args, kwargs)
        if written:  # the operand may be overwritten
            self._before_writing(written)
            needed = needed.detach().clone() if isinstance(needed, Tensor) else None
        result = (
            self._recorded(name, func, args, kwargs, written)
            if self._names
            else func(*args, **kwargs)
        )
        if isinstance(needed, Tensor) and isinstance(result, Tensor):
            self._keep(self.inputs, node_of(result), needed)
        return result

    def _recorded(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        written: list[Tensor],
    ) -> Any:
        module = self._running[-1] if self._running else None
        if name in _DROPPING and _drops(name, args, kwargs):
            self.dropping.add(module)
        behind = self.behind.before(func, args, written)
        result = func(*args, **kwargs)
        self.behind.after(func, args, result, behind)
        taken = list(tensors_in(_read_by(name, args, kwargs)))
        # Each tensor once, also if it was written and returned.
        made = list({id(each): each for each in (*tensors_in(result), *written)}.values())
        if made and (taken or name not in _VALUE_INDEPENDENT):
            self._look(func, taken, made, written, module)
            if self.origins is not None:
                called = Called(func, name, args, kwargs, taken, module)
                self.origins.record(called, made, partly=len(written) > 1)
        return result

    def _look(
        self,
        func: Callable[..., Any],
        taken: list[Tensor],
        made: list[Tensor],
        written: list[Tensor],
        module: nn.Module | None,
    ) -> None:
        hidden = {self._hidden_kind(tensor) for tensor in taken if tensor in self._hidden}
        for tensor in made:
            if torch.is_grad_enabled() and tensor.requires_grad:
                node = node_of(tensor)
                if self._keeps_values:
                    self._keep(self.values, (node, tensor.output_nr), tensor)
                self.claim(tensor, _full_name(func), module)
                if "value" in hidden and node is not None:
                    self.detached.add(node)
            elif _is_in(tensor, written) or not _is_in(tensor, taken):
                kind = self._without_gradient(tensor, taken, hidden)
                if kind is not None:
                    self._hidden[tensor] = kind

    def _hidden_kind(self, tensor: Tensor) -> _Hidden | None:
        if tensor.requires_grad:  # computed inside of a torch.autograd.Function that has returned
            self._hidden.pop(tensor)  # type: ignore[no-untyped-call]
            return None
        kind: _Hidden = self._hidden[tensor]
        return kind

    def _without_gradient(
        self, tensor: Tensor, taken: list[Tensor], hidden: set[_Hidden | None]
    ) -> _Hidden | None:
        if not hidden - {None} and not any(each.requires_grad for each in taken):
            return None
        if not tensor.is_floating_point():
            return "choice"
        depends = any(each.requires_grad and each.is_floating_point() for each in taken)
        return "value" if depends or "value" in hidden else "choice"

    def claim(self, tensor: Tensor, function: str, module: nn.Module | None) -> None:
        """Record which call produced a tensor and the new nodes before it."""
        call = Call(len(self.calls), function, module)
        nodes = [node_of(tensor)]
        while nodes:
            node = nodes.pop()
            if node is not None and node.next_functions and node not in self.calls:
                # A leaf existed before; a custom torch.autograd.Function is named after itself.
                own = isinstance(node, BackwardCFunction)
                self.calls[node] = call._replace(function=name_of(node)) if own else call
                nodes += [each for each, _ in node.next_functions]

    # Values -----------------------------------------------------------------------------------

    def _keep(self, kept: dict[Any, Tensor], key: Any, tensor: Tensor) -> None:
        if key is None:
            return
        kept[key] = tensor.detach()
        storage = _storage_of(tensor)
        self._by_storage.setdefault(storage, []).append((kept, key))

    def _before_writing(self, written: list[Tensor]) -> None:
        """Copy kept tensors that a function is about to overwrite."""
        for tensor in written:
            key = tensor.grad_fn, tensor.output_nr
            if self._keeps_values and tensor.grad_fn is not None and key not in self.values:
                self._keep(self.values, key, tensor)
            for kept, known in self._by_storage.pop(_storage_of(tensor), ()):
                kept[known] = kept[known].clone()

    # Modules ----------------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: Any = ()) -> None:
        """Record that a module runs; also called for a module entered before the block."""
        if threading.get_ident() == self._thread and id(module) in self._modules:
            around = self._running[-1] if self._running else None
            for tensor in tensors_in(args):  # perhaps outputs of a torch.autograd.Function that no
                if tensor.grad_fn is not None:  # function of PyTorch has used yet
                    self.claim(tensor, "", around)
            if not self._running:
                self.entered[module] = None
            self._running.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread or module not in self._running:
            return
        if self.origins is not None:
            self.origins.left(module, args, output)
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                key = node_of(tensor), tensor.output_nr
                if self._keeps_values and key not in self.values:
                    self._keep(self.values, key, tensor)  # output of a torch.autograd.Function
                self.claim(tensor, "", module)
        while self._running.pop() is not module:
            pass
        if not self._running:
            nodes = (node_of(tensor) for tensor in tensors_in(output))
            self.outputs += [node for node in nodes if node is not None]


class FunctionMode(TorchFunctionMode):
    """Passes each function that one thread calls to a callback, for a ``with`` block.

    If several are open, the innermost comes first; functions that its callback calls go to the
    next one, never to itself.

    Args:
        call: ``call(func, args, kwargs)`` must call the function and return its result.
    """

    def __init__(
        self, call: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        super().__init__()
        self._call = call

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """PyTorch's entry point."""
        return self._call(func, args, kwargs or {})


def _storage_of(tensor: Tensor) -> int:
    """Address of a tensor's storage, also inside of transforms of ``torch.func``.

    For a tensor sharded over processes, the local shard's.
    """
    functorch = torch._C._functorch  # noqa: SLF001 - no public names
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    address: int = local(tensor).untyped_storage().data_ptr()
    return address


@cache
def _full_name(func: Callable[..., Any]) -> str:
    """Name of a function with its module, cached as it is slow to resolve."""
    name: str = resolve_name(func) or getattr(func, "__name__", str(func))
    return name


def _read_by(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """The arguments of a function whose values it reads."""
    if name in _VALUE_INDEPENDENT:
        return args[1:], kwargs
    return args[:1] if name in _SECOND_ONLY_FOR_ITS_FORM else (args, kwargs)


def _writes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function may write into its first operand."""
    if name.startswith("__"):
        return name in _WRITING
    if name in _MAY_WRITE:
        return any(each is True for each in (kwargs.get("inplace"), *args[1:]))
    return name.endswith("_")


def _written(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensor that a function writes into, and its base if it is a view."""
    into = kwargs.get("out")
    if into is None and args and _writes(name, args, kwargs):
        into = args[0]
    if not isinstance(into, Tensor):
        return []
    whole = into._base  # noqa: SLF001 - no public name
    return [into] if whole is None else [whole, into]


def _is_in(tensor: Tensor, tensors: list[Tensor]) -> bool:
    return any(tensor is each for each in tensors)


_DROPPING: Final = _names(
    "dropout dropout_ alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d "
    "scaled_dot_product_attention"
)
"""Functions that may set values to zero at random."""


def _drops(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function of :data:`_DROPPING` does so in a call."""
    if name == "scaled_dot_product_attention":
        return bool(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
    given = {**dict(zip(("p", "training"), args[1:], strict=False)), **kwargs}
    training = given.get("training", given.get("train", True))  # `train` of torch.dropout
    return bool(given.get("p", 0.5)) and bool(training)


_MAY_WRITE: Final = _names(
    "relu silu mish hardswish hardsigmoid hardtanh relu6 elu selu celu leaky_relu rrelu threshold "
    "dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d"
)
"""Functions of ``torch.nn.functional`` with an option to work in place."""

_WRITING: Final = _names(
    "__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __ipow__ __imod__ __iand__ "
    "__ior__ __ixor__"
)


def results_of(modules: Iterable[nn.Module], found: list[Node]) -> AbstractContextManager[None]:
    """Collect the nodes of the outputs of some modules inside of a ``with`` block."""

    @looks_only
    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        found.extend(node for node in map(node_of, tensors_in(output)) if node is not None)

    return hooked(modules, after=after)
