"""Tables of results: for a terminal, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.console import RenderableType


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
            [self._marked(place, column, cell) for column, cell in enumerate(row)]
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


class Tables(ABC):
    """Tables of results with notes on their numbers."""

    @abstractmethod
    def grids(self) -> Iterator[Grid]:
        """The tables as text."""

    @abstractmethod
    def notes(self) -> str:
        """Explain the numbers."""

    def tables(self) -> list[RenderableType]:
        """The tables for a terminal."""
        shown: list[RenderableType] = []
        for grid in self.grids():
            shown += [grid.rich(), Text()]
        return [*shown, Text(self.notes())]

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        return "\n".join([*(grid.markdown() for grid in self.grids()), self.notes() + "\n"])


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def latex_table(
    models: Sequence[str], measures: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> str:
    """A LaTeX table: methods x (models x measures).

    Args:
        models: Names of the models.
        measures: Names of the columns of each model.
        rows: By name of the method, the cells, of all models; both are LaTeX.
    """
    heads = [rf"\multicolumn{{{len(measures)}}}{{c}}{{{tex(model)}}}" for model in models]
    columns = [*measures] * len(models)
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["", *heads]) + r" \\",
        " & ".join(["method", *columns]) + r" \\",
        r"\midrule",
        *(" & ".join([name, *cells]) + r" \\" for name, cells in rows.items()),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def tex(text: str) -> str:
    """Escape a text for LaTeX."""
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")
