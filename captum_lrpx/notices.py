"""Warnings that point at the user's line that called this package."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Final

_PACKAGE: Final = str(Path(__file__).parent)


def warn(message: str) -> None:
    """Warn at the first caller outside of this package, and so once for each line of user code.

    Args:
        message: The problem, and a remedy.
    """
    level, frame = 1, sys._getframe(1)  # noqa: SLF001 - the public function builds the whole stack
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level + 1)


def _is_inside(filename: str) -> bool:
    # Captum wraps `attribute` for logging, and contextlib enters context managers.
    parts = Path(filename).parts
    return (
        filename.startswith(_PACKAGE)
        or parts[-3:-1] == ("captum", "log")
        or (parts[-1] == "contextlib.py")
    )
