"""Output shared by the commands: tables in a terminal or a pipe, and quiet libraries.

Commands write their files first: a reader that closes its pipe (``| head``) ends the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


_WIDEST = 10_000
"""Width of a file in characters, up to which tables do not wrap."""


def silence_transformers() -> None:
    """Silence progress bars and advice of transformers."""
    from transformers.utils import logging  # noqa: PLC0415

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def print_all(*renderables: RenderableType) -> None:
    """Print renderables one below the other; lines of a file are as long as needed."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:  # a file or a pipe is as wide as its content
        wide = console.options.update(max_width=_WIDEST)
        console.width = max(console.measure(each, options=wide).maximum for each in renderables)
    for each in renderables:
        console.print(each, markup=False)
