"""Explained continuations in a terminal, in a notebook, and as a page."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.text import Text

from captum_lrpx.attr.generation_grouping import grouped_rows, rows_of
from captum_lrpx.characters import character_runs, readable
from captum_lrpx.explanation.matrix import Matrix, matrix_of
from captum_lrpx.explanation.page import color_legend, heat_paragraph, origin
from captum_lrpx.explanation.terminal import source
from captum_lrpx.visualization.console import plain_text
from captum_lrpx.visualization.markup import document, folded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from torch import Tensor

    from captum_lrpx.attr.generation_result import LLMRelevanceResult
    from captum_lrpx.explanation import Explanation


_WIDTH = 100
"""Line width of plain text, in characters."""

_FEW = 8
"""Up to this many rows have their heat maps open at first."""


def _by_character(result: LLMRelevanceResult) -> LLMRelevanceResult:
    """Merge the rows of tokens that form one character, for the views."""
    record, length = result.record, len(result.shown)
    runs = character_runs(record.text, record.offsets[length:], record.special[length:])
    groups = [range(first + length, stop + length) for first, stop in runs]
    return grouped_rows(result, rows_of(result, groups))


def terminal(result: LLMRelevanceResult, width: int) -> Iterator[RenderableType]:
    """Tables of the relevances, with one column per row, as many as fit the width."""
    whole = _by_character(result)
    for part in _matrix(whole).split(width):
        yield part.terminal()
        yield Text()
    yield from map(Text, _closing_lines(whole))


def plain(result: LLMRelevanceResult) -> str:
    """The tables as plain text."""
    return "\n".join(plain_text(part) for part in terminal(result, _WIDTH))


def body(result: LLMRelevanceResult) -> str:
    """Heat maps and the table, as HTML with its own style."""
    whole = _by_character(result)
    record, start = whole.record, len(whole.shown)
    shown = [*_closing_lines(whole), "The explained tokens are in bold."]
    lines = "<br>".join(map(html.escape, shown))
    matrix = _matrix(whole)
    rows = [
        folded(
            f"{readable(label)}   {value:+.4f}",
            f"{heat_paragraph(_read(whole, row), span[0])}{color_legend(_read(whole, row))}",
            is_open=len(whole.spans) <= _FEW,
        )
        for row, (label, value, span) in enumerate(
            zip(whole.row_labels, whole.values.tolist(), whole.spans, strict=True)
        )
    ]
    numbers = "relevances in numbers"
    return "\n".join(
        [
            f"<p>{lines}</p>",
            heat_paragraph(record, start),
            color_legend(record),
            *rows,
            folded(numbers, f'<div style="overflow-x:auto">{matrix.html()}</div>', is_open=False),
        ]
    )


def page(result: LLMRelevanceResult) -> str:
    """One page without scripts or links; all text is escaped."""
    footer = f"<footer>{html.escape(readable(origin(result.record)))}</footer>"
    return document(result.record.target, body(result), footer)


def _read(result: LLMRelevanceResult, row: int) -> Explanation:
    """The explanation of a row, up to its explained token."""
    explanation, stop = result.explanation(row), result.spans[row][1]
    return replace(
        explanation,
        tokens=explanation.tokens[:stop],
        ids=explanation.ids[:stop],
        offsets=explanation.offsets[:stop],
        special=explanation.special[:stop],
        relevances=explanation.relevances[:stop],
    )


def _matrix(result: LLMRelevanceResult) -> Matrix:
    rows = range(len(result.spans))
    names = [readable(label) for label in result.row_labels]
    totals = [("sum", result.context_attr.sum(1)), ("delta", result.delta)]
    if not result.values.equal(result.decomposed):
        totals.append(("decomposed", result.decomposed))
    totals.append(("value", result.values))
    matrix = matrix_of([result.explanation(row) for row in rows], names)
    return replace(matrix, totals=[(name, _numbers(values)) for name, values in totals])


def _numbers(values: Tensor) -> list[float]:
    numbers: list[float] = values.double().tolist()
    return numbers


def _closing_lines(result: LLMRelevanceResult) -> list[str]:
    record = result.record
    return [f"{readable(record.target)} = {record.value:+.4f}", source(record)]
