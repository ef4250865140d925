"""Drawn pieces of a text: its tokens, merged if they share a character."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from captum_lrpx.characters import BLANK, NEWLINE, character_runs, readable
from captum_lrpx.explanation.arithmetic import total
from captum_lrpx.explanation.grouping import patches
from captum_lrpx.visualization.colors import strengths

if TYPE_CHECKING:
    from captum_lrpx.explanation.record import Explanation


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
    patch = patches(explanation)
    for first, stop in character_runs(text, offsets, explanation.special):
        if patch[first]:
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
        relevance = total(explanation.relevances[first:stop])
        found.append(Piece(readable(label), relevance, first, stop, gap))
    return found


def colored(explanation: Explanation) -> list[tuple[Piece, float]]:
    """The pieces of an explanation, each with its strength on their common scale."""
    shown = pieces(explanation)
    return list(zip(shown, strengths([piece.relevance for piece in shown]), strict=True))


def unit(explanation: Explanation) -> str:
    """Unit of the entries: ``"token"`` or ``"word"``."""
    return "token" if explanation.ids else "word"


def _in_text(place: tuple[int, int]) -> bool:
    return place[0] < place[1]


def _gap(text: str, end: int, start: int) -> str:
    between = text[end:start]
    return "\n" if "\n" in between else " " if between else ""
