"""Text and tables in a terminal, and as plain text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from captum_lrpx.characters import readable
from captum_lrpx.visualization.colors import VISIBLE, opaque, strengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType


_WIDE = 10_000


def styles(relevances: Sequence[float]) -> list[str]:
    """Map each number to a ``rich`` style; sign and end of the scale also show without color.

    Args:
        relevances: The numbers.

    Returns:
        Black on the color; negative relevance underlined, relevance beyond the scale bold.
    """
    return [
        f"{'bold ' * (abs(strength) > 1)}{'underline ' * (strength <= -VISIBLE)}"
        f"black on {opaque(strength)}"
        for strength in strengths(relevances)
    ]


def plain_text(renderable: RenderableType) -> str:
    """Render as ``rich`` does, without color, trailing blanks, and a limit of the width."""
    # In a notebook, rich would otherwise display the captured output as an empty block.
    console = Console(file=io.StringIO(), color_system=None, width=_WIDE, force_jupyter=False)
    with console.capture() as capture:
        console.print(renderable, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))


def number_table(*heads: str, left: int) -> Table:
    """A table of numbers, aligned right except for one column of texts; long cells are folded.

    Args:
        *heads: Names of the columns.
        left: Index of the column of texts.
    """
    table = Table(box=None, pad_edge=False)
    for index, head in enumerate(heads):
        justify: Literal["left", "right"] = "left" if index == left else "right"
        table.add_column(Text(readable(head)), justify=justify, overflow="fold")
    return table
