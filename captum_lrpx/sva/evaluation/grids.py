"""Tables of text: as Markdown and for a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Grid"]

_MARKS = {"bold": ("**", "**"), "underline": ("<u>", "</u>")}


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        title: Its title.
        heads: Names of the columns, of which the first one has the row names.
        rows: The cells.
        styles: ``"bold"`` or ``"underline"`` for the number that a cell begins with, by row and
            column; the other cells are plain.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    styles: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def markdown(self) -> str:
        """A table of Markdown under its title."""
        rows = [
            tuple(self._marked(place, column, cell) for column, cell in enumerate(row))
            for place, row in enumerate(self.rows)
        ]
        lines = [self.heads, ("---", *("---:",) * (len(self.heads) - 1)), *rows]
        body = "\n".join(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in lines)
        return f"**{self.title}**\n\n{body}\n"

    def rich(self) -> Table:
        """A table for a terminal."""
        table = Table(title=Text(self.title), title_justify="left", box=None, pad_edge=False)
        for index, head in enumerate(self.heads):
            table.add_column(Text(head), justify="right" if index else "left", overflow="fold")
        for place, row in enumerate(self.rows):
            table.add_row(*(self._styled(place, column, cell) for column, cell in enumerate(row)))
        return table

    def _marked(self, row: int, column: int, cell: str) -> str:
        style = self.styles.get((row, column))
        if style is None:
            return cell
        number, blank, rest = cell.partition(" ")
        before, after = _MARKS[style]
        return f"{before}{number}{after}{blank}{rest}"

    def _styled(self, row: int, column: int, cell: str) -> Text:
        text = Text(cell)
        style = self.styles.get((row, column))
        if style is not None:
            text.stylize(style, 0, len(cell.partition(" ")[0]))
        return text


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")
