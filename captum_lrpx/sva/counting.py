"""Filtering of items, with a count for each reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["DroppedError", "drop_if", "keep"]

T = TypeVar("T")
S = TypeVar("S")


class DroppedError(Exception):
    """Raised to drop an item; its message is one of the counted reasons."""


def drop_if(condition: bool, reason: str) -> None:
    """Drop the current item if a condition holds.

    Raises:
        DroppedError: If it holds.
    """
    if condition:
        raise DroppedError(reason)


def keep(
    make: Callable[[S], T], items: Iterable[S], reasons: Iterable[str]
) -> tuple[tuple[T, ...], dict[str, int]]:
    """Map items, and count the dropped ones by reason.

    Args:
        make: Maps an item, or raises :class:`DroppedError`.
        items: The items.
        reasons: All reasons, in the order in which they are reported.

    Returns:
        The results, in order, and the counts: ``"given"``, each reason, ``"kept"``.
    """
    counts = {"given": 0, **dict.fromkeys(reasons, 0), "kept": 0}
    made = []
    for item in items:
        counts["given"] += 1
        try:
            made.append(make(item))
        except DroppedError as dropped:
            counts[str(dropped)] += 1
        else:
            counts["kept"] += 1
    return tuple(made), counts
