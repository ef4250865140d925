"""A traced pass that tests run and explain by themselves."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from captum_lrpx.traced import TracedPass


@contextmanager
def opened(rules: TracedPass) -> Iterator[TracedPass]:
    """A pass, to be run and explained inside of a ``with`` block."""
    with rules.prepared(), rules.watching():
        yield rules
