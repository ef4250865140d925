"""Batches of sequences of similar length, and their results in the original order."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["buckets", "in_order"]

T = TypeVar("T")

_BATCH_SHARE: Final = 16
"""Fixed cost of a batch, as a fraction of the largest number of tokens."""


def buckets(
    lengths: Sequence[int], max_tokens: int, max_rows: int | None = None
) -> list[tuple[int, ...]]:
    """Group sequences of similar length into batches of a bounded size, at the least cost.

    A batch is padded to its longest row, so it costs its number of rows times that length,
    plus a fixed cost: a sixteenth of ``max_tokens``. Few large batches
    have much padding, many small batches have many fixed costs; these batches have the least cost
    of all batches in order of length.

    Args:
        lengths: Number of tokens of each sequence.
        max_tokens: Largest number of rows times longest row of a batch, padding included. A longer
            sequence is a batch of one row.
        max_rows: Largest number of rows of a batch. Default: no limit

    Returns:
        The indices of each batch, from the shortest sequences to the longest; sequences of one
        length are in their original order. The same lengths always give the same batches.

    Raises:
        ValueError: If a length or a limit is not positive.

    Examples:
        >>> buckets([7, 2, 3, 2], max_tokens=8)
        [(1, 3), (2,), (0,)]
    """
    for name, limit in (("max_tokens", max_tokens), ("max_rows", max_rows)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} must be positive, not {limit}.")
    for index, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"Sequence {index} has the length {length}: there is nothing in it.")
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    starts = _starts([lengths[index] for index in order], max_tokens, max_rows or len(order))
    return [tuple(order[start:stop]) for start, stop in pairwise((*starts, len(order)))]


def _starts(lengths: Sequence[int], max_tokens: int, max_rows: int) -> list[int]:
    """Start of each batch of sequences in order of length, at the least cost.

    Dynamic programming: the best batches up to a sequence are the best ones up to an earlier one,
    and one more.
    """
    of_a_batch = max(1, max_tokens // _BATCH_SHARE)
    cost = np.zeros(len(lengths) + 1, dtype=np.int64)
    previous = np.zeros(len(lengths) + 1, dtype=np.int64)
    for stop, longest in enumerate(lengths, start=1):
        first = stop - max(1, min(stop, max_rows, max_tokens // longest))
        starts = np.arange(first, stop)[::-1]  # at equal costs the smallest last batch
        costs = cost[starts] + (stop - starts) * longest
        best = int(costs.argmin())
        cost[stop] = costs[best] + of_a_batch
        previous[stop] = starts[best]
    found: list[int] = []
    stop = len(lengths)
    while stop:
        stop = int(previous[stop])
        found.append(stop)
    return found[::-1]


def in_order(batches: Iterable[Sequence[int]], results: Iterable[Iterable[T]]) -> list[T]:
    """Restore the order of the sequences in the results of batches.

    Args:
        batches: The result of :func:`buckets`: the indices of each batch.
        results: For each batch one result per row, in the order of the batch.

    Returns:
        One result per sequence.

    Raises:
        ValueError: If the numbers of results and rows differ.

    Examples:
        >>> in_order([(1, 2), (0,)], [["b", "c"], ["a"]])
        ['a', 'b', 'c']
    """
    found = [
        pair
        for batch, rows in zip(batches, results, strict=True)
        for pair in zip(batch, rows, strict=True)
    ]
    return [result for _, result in sorted(found, key=lambda pair: pair[0])]
