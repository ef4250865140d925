"""Text as readers see it: whole characters, and nothing invisible."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BLANK", "NEWLINE", "SKIN_TONES", "character_runs", "joined", "readable"]

NEWLINE = "↵"
BLANK = "␣"
_TAB = "⇥"

_JOINER = "\N{ZERO WIDTH JOINER}"
_INVISIBLE = frozenset((_JOINER, "\N{ZERO WIDTH NON-JOINER}"))
_VIRAMA = 9
"""Canonical combining class of a virama, which joins two consonants of an Indic script."""

_TAGS = range(0xE0020, 0xE0080)
SKIN_TONES = range(0x1F3FB, 0x1F400)
_FLAG_LETTERS = "".join(map(chr, range(0x1F1E6, 0x1F200)))
_HANGUL_LEADING = (range(0x1100, 0x1160), range(0xA960, 0xA980))
_HANGUL_FOLLOWING = (range(0x1160, 0x1200), range(0xD7B0, 0xD800))


def readable(text: str) -> str:
    """Convert a text to one line, with everything invisible in it shown.

    Line breaks, tabs and a text of nothing but blanks are shown as signs. Control characters,
    unassigned ones, and those that change the direction of writing are escaped; joiners
    stay between characters.

    Args:
        text: Any text.

    Returns:
        The text to show. It can neither command a terminal nor reorder a page.
    """
    text = text.replace("\r\n", "\n").replace("\n", NEWLINE).replace("\t", _TAB)
    if text and not text.strip(" "):
        return BLANK * len(text)
    return "".join(
        char if _is_shown(char) or (place and _is_joiner(char)) else repr(char)[1:-1]
        for place, char in enumerate(text)
    )


def joined(text: str, place: int) -> bool:
    """Whether the characters before and after a place look like one character.

    Accents, vowel signs, joined emoji, skin tones, flags, Hangul letters of one syllable, and
    consonants joined by a virama: the clusters of Unicode's annex 29, from properties in
    ``unicodedata``.

    Args:
        text: The text.
        place: An index into it.

    Returns:
        Whether a mark between the two would split a character. False at both ends of the text.
    """
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if unicodedata.category(before) == "Cc" or before.isspace():
        return before == "\r" and after == "\n"
    if _extends(after) or before == _JOINER:
        return True
    if unicodedata.combining(before) == _VIRAMA:
        return unicodedata.category(after) == "Lo"
    if after in _FLAG_LETTERS:
        earlier = text[:place]
        return (place - len(earlier.rstrip(_FLAG_LETTERS))) % 2 == 1
    leading = _within(before, _HANGUL_LEADING)
    return (leading and _within(after, _HANGUL_LEADING)) or (
        _within(after, _HANGUL_FOLLOWING) and unicodedata.name(before, "").startswith("HANGUL")
    )


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
        placed = start < end and not special[index]
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


def _extends(char: str) -> bool:
    """Whether a character belongs to the preceding one."""
    return unicodedata.category(char)[0] == "M" or _is_joiner(char) or ord(char) in SKIN_TONES


def _is_joiner(char: str) -> bool:
    return char in _INVISIBLE or ord(char) in _TAGS


def _is_shown(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"


def _within(char: str, ranges: tuple[range, ...]) -> bool:
    return any(ord(char) in part for part in ranges)
