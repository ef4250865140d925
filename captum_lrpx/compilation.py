"""Disables ``torch.compile`` while rules are attached."""

from __future__ import annotations

import sys
from typing import Any

import torch

_opened = 0
_stance: Any = None


def without_compiler(step: int) -> None:
    """Let compiled functions run uncompiled while any propagation is open.

    A graph compiled earlier has no rules, and one compiled now would serve this call only.
    Without compiled functions this costs nothing: torch._dynamo is not imported then.
    """
    global _opened, _stance  # noqa: PLW0603 - the compiler's own switch is global
    _opened += step
    if _opened and _stance is None and "torch._dynamo" in sys.modules:
        _stance = torch.compiler.set_stance("force_eager")
    elif not _opened and _stance is not None:
        _stance.__exit__(None, None, None)
        _stance = None
