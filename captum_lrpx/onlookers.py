"""Hooks on a module, and wrappers of its forward, that would see what the module computes.

Without them a module may compute only a part of its output; with them it has to
compute all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn


HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks")
"""Attributes of a module with its hooks; there are no public names."""

_Hook = TypeVar("_Hook", bound="Callable[..., Any]")


def looks_only(hook: _Hook) -> _Hook:
    """Mark a hook of this package that changes nothing and keeps no value."""
    hook.looks_only = True  # type: ignore[attr-defined]
    return hook


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks that may change or keep its inputs or outputs."""
    own = vars(module)
    return any(
        not getattr(hook, "looks_only", False) for name in HOOKS for hook in own[name].values()
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
        for name in HOOKS:
            if own[name]:
                parts += [key for key, hook in own[name].items() if not hasattr(hook, "looks_only")]
    return hash(tuple(parts))
