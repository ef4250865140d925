"""Explanations in a terminal, and as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from captum_lrpx.characters import readable
from captum_lrpx.explanation.pictures import picture_blocks, regions
from captum_lrpx.explanation.pieces import pieces, unit
from captum_lrpx.visualization.colors import scale_of
from captum_lrpx.visualization.console import plain_text, styles

if TYPE_CHECKING:
    from captum_lrpx.explanation.record import Explanation


def heat_map(explanation: Explanation) -> Text:
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


def legend(explanation: Explanation) -> str:
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


def relevance_table(explanation: Explanation) -> Table:
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


def summary(explanation: Explanation) -> str:
    """The explained value and the tokens' share of it, in one line."""
    return (
        f"{readable(explanation.target)} = {explanation.value:+.4f}   "
        f"sum of relevances {explanation.sum:+.4f}   delta {explanation.delta:+.4f}"
    )


def inputs(explanation: Explanation) -> str:
    """The sum of the relevances of each of several inputs, in one line; empty for one text."""
    return "   ".join(f"{readable(name)} {sum_:+.4f}" for name, sum_ in explanation.sums.items())


def source(explanation: Explanation) -> str:
    """Method and model, in one line."""
    return readable(f"{explanation.method} on {explanation.model}")


def closing_lines(explanation: Explanation) -> tuple[str, ...]:
    """Lines below the relevances: summary, ranks, source, and checks."""
    lines = (
        summary(explanation),
        inputs(explanation),
        readable(explanation.standing),
        source(explanation),
        readable(explanation.certification),
    )
    return tuple(line for line in lines if line)


def terminal(explanation: Explanation) -> Group:
    """Combine heat map, legend and closing lines, for a terminal.

    Args:
        explanation: The explanation.

    Returns:
        A group for ``rich`` to print.
    """
    lines = filter(None, (legend(explanation), *closing_lines(explanation)))
    pictures = (picture_blocks(explanation, region) for region in regions(explanation))
    return Group(*pictures, heat_map(explanation), *map(Text, lines))


def plain(explanation: Explanation) -> str:
    """List the relevances as plain text, without color.

    Args:
        explanation: The explanation.

    Returns:
        A table and the closing lines, without trailing blanks.
    """
    return "\n".join([plain_text(relevance_table(explanation)), "", *closing_lines(explanation)])
