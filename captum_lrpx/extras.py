"""Packages that only an extra of this package installs, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["imported"]


def imported(module: str, message: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: Its name.
        message: Purpose and way to install it, for the error.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(message) from error
