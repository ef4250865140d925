"""Patches of the forward of module instances, for linear rules that need a layer's weights.

Inside the context the ``forward`` of each patched module is a dispatcher that looks up, for the
calling thread, the innermost patches on that module. Hence contexts may be nested,
two models or two threads do not see each other's patches, and a forward pass in another
thread stays plain. The original is restored when the last context on the module is left, in
whatever way.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import Self

from captum_lrpx.compilation import without_compiler
from captum_lrpx.frozen import FrozenParameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from captum_lrpx.rules.base import Forward, Patch


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
        self._frozen = FrozenParameters()
        self._opened = False
        self.covered = frozenset(map(id, modules))

    def __enter__(self) -> Self:
        """Attach the patches, innermost in the calling thread."""
        try:
            with _lock:
                self._opened = True
                without_compiler(1)
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
                without_compiler(-1)
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
