"""Table of several explanations of one text: a row per token, a column per explanation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from captum_lrpx.characters import readable
from captum_lrpx.explanation.pieces import pieces, unit
from captum_lrpx.visualization.colors import strengths, translucent
from captum_lrpx.visualization.console import number_table, styles
from captum_lrpx.visualization.markup import LABEL, NUMBER, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from captum_lrpx.explanation.pieces import Piece
    from captum_lrpx.explanation.record import Explanation


_DIGITS = 4
_GAP = 2
"""Blanks between two columns in a terminal."""


@dataclass(frozen=True)
class Matrix:
    """Relevances of the same tokens in several explanations.

    Attributes:
        unit: ``"token"`` or ``"word"``.
        rows: The pieces of the text, as drawn.
        names: A name for each explanation.
        columns: Relevance of each piece in each explanation.
        totals: Name and numbers of the last rows: sum, delta and value of each explanation.
    """

    unit: str
    rows: Sequence[Piece]
    names: Sequence[str]
    columns: Sequence[Sequence[float]]
    totals: Sequence[tuple[str, Sequence[float]]]

    def html(self) -> str:
        """The table as HTML, each column colored on its own scale."""
        heads = [("position", NUMBER), (self.unit, LABEL), *((name, NUMBER) for name in self.names)]
        columns = [
            [
                (_number(value), f"{NUMBER};background:{translucent(strength)}")
                for value, strength in zip(column, strengths(column), strict=True)
            ]
            for column in self.columns
        ]
        rows = [
            [(piece.place, NUMBER), (piece.label, LABEL), *cells]
            for piece, *cells in zip(self.rows, *columns, strict=True)
        ]
        rows += [
            [("", NUMBER), (name, LABEL), *((_number(value), NUMBER) for value in values)]
            for name, values in self.totals
        ]
        return table(heads, rows)

    def terminal(self) -> Table:
        """The table for a terminal, each column colored on its own scale."""
        shown = number_table("position", self.unit, *self.names, left=1)
        columns = [map(Text, map(_number, column), styles(column)) for column in self.columns]
        for piece, *cells in zip(self.rows, *columns, strict=True):
            shown.add_row(piece.place, Text(piece.label), *cells)
        for name, values in self.totals:
            shown.add_row("", name, *map(_number, values))
        return shown

    def split(self, width: int) -> list[Matrix]:
        """Split the matrix into parts that fit a width, each with all rows and some of the columns.

        Args:
            width: Characters of a line.

        Returns:
            The parts in order, with at least one column each.
        """
        labels = [self.unit, *(piece.label for piece in self.rows), *(n for n, _ in self.totals)]
        used = len("position") + _GAP + max(map(cell_len, labels))
        parts: list[list[int]] = [[]]
        room = width - used
        for index, name in enumerate(self.names):
            values = [*self.columns[index], *(values[index] for _, values in self.totals)]
            need = _GAP + max(
                [cell_len(readable(name)), *(len(_number(value)) for value in values)]
            )
            if need > room and parts[-1]:
                parts.append([])
                room = width - used
            parts[-1].append(index)
            room -= need
        return [
            replace(
                self,
                names=[self.names[index] for index in part],
                columns=[self.columns[index] for index in part],
                totals=[(name, [values[index] for index in part]) for name, values in self.totals],
            )
            for part in parts
        ]


def matrix_of(explanations: Sequence[Explanation], names: Sequence[str]) -> Matrix:
    """Make the matrix of explanations of the same tokens.

    Args:
        explanations: At least one.
        names: A name for each.
    """
    drawn = [pieces(explanation) for explanation in explanations]
    return Matrix(
        unit(explanations[0]),
        drawn[0],
        names,
        [[piece.relevance for piece in column] for column in drawn],
        [
            ("sum", [explanation.sum for explanation in explanations]),
            ("delta", [explanation.delta for explanation in explanations]),
            ("value", [explanation.value for explanation in explanations]),
        ],
    )


def _number(value: float) -> str:
    return f"{value:+.{_DIGITS}f}"
