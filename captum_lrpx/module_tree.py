"""Fast walk through the modules of a model, needed at every explanation.

``torch.nn.Module.modules`` uses one generator per level for each module, and is tens of
times slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def modules_of(root: nn.Module) -> tuple[nn.Module, ...]:
    """A module and all modules in it, each once, in the order of ``root.modules()``."""
    found: dict[nn.Module, None] = {}
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            children = module._modules  # noqa: SLF001 - children() is slow
            if children:
                waiting += [child for child in reversed(children.values()) if child is not None]
    return tuple(found)
