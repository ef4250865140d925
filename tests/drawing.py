"""How many examples hypothesis draws of a property."""

from __future__ import annotations

from hypothesis import settings


def examples(number: int) -> settings:
    """So many in the normal run, ten times as many with ``--hypothesis-profile=thorough``."""
    return settings(max_examples=number * settings().max_examples // 100)
