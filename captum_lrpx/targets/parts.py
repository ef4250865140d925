"""Tokens of a part of a text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from captum_lrpx.targets.place import without_blanks

if TYPE_CHECKING:
    from captum_lrpx.targets.encoding import Encoding


def span_of(encoding: Encoding, span: str | tuple[int, int]) -> tuple[int, int]:
    """Find the tokens of a part of a text.

    Args:
        encoding: The text.
        span: The part (its last occurrence), or the indices ``(first, stop)``.

    Returns:
        The indices, counted from the front.

    Raises:
        ValueError: If the part does not occur, cuts through a token, or starts with the
            first token, which no token comes before.
        IndexError: If an index is out of range.
    """
    if isinstance(span, str):
        first, stop = _tokens_of(encoding, span)
    else:
        length = len(encoding.ids)
        first, stop = (index + length if index < 0 else index for index in span)
        if not 0 <= first < length or not first < stop <= length:
            raise IndexError(f"The span {span} is empty or out of range for {length} tokens.")
    if first == 0:
        raise ValueError(
            "The span starts with the first token, which no token comes before: start it later, or "
            "put a special token in front (`first_token`)."
        )
    return first, stop


def places_of(encoding: Encoding, part: str, end: Literal["start", "end"]) -> list[int]:
    """Find where a part of a question's context starts or ends.

    Args:
        encoding: The text; its context is the second text of a pair, or all of it.
        part: One or more words, as in the text.
        end: Whether to return the first or the last token.

    Returns:
        The index of that token for each occurrence of the part as whole words.
    """
    words = part.strip()
    if not words:
        return []
    places = []
    # In scripts without blanks a part of a run of letters may be a word.
    left, right = (
        r"\b" if end.isalnum() and not without_blanks(end) else "" for end in (words[0], words[-1])
    )
    for found in re.finditer(f"{left}{re.escape(words)}{right}", encoding.text):
        start, stop = found.span()
        inside = [index for index, (a, b) in enumerate(encoding.offsets) if a < stop and b > start]
        if inside and start >= encoding.second:
            places.append(inside[0 if end == "start" else -1])
    return places


def _tokens_of(encoding: Encoding, part: str) -> tuple[int, int]:
    """Tokens of the last occurrence of a part of the text."""
    words = part.strip()
    start = encoding.text.rfind(words)
    if start < 0 or not words:
        raise ValueError(f"The span {part!r} does not occur in the text {encoding.text!r}.")
    stop = start + len(words)
    inside = [
        index for index, (a, b) in enumerate(encoding.offsets) if a < b and a < stop and b > start
    ]
    first, last = inside[0], inside[-1]
    if encoding.offsets[first][0] < start or encoding.offsets[last][1] > stop:
        covered = encoding.text[encoding.offsets[first][0] : encoding.offsets[last][1]]
        raise ValueError(f"The span {part!r} cuts through a token: its tokens cover {covered!r}.")
    return first, last + 1
