"""Colors of relevances: red for positive ones, blue for negative ones, on a robust scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


_POSITIVE = (214, 39, 40)
_NEGATIVE = (31, 119, 180)
_WHITE = 255

_LEFT_OUT = 50
"""One number in this many may be beyond the scale, and always one."""

VISIBLE = 0.1
"""Share of the scale from which a negative relevance is underlined."""

_OPAQUE = 0.8
"""Opacity of the full color; text in black or white can be read on it."""


def scale_of(relevances: Sequence[float]) -> float:
    """Absolute relevance that gets the full color.

    The first and the last token often have several times the relevance of all others, next to
    which the rest of a text would be white. The scale therefore ends at twice the largest relevance
    that remains without the largest 2 % (at least one), unless all relevances are below that.

    Args:
        relevances: The numbers.

    Returns:
        The scale, at most the largest absolute relevance. 0 if nothing is finite and non-zero, or
        any relevance is infinite or NaN.
    """
    sizes = sorted(map(abs, relevances), reverse=True)
    if not sizes or not all(map(math.isfinite, sizes)):
        return 0.0
    usual = sizes[min(max(1, len(sizes) // _LEFT_OUT), len(sizes) - 1)]
    return min(sizes[0], 2 * usual) if usual else sizes[0]


def strengths(relevances: Sequence[float]) -> list[float]:
    """Divide relevances by their scale.

    Args:
        relevances: The numbers.

    Returns:
        One number each, beyond 1 or -1 outside of the scale; all 0 without a scale.
    """
    scale = scale_of(relevances)
    return [relevance / scale if scale else 0.0 for relevance in relevances]


def translucent(strength: float) -> str:
    """A CSS color for light and dark paper: red at 1, blue at -1, nothing at 0."""
    red, green, blue = ink(strength)
    return f"rgba({red},{green},{blue},{_OPAQUE * min(abs(strength), 1.0):.3g})"


def rgb(strength: float) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a color on white paper: red at 1, blue at -1."""
    mix = min(abs(strength), 1.0)
    red, green, blue = (round(_WHITE + mix * (part - _WHITE)) for part in ink(strength))
    return red, green, blue


def opaque(strength: float) -> str:
    """The same in the notation of CSS and ``rich``."""
    red, green, blue = rgb(strength)
    return f"rgb({red},{green},{blue})"


def ink(strength: float) -> tuple[int, int, int]:
    """Red, green and blue of the full color of a sign."""
    return _POSITIVE if strength >= 0 else _NEGATIVE
