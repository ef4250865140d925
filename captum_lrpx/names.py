"""Suggestions for unknown names."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """``" (did you mean ...?)"``, or an empty string if no known name is similar."""
    alike = difflib.get_close_matches(name, list(known), cutoff=0.6)
    return f" (did you mean {' or '.join(map(repr, alike))}?)" if alike else ""
