"""Drawn pieces of a text: its tokens, merged if they share a character."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from captum_lrpx.visualization.characters import BLANK, NEWLINE, joined, readable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Drawable", "Piece", "Region", "character_runs", "pieces", "total", "unit"]


class Region(Protocol):
    """Entries of one of several inputs; :class:`captum_lrpx.targets.scene.Part` describes them."""

    @property
    def name(self) -> str:
        """Name of the input."""

    @property
    def first(self) -> int:
        """Its first entry."""

    @property
    def stop(self) -> int:
        """The entry after its last one."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of an image's patches."""

    @property
    def picture(self) -> str | None:
        """The image as PNG, in base64."""


class Drawable(Protocol):
    """Interface of an explanation for the views, see :class:`captum_lrpx.Explanation`."""

    @property
    def text(self) -> str:
        """The text."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens as the tokenizer writes them."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The tokens as in the text."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids; empty for words."""

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Place of each token in the text."""

    @property
    def special(self) -> tuple[bool, ...]:
        """Whether each token is a special one."""

    @property
    def relevances(self) -> tuple[float, ...]:
        """Relevance of each token."""

    @property
    def value(self) -> float:
        """The explained value."""

    @property
    def sum(self) -> float:
        """Sum of the relevances."""

    @property
    def sums(self) -> dict[str, float]:
        """Sum of the relevances of each of several inputs."""

    @property
    def parts(self) -> tuple[Region, ...] | None:
        """Assignment of entries to several inputs."""

    @property
    def delta(self) -> float:
        """Explained value minus the sum of the relevances."""

    @property
    def target(self) -> str:
        """The target in words."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def recipe(self) -> str | None:
        """Name of the rules."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the method."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def revision(self) -> str | None:
        """Commit of the model."""

    @property
    def dtype(self) -> str:
        """Precision."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages."""

    @property
    def standing(self) -> str:
        """Ranks and probabilities of the explained outputs, in one line; empty without them."""

    @property
    def certification(self) -> str:
        """The checks in one line; empty if nothing was checked."""


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


def pieces(explanation: Drawable) -> list[Piece]:
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
        relevance = total(explanation.relevances[first:stop])
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


def total(values: Iterable[float]) -> float:
    """Sum, rounded once; infinite or NaN where the values or their sum are."""
    values = list(values)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # too large, or infinities of both signs
        return sum(values)


def unit(explanation: Drawable) -> str:
    """Unit of the entries: ``"token"`` or ``"word"``."""
    return "token" if explanation.ids else "word"


def _in_text(place: tuple[int, int]) -> bool:
    return place[0] < place[1]


def _gap(text: str, end: int, start: int) -> str:
    between = text[end:start]
    return "\n" if "\n" in between else " " if between else ""
