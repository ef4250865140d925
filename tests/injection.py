"""Failures at chosen places: in the passes of a module, or at a line of the package."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path

import captum_lrpx

PACKAGE = str(Path(captum_lrpx.__file__).parent)


class Failed(BaseException):
    """Not an ``Exception``, as a ``KeyboardInterrupt`` is not."""


FAILURES = [Failed, KeyboardInterrupt, RuntimeError, ValueError, MemoryError, OSError]


class Failure:
    """What is raised, and whether it was."""

    def __init__(self, error):
        self.error = error("injected")
        self.happened = False

    def fail(self):
        self.happened = True
        raise self.error

    def is_reason_for(self, caught):
        """Whether an error is this one, or one that says so."""
        return caught is self.error or "injected" in str(caught)


@contextmanager
def failing(module, moment, error):
    """Let a module fail: before or behind its forward, or in the backward pass."""
    failure = Failure(error)

    def fail(*_):
        failure.fail()

    def fail_in_backward(_module, _inputs, output):
        if getattr(output, "requires_grad", False):
            output.register_hook(fail)

    handle = {
        "before": lambda: module.register_forward_pre_hook(fail),
        "after": lambda: module.register_forward_hook(fail),
        "backward of the output": lambda: module.register_forward_hook(fail_in_backward),
        "backward": lambda: module.register_full_backward_hook(fail),
    }[moment]()
    try:
        yield failure
    finally:
        handle.remove()


CLEANING_UP = {"__exit__", "thaw", "_thaw", "_release", "_close", "release", "_without_compiler"}
"""Functions that put things back. An interrupt inside of them would have to be caught by others,
which could be interrupted as well."""

BETWEEN = (
    "try:",
    "finally:",
    "active.detach()",
    "for handle in handles:",
    "handle.remove()",
    "with",
)
"""Beginnings of lines that come when something was just attached, or is about to be taken off.

A ``with`` statement comes to its first line again when it is left. No real interrupt can arrive in
front of its ``__exit__``, but one that is injected can."""


def interrupted(function, line):
    """Run a function and interrupt it at the n-th line of the package that it comes to.

    Returns:
        What it returned if it came to an end before, else None.
    """
    remaining = line

    def in_package(frame, event, _argument):
        nonlocal remaining
        if event == "line":
            remaining -= 1
            if remaining <= 0 and not _source(frame).startswith(BETWEEN):
                sys.settrace(None)
                raise KeyboardInterrupt
        return in_package

    def enter(frame, _event, _argument):
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name in CLEANING_UP:
            return None
        return None if _inside_clean_up(frame) else in_package

    sys.settrace(enter)
    try:
        return function()
    except KeyboardInterrupt:
        return None
    finally:
        sys.settrace(None)


def _inside_clean_up(frame):
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        if frame.f_code.co_name in CLEANING_UP:
            return True
        frame = frame.f_back
    return False


_sources: dict[str, list[str]] = {}


def _source(frame):
    """The text of the line that is run next."""
    name = frame.f_code.co_filename
    if name not in _sources:
        _sources[name] = Path(name).read_text(encoding="utf-8").splitlines()
    return _sources[name][frame.f_lineno - 1].strip()
