"""Who would see what a module computes: hooks, and what others have wrapped around its forward.

Where nobody looks, a module may compute less than all of its output, or something that stands for
several modules; where somebody does, it has to compute what it always does.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from torch.nn.modules import module as torch_modules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from torch.utils.hooks import RemovableHandle

__all__ = ["HOOKS", "all_modules_are_hooked", "is_hooked", "is_wrapped", "looking_only"]

HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes of a module that hold its hooks; there are no public names."""


_harmless: set[int] = set()


@contextmanager
def looking_only(*handles: RemovableHandle) -> Iterator[None]:
    """Within the ``with`` block, hooks on all modules are known to change nothing; then removed.

    Args:
        handles: Of the hooks.
    """
    numbers = {handle.id for handle in handles}
    _harmless.update(numbers)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        _harmless.difference_update(numbers)


def all_modules_are_hooked() -> bool:
    """Whether forward hooks on every module may change or keep what some module takes or gives."""
    hooks = (*torch_modules._global_forward_hooks, *torch_modules._global_forward_pre_hooks)  # noqa: SLF001
    return any(number not in _harmless for number in hooks)


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks of its own."""
    return any(vars(module).get(hooks) for hooks in HOOKS)


def is_wrapped(module: nn.Module) -> bool:
    """Whether something other than rules stands in the place of a module's forward."""
    own = vars(module)
    forward = own.get("forward")
    return "_old_forward" in own or (
        forward is not None and getattr(forward, "previous", forward) is not None
    )
