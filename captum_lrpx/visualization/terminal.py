"""Explanations in a terminal, and as plain text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from captum_lrpx.visualization.characters import readable
from captum_lrpx.visualization.colors import opaque, scale_of, strengths
from captum_lrpx.visualization.pictures import picture_blocks, regions
from captum_lrpx.visualization.pieces import pieces, unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from captum_lrpx.visualization.pieces import Drawable

__all__ = [
    "closing_lines",
    "heat_map",
    "inputs",
    "legend",
    "number_table",
    "plain",
    "plain_text",
    "relevance_table",
    "source",
    "styles",
    "summary",
    "terminal",
]

_WIDE = 10_000

VISIBLE = 0.1
"""Share of the scale from which a negative relevance is underlined."""


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


def heat_map(explanation: Drawable) -> Text:
    """Draw the tokens in color, for a terminal.

    Args:
        explanation: The explanation.

    Returns:
        A ``rich`` text: red for positive relevance, blue and underlined for negative. Tokens that
        share a character are drawn as one.
    """
    text = Text()
    shown = pieces(explanation)
    for piece, style in zip(shown, styles([each.relevance for each in shown]), strict=True):
        text.append(piece.gap).append(piece.drawn, style)
    return text


def legend(explanation: Drawable) -> str:
    """Explain the colors, in one line; empty if there are none.

    Args:
        explanation: The explanation.

    Returns:
        The scale, and the marks of negative relevances and those beyond the scale.
    """
    relevances = [piece.relevance for piece in pieces(explanation)]
    scale = scale_of(relevances)
    if not scale:
        return ""
    beyond = "; bold: beyond the scale" if max(map(abs, relevances)) > scale else ""
    return f"full color at {scale:.4g}; red: for the target; blue, underlined: against{beyond}"


def relevance_table(explanation: Drawable) -> Table:
    """List the relevances as numbers, for a terminal.

    Args:
        explanation: The explanation.

    Returns:
        A ``rich`` table with a row per token; tokens that share a character have one row.
    """
    table = Table("position", unit(explanation), "relevance", box=None, pad_edge=False)
    table.columns[0].justify = table.columns[2].justify = "right"
    for piece in pieces(explanation):
        table.add_row(piece.place, Text(piece.label), f"{piece.relevance:+.4f}")
    return table


def summary(explanation: Drawable) -> str:
    """The explained value and the tokens' share of it, in one line."""
    return (
        f"{readable(explanation.target)} = {explanation.value:+.4f}   "
        f"sum of relevances {explanation.sum:+.4f}   delta {explanation.delta:+.4f}"
    )


def inputs(explanation: Drawable) -> str:
    """The sum of the relevances of each of several inputs, in one line; empty for one text."""
    return "   ".join(f"{readable(name)} {sum_:+.4f}" for name, sum_ in explanation.sums.items())


def source(explanation: Drawable) -> str:
    """Method and model, in one line."""
    return readable(f"{explanation.method} on {explanation.model}")


def closing_lines(explanation: Drawable) -> tuple[str, ...]:
    """Lines below the relevances: summary, ranks, source, and checks."""
    lines = (
        summary(explanation),
        inputs(explanation),
        readable(explanation.standing),
        source(explanation),
        readable(explanation.certification),
    )
    return tuple(line for line in lines if line)


def terminal(explanation: Drawable) -> Group:
    """Combine heat map, legend and closing lines, for a terminal.

    Args:
        explanation: The explanation.

    Returns:
        A group for ``rich`` to print.
    """
    lines = filter(None, (legend(explanation), *closing_lines(explanation)))
    pictures = (picture_blocks(explanation, region) for region in regions(explanation))
    return Group(*pictures, heat_map(explanation), *map(Text, lines))


def plain(explanation: Drawable) -> str:
    """List the relevances as plain text, without color.

    Args:
        explanation: The explanation.

    Returns:
        A table and the closing lines, without trailing blanks.
    """
    return "\n".join([plain_text(relevance_table(explanation)), "", *closing_lines(explanation)])


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
