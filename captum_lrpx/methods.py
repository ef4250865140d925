"""Attribution methods by name, for ``explain()`` and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_lrpx.attr import AttnLRPx, LRPx

if TYPE_CHECKING:
    from torch import nn

    from captum_lrpx.recipes import Recipe

__all__ = ["METHODS", "attribution"]

METHODS: dict[str, type[LRPx]] = {"lrpx": LRPx, "attnlrpx": AttnLRPx}
"""Name -> class, each constructed from a forward module."""


def attribution(method: str, forward: nn.Module, recipe: Recipe | None = None) -> LRPx:
    """The attribution object of a method.

    Args:
        method: A name in :data:`METHODS`.
        forward: Forward module.
        recipe: Rules other than the method's own.

    Raises:
        ValueError: If the name is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}; known are {', '.join(METHODS)}.")
    return METHODS[method](forward, recipe=recipe)
