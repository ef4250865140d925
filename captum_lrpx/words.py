"""Words of a text, and the tokens of each word."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from captum_lrpx.characters import SKIN_TONES, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Span", "added", "check_spans", "extent", "token_runs", "word_spans"]

Span = tuple[int, int]
"""``(start, end)``: characters of a text, or tokens; the end is not included."""

_INNER = frozenset("'\N{RIGHT SINGLE QUOTATION MARK}.-")
_WORD = re.compile(r"w+(?:iw+)*|[pi]+|ec*")


def word_spans(text: str) -> tuple[Span, ...]:
    """Find the words of a text.

    A word is a run of letters and digits, apostrophes, hyphens and full stops inside it included
    (``don't``, ``well-known``, ``3.14``); a run of other marks is also a word, and so is each
    pictograph, with everything that belongs to it (skin tones, joined figures, the two letters of a
    flag). The rules depend on no language: in scripts without blanks, whole phrases count as words.

    Args:
        text: The text.

    Returns:
        The words in order, ``(start, end)`` characters each, with only blanks between them.
    """
    kinds: list[str] = []
    for place, character in enumerate(text):
        category = unicodedata.category(character)
        if character.isspace():
            kind = " "
        elif character in _INNER:
            kind = "i"
        elif category == "So" or ord(character) in SKIN_TONES:
            kind = "c" if kinds and kinds[-1] in "ec" and joined(text, place) else "e"
        elif category[0] in "PS":
            kind = "p"
        elif (category[0] == "M" or category == "Cf") and kinds and kinds[-1] != " ":
            # accents, joiners: part of the preceding character
            kind = "c" if kinds[-1] == "e" else kinds[-1]
        else:
            kind = "w"
        kinds.append(kind)
    return tuple(match.span() for match in _WORD.finditer("".join(kinds)))


def token_runs(
    text: str,
    offsets: Sequence[Span],
    special: Sequence[bool],
    spans: Sequence[Span],
    template: Sequence[bool] | None = None,
) -> tuple[Span, ...]:
    """Group tokens into words.

    A token belongs to the word that it overlaps; a token that overlaps several words joins them.
    Special tokens stand alone, and so do tokens of blanks, unless the next token follows without a
    gap: some tokenizers make the blank before a word a token.

    Args:
        text: The text.
        offsets: ``(start, end)`` characters of each token ``[T]``.
        special: Whether each token is a special one ``[T]``.
        spans: The words, in order.
        template: Whether each token was written by a chat template ``[T]``; words do not mix such
            tokens with others.

    Returns:
        ``(first, last + 1)`` tokens of each word, in order. Every token is in exactly one.

    Raises:
        ValueError: If the spans are empty, overlap, are not in order, or do not lie in the text.
    """
    check_spans(text, spans)
    starts = [start for start, _ in spans]
    ends = [end for _, end in spans]
    runs: list[Span] = []
    before: Span = (0, 0)  # words that the last run overlaps
    for index, (start, end) in enumerate(offsets):
        # An empty token inside a text is part of the next character.
        words = (bisect_right(ends, start), bisect_left(starts, max(end, start + 1)))
        if special[index]:
            words = (0, 0)
        overlaps = words[0] < before[1] and before[0] < words[1]
        blank = before[0] >= before[1] and _leads_to(text, offsets, special, index)
        apart = template is not None and index > 0 and template[index] != template[index - 1]
        if runs and not apart and (overlaps or blank):
            runs[-1] = (runs[-1][0], index + 1)
            before = (min(before[0], words[0]), max(before[1], words[1])) if overlaps else words
        else:
            runs.append((index, index + 1))
            before = words
    return tuple(runs)


def _leads_to(text: str, offsets: Sequence[Span], special: Sequence[bool], index: int) -> bool:
    """Whether the previous token is the blank in front of this one (not a line break or tab)."""
    if index == 0 or special[index - 1] or special[index]:
        return False
    start, end = offsets[index - 1]
    return start < end == offsets[index][0] and not text[start:end].strip(" ")


def added(special: Sequence[bool], template: Sequence[bool] | None) -> list[bool]:
    """Whether each token is special or written by a chat template, and none of the text itself.

    Args:
        special: Whether each token is a special one ``[T]``.
        template: Whether each token was written by a chat template ``[T]``; None without one.
    """
    return [a or b for a, b in zip(special, template or special, strict=True)]


def extent(places: Sequence[Span]) -> Span:
    """From the first to the last of some characters, leaving out empty places if others exist."""
    filled = [(start, end) for start, end in places if start < end] or places
    return min(start for start, _ in filled), max(end for _, end in filled)


def check_spans(text: str, spans: Sequence[Span]) -> None:
    """Refuse spans that are empty, overlap, are not in order, or do not lie in a text.

    Raises:
        ValueError: If any span does.
    """
    last = 0
    for start, end in spans:
        if not last <= start < end <= len(text):
            raise ValueError(
                f"({start}, {end}) is no word of a text of {len(text)} characters after {last}: "
                "give spans that are not empty, in order, and do not overlap."
            )
        last = end
