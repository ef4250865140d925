"""The tokens with the most relevance."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


_RANKINGS: dict[str, Callable[[float], float]] = {
    "absolute": abs,
    "positive": float,
    "negative": lambda relevance: -relevance,
}


class TokenRelevance(NamedTuple):
    """One token (or word) of an explanation.

    Attributes:
        position: Its index among the entries.
        label: The token as in the text; a special one by its name.
        relevance: Its relevance.
    """

    position: int
    label: str
    relevance: float


def largest(
    labels: Iterable[str], relevances: Sequence[float], k: int, by: str
) -> tuple[TokenRelevance, ...]:
    """Return at most ``k`` tokens, most relevant first; ties keep their order.

    Raises:
        ValueError: If ``k`` is negative or ``by`` is unknown.
    """
    if k < 0:
        raise ValueError(f"k is a number of tokens, not {k}.")
    if by not in _RANKINGS:
        raise ValueError(f"`by` must be one of {', '.join(_RANKINGS)}, not {by!r}.")
    rank = _RANKINGS[by]
    entries = map(TokenRelevance, range(len(relevances)), labels, relevances)
    return tuple(heapq.nlargest(k, entries, key=lambda entry: rank(entry.relevance)))
