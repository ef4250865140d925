"""Hooks on modules: those of this package, and those that would see what a module computes.

Without the latter a module may compute only a part of its output; with them it has to
compute all of it.
"""

from __future__ import annotations

import functools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import nn


_HOOKS: Final = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Attributes of a module with its hooks; there are no public names."""

_Hook = TypeVar("_Hook", bound="Callable[..., Any]")


@contextmanager
def hooked(
    modules: Iterable[nn.Module],
    *,
    before: Callable[[Any, Any, Any], Any] | None = None,
    after: Callable[[Any, Any, Any], Any] | None = None,
) -> Iterator[None]:
    """Call functions at calls of modules in this thread, within the ``with`` block.

    PyTorch runs hooks in every thread: calls in others are ignored.

    Args:
        modules: The modules; one given twice is hooked once.
        before: Takes module, positional and keyword arguments; may return other ``(args, kwargs)``.
        after: Takes module, positional arguments and output; may return another output.
    """
    thread = threading.get_ident()

    def here(hook: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
        @functools.wraps(hook)
        def in_this_thread(module: Any, args: Any, more: Any) -> Any:
            return hook(module, args, more) if threading.get_ident() == thread else None

        return in_this_thread

    handles = []
    try:
        for module in dict.fromkeys(modules):
            if before is not None:
                handles.append(module.register_forward_pre_hook(here(before), with_kwargs=True))
            if after is not None:
                handles.append(module.register_forward_hook(here(after)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def looks_only(hook: _Hook) -> _Hook:
    """Mark a hook of this package that changes no value and keeps none."""
    hook.looks_only = True  # type: ignore[attr-defined]
    return hook


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks that may change or keep its inputs or outputs."""
    own = vars(module)
    return any(
        not getattr(hook, "looks_only", False) for name in _HOOKS for hook in own[name].values()
    )


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module is just its forward: no hooks, no wrapper.

    Then a part of its output (some rows of an output matrix) may be computed without the call.
    """
    own = vars(module)
    return not ("forward" in own or "_old_forward" in own or is_hooked(module))


def fingerprint(model: nn.Module, modules: Sequence[nn.Module]) -> int:
    """Key that changes with the behavior of modules: classes, forwards, hooks, attention, dtype."""
    parts: list[object] = [getattr(getattr(model, "config", None), "_attn_implementation", None)]
    parts.append(next((parameter.dtype for parameter in model.parameters()), None))
    for module in modules:
        own = vars(module)
        parts += (id(type(module)), module.training)
        forward = own.get("forward")
        if forward is not None:
            parts.append(id(forward))
        for name in _HOOKS:
            if own[name]:
                parts += [key for key, hook in own[name].items() if not hasattr(hook, "looks_only")]
    return hash(tuple(parts))
