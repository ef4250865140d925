"""Running a forward function again from some layer on.

Outputs of modules in a first run are kept, and replace these modules in later runs that differ from
the first one only after them: they are not computed again. A module still runs whenever
it might do more than return its output.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from captum_lrpx.onlookers import hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout)
_MISSING = object()


class _Call(NamedTuple):
    """A module's call in the first run, which later runs can skip.

    Attributes:
        output: A copy of its output.
        end: Number of calls that had ended by then.
    """

    output: Any
    end: int


class Replay:
    """Keeps outputs of modules in one run of a forward function, to start later runs at a layer.

    Kept are the outputs of the modules around the layers, and of their siblings: enough to
    skip everything that ends before a layer.

    Args:
        model: The model.
        layers: Layers at which later runs start, all of which run exactly once.
        at_input: Whether they start with a layer's input, instead of its output.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], *, at_input: bool) -> None:
        self._layers = layers
        self._at_input = at_input
        self._modules = _around(model, layers)
        self._calls: dict[nn.Module, _Call | None] = {}
        self._starts: dict[nn.Module, int] = {}
        self._ended = 0

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep outputs of modules, within the ``with`` block."""

        def started(layer: nn.Module, *_: Any) -> None:
            self._starts[layer] = self._ended

        at_start = {"before" if self._at_input else "after": started}
        recorders = {module: self._recorder(module) for module in self._modules}
        with hooked(self._layers, **at_start), _instead(recorders):
            yield

    def start(self, layer: nn.Module) -> int:
        """Number of calls of modules that had ended before a layer, in the first run."""
        return self._starts[layer]

    @contextmanager
    def resumed(self, layer: nn.Module) -> Iterator[None]:
        """Skip calls that ended before a layer, within the ``with`` block."""
        start = self._starts[layer]
        done = {
            module: partial(_again, call.output)
            for module, call in self._calls.items()
            if call is not None and call.end <= start
        }
        with _instead(done):
            yield

    def _recorder(self, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def recorder(*args: Any, **kwargs: Any) -> Any:
            again = module in self._calls
            before = _State(module, [*args, *kwargs.values()])
            output = forward(*args, **kwargs)
            self._ended += 1
            # After the last start no run skips anything.
            kept = not again and len(self._starts) < len(self._layers) and before.stands(output)
            self._calls[module] = _Call(_copied(output), self._ended) if kept else None
            return output

        return recorder


def _around(model: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Modules that contain one of the layers, and their children."""
    wanted = set(layers)
    found: dict[nn.Module, None] = {}
    for module in model.modules():
        if module not in wanted and not wanted.isdisjoint(module.modules()):
            found.update(dict.fromkeys([module, *module.children()]))
    return [
        module
        for module in found
        if module is not model
        and not isinstance(module, (nn.ModuleList, nn.ModuleDict, torch.jit.ScriptModule))
    ]


class _State:
    """State that a call may change besides returning an output: its arguments, and the module."""

    def __init__(self, module: nn.Module, arguments: list[Any]) -> None:
        self._module = module
        self._fixed = all(map(_is_fixed, arguments))
        self._tensors = [each for each in pytree.tree_leaves(arguments) if isinstance(each, Tensor)]
        self._versions = [_version(each) for each in self._tensors]
        self._attributes = self._own() if self._fixed else []

    def stands(self, output: Any) -> bool:
        """Whether nothing has changed, and the output consists of new tensors and containers."""
        leaves = pytree.tree_leaves(output)
        if not self._fixed or not all(isinstance(each, (Tensor, *_PLAIN)) for each in leaves):
            return False
        if [_version(each) for each in self._tensors] != self._versions:
            return False
        own = {each.untyped_storage().data_ptr() for each in self._tensors}
        given = [each for each in leaves if isinstance(each, Tensor)]
        if any(each.untyped_storage().data_ptr() in own for each in given):
            return False  # later writes into the output would not reach the input
        now = self._own()
        return len(now) == len(self._attributes) and all(
            one is other and size == before
            for (one, size), (other, before) in zip(now, self._attributes, strict=True)
        )

    def _own(self) -> list[tuple[Any, int]]:
        """Attributes of the module and its submodules, with a size or version to show changes."""
        return [
            (value, _size(value))
            for module in self._module.modules()
            for own in (vars(module), module._buffers)  # noqa: SLF001 - no public name
            for name, value in own.items()
            if name != "forward"
        ]


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return _version(value)
    return len(value) if isinstance(value, (list, dict, set)) else 0


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - no public name


def _is_fixed(value: Any) -> bool:
    """Whether a module cannot change an argument, except its tensors."""
    if isinstance(value, tuple):
        return all(map(_is_fixed, value))
    return isinstance(value, (Tensor, *_PLAIN))


def _copied(value: Any) -> Any:
    return pytree.tree_map(
        lambda each: each.detach().clone() if isinstance(each, Tensor) else each, value
    )


def _again(output: Any, /, *_args: Any, **_kwargs: Any) -> Any:
    return _copied(output)  # a copy, as the model may write into it


@contextmanager
def _instead(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward functions of modules, in this thread within the ``with`` block."""
    thread = threading.get_ident()
    before = {module: vars(module).get("forward", _MISSING) for module in forwards}

    def here(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        own = module.forward

        @wraps(own)
        def called(*args: Any, **kwargs: Any) -> Any:
            return (forward if threading.get_ident() == thread else own)(*args, **kwargs)

        return called

    try:
        for module, forward in forwards.items():
            module.forward = here(module, forward)
        yield
    finally:
        for module, own in before.items():
            if own is _MISSING:
                vars(module).pop("forward", None)
            else:
                module.forward = own
