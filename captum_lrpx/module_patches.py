"""Temporary changes of a model: patched forwards, frozen parameters, no compiler.

Linear rules that need a layer's weights patch its ``forward`` by a dispatcher, which looks up, for
the calling thread, the innermost patches on that module. Hence contexts may be nested, two models
or two threads do not see each other's patches, and a forward pass in another thread stays plain.
The original is restored when the last context on the module is left, in whatever way.
"""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from typing_extensions import Self

from captum_lrpx.structure import modules_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from captum_lrpx.rules.linear import Forward, Patch


class Attachment(NamedTuple):
    """A patch and the module whose forward it wraps."""

    module: nn.Module
    patch: Patch


def not_copied() -> RuntimeError:
    """Error for copying a model that has temporary attachments."""
    return RuntimeError(
        "A model cannot be copied or pickled while rules are attached to it (inside of "
        "`with propagation(model)`): do it before or after that block."
    )


# Attaching ------------------------------------------------------------------------------------

_lock = threading.RLock()
_thread = threading.local()


def _stack() -> list[Patched]:
    """Open propagations of the calling thread, innermost last."""
    stack: list[Patched] | None = getattr(_thread, "stack", None)
    if stack is None:
        stack = _thread.stack = []
    return stack


class _Dispatcher:
    """Forward of a module while some propagation is open on it."""

    def __init__(self, module: nn.Module, slot: str) -> None:
        self.module_id = id(module)
        self.slot = slot
        self.previous = vars(module).get(slot)
        self.original: Forward = getattr(module, slot)
        self.__wrapped__ = self.original  # for inspect.signature
        self.patched: dict[Patched, Forward] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        active = self._innermost()
        call = self.original if active is None else self.patched.get(active, self.original)
        return call(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise not_copied()

    def _innermost(self) -> Patched | None:
        for active in reversed(_stack()):
            if self.module_id in active.covered:
                return active
        if isinstance(threading.current_thread(), threading._DummyThread):  # noqa: SLF001
            return self._of_autograd_thread()
        return None

    def _of_autograd_thread(self) -> Patched | None:
        """On an accelerator, autograd recomputes checkpointed blocks in its own thread."""
        candidates = list(self.patched)
        if len(candidates) > 1:
            raise RuntimeError(
                "Several explanations of one model are open, and autograd recomputes a "
                "checkpointed block in a thread that belongs to none of them: open one at a "
                "time, or turn gradient checkpointing off."
            )
        return candidates[0] if candidates else None


class Patched:
    """Temporary patches on modules of a model, with its parameters frozen.

    Args:
        modules: The model, and all modules in it.
        attachments: The patches; the first on a module is the innermost.
        freeze: Whether parameters are frozen meanwhile.
    """

    def __init__(
        self, modules: Sequence[nn.Module], attachments: Sequence[Attachment], *, freeze: bool
    ) -> None:
        self._modules = modules
        self._attachments = attachments
        self._freeze = freeze
        self._frozen = _FrozenParameters()
        self._opened = False
        self.covered = frozenset(map(id, modules))

    def __enter__(self) -> Self:
        """Attach the patches, innermost in the calling thread."""
        try:
            with _lock:
                self._opened = True
                _without_compiler(1)
                for module, patch in self._attachments:
                    dispatcher = _dispatcher(module)
                    inner = dispatcher.patched.get(self, dispatcher.original)
                    dispatcher.patched[self] = partial(patch, inner)
                if self._freeze:
                    self._frozen.freeze(self._modules)
            _stack().append(self)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove everything; a second call does no harm."""
        stack = _stack()
        if self in stack:
            stack.remove(self)
        with _lock:
            for module, _ in self._attachments:
                _release(module, self)
            self._frozen.thaw()
            if self._opened:
                _without_compiler(-1)
                self._opened = False


def _slot(module: nn.Module) -> str:
    """Attribute of the module's own forward: accelerate keeps it beside its wrapper."""
    return "_old_forward" if "_old_forward" in vars(module) else "forward"


def _dispatcher(module: nn.Module) -> _Dispatcher:
    slot = _slot(module)
    current = vars(module).get(slot)
    if not isinstance(current, _Dispatcher):
        current = vars(module)[slot] = _Dispatcher(module, slot)
    return current


def _release(module: nn.Module, active: Patched) -> None:
    dispatcher = vars(module).get(_slot(module))
    if not isinstance(dispatcher, _Dispatcher):
        return
    dispatcher.patched.pop(active, None)
    if not dispatcher.patched:
        if dispatcher.previous is None:
            del vars(module)[dispatcher.slot]
        else:
            vars(module)[dispatcher.slot] = dispatcher.previous


# Compiler -----------------------------------------------------------------------------------------


_opened = 0
_stance: Any = None


def _without_compiler(step: int) -> None:
    """Let compiled functions run uncompiled while any propagation is open.

    A graph compiled earlier has no rules, and one compiled now would serve this call only.
    Without compiled functions this costs nothing: torch._dynamo is not imported then.
    """
    global _opened, _stance  # noqa: PLW0603 - the compiler's own switch is global
    _opened += step
    if _opened and _stance is None and "torch._dynamo" in sys.modules:
        _stance = torch.compiler.set_stance("force_eager")
    elif not _opened and _stance is not None:
        _stance.__exit__(None, None, None)
        _stance = None


# Parameters ---------------------------------------------------------------------------------------


_frozen: dict[int, int] = {}
"""How many times a parameter is frozen, by id; guarded by the lock of its users, who keep it."""


class _FrozenParameters:
    """The parameters frozen by one propagation."""

    def __init__(self) -> None:
        self._slots: list[tuple[nn.Module, str, nn.Parameter]] = []

    def freeze(self, modules: Sequence[nn.Module]) -> None:
        """Freeze the parameters of modules.

        Args:
            modules: The model, and all modules in it.

        Raises:
            RuntimeError: If they were created under ``torch.inference_mode``.
        """
        for module in modules:
            parameters = module._parameters  # noqa: SLF001 - parameters() is slow
            if not parameters:
                continue
            for name, parameter in parameters.items():
                if parameter is None:
                    continue
                if parameter.is_inference():
                    raise RuntimeError(
                        f"The parameters of {type(modules[0]).__name__} were created under "
                        "torch.inference_mode and cannot take part in a backward pass: load the "
                        "model outside of it, or explain copy.deepcopy(model), made outside."
                    )
                count = _frozen.get(id(parameter), 0)
                if count or parameter.requires_grad:
                    self._slots.append((module, name, parameter))
                    _frozen[id(parameter)] = count + 1
                    parameter.requires_grad = False

    def thaw(self) -> None:
        """Restore the flags, except of parameters that another propagation has frozen too."""
        replaced: list[tuple[nn.Parameter, nn.Parameter]] = []
        for module, name, parameter in self._slots:
            count = _frozen.pop(id(parameter), 1)
            if count > 1:
                _frozen[id(parameter)] = count - 1
            else:
                parameter.requires_grad = True
            # Offloading replaces parameters whenever their module runs.
            current = module._parameters.get(name)  # noqa: SLF001
            if current is not parameter and current is not None:
                replaced.append((current, parameter))
        for current, parameter in replaced:
            if parameter.requires_grad:
                current.requires_grad = True
        self._slots.clear()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Freeze the parameters of a model inside of a ``with`` block."""
    parameters = _FrozenParameters()
    parameters.freeze(modules_of(model))
    try:
        yield
    finally:
        parameters.thaw()
