"""Patches on the forward of module instances: linear rules that need a layer's weights.

Inside the context the ``forward`` of each concerned module is a dispatcher that looks up, for the
calling thread, which patches are the innermost ones on that module. Hence contexts may be nested,
two models or two threads do not see each other's patches, and a plain forward pass of another
thread stays plain. The original is put back when the last context on the module is left, however it
is left.
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

__all__ = ["Attachment", "Patched", "not_copied"]


class Attachment(NamedTuple):
    """A patch and the module whose forward it wraps."""

    module: nn.Module
    patch: Patch


def not_copied() -> RuntimeError:
    """The error for what is on a model for a while and must not be in a copy of it."""
    return RuntimeError(
        "A model cannot be copied or pickled while rules are attached to it (inside of "
        "`with propagation(model)`): do it before or after that block."
    )


# Attaching ------------------------------------------------------------------------------------

_lock = threading.RLock()
_thread = threading.local()


def _stack() -> list[Patched]:
    """The propagations that the calling thread has open, innermost last."""
    stack: list[Patched] | None = getattr(_thread, "stack", None)
    if stack is None:
        stack = _thread.stack = []
    return stack


class _Dispatcher:
    """The forward of a module while some propagation is open on it."""

    def __init__(self, module: nn.Module, slot: str) -> None:
        self.module_id = id(module)
        self.slot = slot
        self.previous = vars(module).get(slot)
        self.original: Forward = getattr(module, slot)
        self.__wrapped__ = self.original  # inspect.signature looks through
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
        """On an accelerator, checkpointed blocks are recomputed in a thread of autograd's own."""
        candidates = list(self.patched)
        if len(candidates) > 1:
            raise RuntimeError(
                "Several explanations of one model are open, and autograd recomputes a "
                "checkpointed block in a thread that belongs to none of them: open one at a "
                "time, or turn gradient checkpointing off."
            )
        return candidates[0] if candidates else None


class Patched:
    """Patches on some modules of a model, and its parameters frozen, for a while.

    Args:
        modules: The model, and all modules in it.
        attachments: The patches; the first on a module is the innermost.
        freeze: Whether parameters need no gradient meanwhile.
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
        """Put the patches on, innermost of those of the calling thread."""
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
        """Take everything off again; once more does no harm."""
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
    """Where the module's own forward is: accelerate puts it beside a wrapper of its own."""
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
