"""Drawn pieces of a text: its tokens, merged if they share a character."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from captum_lrpx.visualization.characters import BLANK, NEWLINE, joined, readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captum_lrpx.explanation import Explanation


class Piece(NamedTuple):
    """One or more tokens that are drawn as one.

    Attributes:
        label: Their text, readable.
        relevance: The sum of their relevances.
        first: Position of the first of them.
        stop: Position after the last.
        gap: Text before it: a blank, a line break, or nothing inside a word.
    """

    label: str
    relevance: float
    first: int
    stop: int
    gap: str

    @property
    def drawn(self) -> str:
        """The label within the text, with plain blanks and line breaks."""
        if not self.label.strip(BLANK):
            return " " * len(self.label)
        return f"{self.label}\n" if self.label.endswith(NEWLINE) else self.label

    @property
    def place(self) -> str:
        """Position, or range of positions."""
        return str(self.first) if self.stop - self.first == 1 else f"{self.first}-{self.stop - 1}"


def pieces(explanation: Explanation) -> list[Piece]:
    """Divide an explanation into drawn pieces.

    A character may take several tokens (an emoji, a Chinese character, a letter and its accent);
    they are one piece. Every token is in exactly one piece; patches of an image are in none.

    Args:
        explanation: The explanation.

    Returns:
        The pieces in order.
    """
    text, offsets, labels = explanation.text, explanation.offsets, explanation.labels
    found: list[Piece] = []
    end = 0
    patches = [(part.first, part.stop) for part in explanation.parts or () if part.grid]
    for first, stop in character_runs(text, offsets, explanation.special):
        if any(start <= first < end for start, end in patches):
            continue
        places = [offsets[index] for index in range(first, stop) if _in_text(offsets[index])]
        if places:
            start = min(place[0] for place in places)
            gap = _gap(text, end, start) if found else ""
            alone = stop - first == 1
            end = max(place[1] for place in places)
            label = labels[first] if alone else text[start:end]
        else:
            gap, label = " " if found else "", "".join(labels[first:stop])
        if found and not gap and not _in_text(offsets[first - 1]):
            gap = " "  # after a token outside of the text
        relevance = _sum(explanation.relevances[first:stop])
        found.append(Piece(readable(label), relevance, first, stop, gap))
    return found


def character_runs(
    text: str, offsets: Sequence[tuple[int, int]], special: Sequence[bool]
) -> list[tuple[int, int]]:
    """Find runs of tokens that share characters.

    Args:
        text: The text.
        offsets: ``(start, end)`` characters of each token ``[T]``.
        special: Whether each token is a special one; these stand alone ``[T]``.

    Returns:
        ``(first, last + 1)`` tokens of each run, in order. Every token is in exactly one.
    """
    runs: list[tuple[int, int]] = []
    covered = (0, 0)  # characters of the last run
    for index, (start, end) in enumerate(offsets):
        placed = _in_text((start, end)) and not special[index]
        if (
            placed
            and covered[0] < covered[1]
            and end > covered[0]
            and (start < covered[1] or (start == covered[1] and joined(text, start)))
        ):
            runs[-1] = (runs[-1][0], index + 1)
            covered = (min(covered[0], start), max(covered[1], end))
        else:
            runs.append((index, index + 1))
            covered = (start, end) if placed else (0, 0)
    return runs


def unit(explanation: Explanation) -> str:
    """Unit of the entries: ``"token"`` or ``"word"``."""
    return "token" if explanation.ids else "word"


def _in_text(place: tuple[int, int]) -> bool:
    return place[0] < place[1]


def _gap(text: str, end: int, start: int) -> str:
    between = text[end:start]
    return "\n" if "\n" in between else " " if between else ""


def _sum(relevances: Sequence[float]) -> float:
    """Sum, rounded once if it is finite."""
    return math.fsum(relevances) if all(map(math.isfinite, relevances)) else sum(relevances)
