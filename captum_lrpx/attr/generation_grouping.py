"""Grouping the entries of an explained continuation: words, characters, special tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from captum_lrpx.attr.generation_storage import changed
from captum_lrpx.explanation.grouping import grouped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from captum_lrpx.attr.generation_result import LLMRelevanceResult
    from captum_lrpx.explanation import Explanation
    from captum_lrpx.words import Span


def text_of(record: Explanation, span: Span) -> str:
    """Text of a range of entries; their names if they are not in the text."""
    first, stop = span
    places = [(start, end) for start, end in record.offsets[first:stop] if start < end]
    if not places:
        return "".join(record.tokens[first:stop])
    return record.text[min(start for start, _ in places) : max(end for _, end in places)]


def grouped_columns(
    result: LLMRelevanceResult, groups: Sequence[Sequence[int]]
) -> LLMRelevanceResult:
    """A result with one entry per group of entries and unchanged rows.

    Args:
        result: The result.
        groups: Indices of entries, each in exactly one group; no group has some of both prompt and
            continuation.
    """
    length = len(result.shown)
    record = grouped(result.record, groups)
    place_of = {entry: place for place, group in enumerate(groups) for entry in group}
    count = sum(group[0] < length for group in groups)
    return changed(
        result,
        record=record,
        spans=[(place_of[first], place_of[stop - 1] + 1) for first, stop in result.spans],
        shown=[any(result.shown[entry] for entry in group) for group in groups[:count]],
        context_tokens=[
            result.context_tokens[group[0]]
            if len(group) == 1
            else text_of(record, (place, place + 1))
            for place, group in enumerate(groups)
        ],
        context_attr=_summed(result.context_attr, groups, 1),
    )


def rows_of(result: LLMRelevanceResult, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Groups of rows that correspond to groups of entries, if each token has its own row.

    Args:
        result: The result.
        groups: Groups of entry indices; entries of the continuation are in order.

    Returns:
        Groups of rows; one group per row where rows are spans.
    """
    length = len(result.shown)
    single = tuple((entry, entry + 1) for entry in range(length, len(result.labels)))
    if result.spans != single:
        return [[row] for row in range(len(result.spans))]
    return [[entry - length for entry in group] for group in groups if group[0] >= length]


def grouped_rows(result: LLMRelevanceResult, rows: Sequence[Sequence[int]]) -> LLMRelevanceResult:
    """A result with one row per group of rows: their sum.

    Args:
        result: The result.
        rows: Indices of consecutive rows.
    """
    spans = [(result.spans[group[0]][0], result.spans[group[-1]][1]) for group in rows]
    return changed(
        result,
        spans=spans,
        targets=[" plus ".join(result.targets[row] for row in group) for group in rows],
        output_tokens=[
            result.output_tokens[group[0]] if len(group) == 1 else text_of(result.record, span)
            for group, span in zip(rows, spans, strict=True)
        ],
        context_attr=_summed(result.context_attr, rows, 0),
        values=_summed(result.values, rows, 0),
        decomposed=_summed(result.decomposed, rows, 0),
    )


def _summed(values: Tensor, groups: Sequence[Sequence[int]], axis: int) -> Tensor:
    sums = [
        values.index_select(axis, torch.tensor(group, device=values.device)).sum(axis)
        for group in groups
    ]
    return torch.stack(sums, axis)
