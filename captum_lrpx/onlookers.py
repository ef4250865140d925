"""Who would see what a module computes: hooks, and what others have wrapped around its forward.

Where nobody looks, a module may compute less than all of its output, or something that stands for
several modules; where somebody does, it has to compute what it always does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch.nn.modules import module as torch_modules

if TYPE_CHECKING:
    from torch import nn

__all__ = ["HOOKS", "all_modules_are_hooked", "is_hooked", "is_wrapped"]

HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes of a module that hold its hooks; there are no public names."""


def all_modules_are_hooked() -> bool:
    """Whether there are forward hooks on every module of the process."""
    hooks = (torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks)  # noqa: SLF001
    return any(hooks)


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
