"""Hooks on all modules: who looks at what the modules of a model give each other."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.nn.modules import module as torch_modules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.hooks import RemovableHandle

__all__ = ["hooked_everywhere", "looking_only"]

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


def hooked_everywhere() -> bool:
    """Whether hooks on all modules may change, or keep, what some module takes or gives."""
    hooks = (*torch_modules._global_forward_hooks, *torch_modules._global_forward_pre_hooks)  # noqa: SLF001
    return any(number not in _harmless for number in hooks)
