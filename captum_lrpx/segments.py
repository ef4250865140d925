"""Segments of a text: turns, documents, paragraphs, sentences, few-shot examples, lines.

A text is split level by level (a document into sentences, a sentence into words), and each token is
in exactly one segment of a level, so that relevances of segments are lossless sums over tokens.
Characters that take several tokens, or consist of several code points, are never cut.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, TypeAlias

from captum_lrpx.characters import character_runs
from captum_lrpx.extras import imported
from captum_lrpx.names import suggestion
from captum_lrpx.words import Span, added, check_spans, extent, token_runs, word_spans

By: TypeAlias = "str | re.Pattern[str] | Sequence[Span]"
"""One level: the name of a kind, a regular expression, or ``(start, end)`` characters."""

ELSEWHERE = "elsewhere"
SPECIAL = "special"
_REGIONS = {
    "turn": "explain chat messages, whose turns the chat template writes",
    "document": "give them to explain_chat(documents=...)",
    "answer": "explain an answer by explain_chat()",
}
_PATTERNS = {
    "paragraph": re.compile(r"(?:(?!\n[^\S\n]*\n).)+", re.DOTALL),
    "line": re.compile(r"[^\n]+"),
}
_LABEL = re.compile(r"^[^\S\n]*(\w[^\n:]{0,30}:)", re.MULTILINE)


class Region(NamedTuple):
    """A part of a text that is known from its construction.

    Attributes:
        kind: ``"turn"``, ``"document"`` or ``"answer"``.
        name: The role of a turn, the title of a document.
        start: Its first character.
        end: The character after its last.
    """

    kind: str
    name: str
    start: int
    end: int


class Tokens(NamedTuple):
    """The tokens of a text.

    Attributes:
        text: The text.
        offsets: ``(start, end)`` characters of each token ``[T]``.
        special: Whether each token is a special one ``[T]``.
        template: Whether each token was written by a chat template ``[T]``; None without one.
        regions: Parts that are known from the construction of the text.
    """

    text: str
    offsets: Sequence[Span]
    special: Sequence[bool]
    template: Sequence[bool] | None = None
    regions: Sequence[Region] = ()


@dataclass(frozen=True)
class Part:
    """A named group of tokens of a text.

    Attributes:
        kind: The level; ``"elsewhere"`` for tokens in no segment of a level, ``"special"`` for
            special tokens and chat template.
        name: The role of a turn, the title of a document, the matched group of a regular
            expression; empty where the text itself is the name.
        tokens: Indices of the tokens, in order.
        parts: Its parts on the next level.
    """

    kind: str
    name: str
    tokens: tuple[int, ...]
    parts: tuple[Part, ...] = ()


def split(
    tokens: Tokens, by: By | Sequence[By], *, language: str = "en", fold_special: bool = True
) -> tuple[Part, ...]:
    """Split a text, level by level.

    Args:
        tokens: The tokens of the text.
        by: The levels, outermost first, or a single one.
        language: Language of the sentences, as in ``"en"``.
        fold_special: Whether special tokens and chat template form one part, the last, instead of a
            part wherever they occur.

    Returns:
        The parts of the first level in order; every token is in exactly one.

    Raises:
        ValueError: If a level is unknown, or the text has no such parts.
        ImportError: If the package that finds sentences is needed and not installed.
    """
    levels = check_by(by)
    apart = added(tokens.special, tokens.template)
    inside = [index for index, each in enumerate(apart) if not each]
    splitter = _Splitter(tokens, language)
    for level in levels:
        if not isinstance(level, (str, re.Pattern)):
            check_spans(tokens.text, level)
        splitter.require(level, inside)
    parts = list(splitter.parts(inside, levels))
    if inside and not parts:
        raise ValueError(
            f"No token of the text is in a segment by {levels[-1]!r}, but only characters between "
            "tokens: give segments with words."
        )
    special = [index for index, each in enumerate(apart) if each]
    if special and fold_special:
        parts.append(Part(SPECIAL, "(special tokens)", tuple(special)))
    elif special:
        parts += [Part(SPECIAL, "", tuple(run)) for run in _runs(special)]
        parts.sort(key=lambda part: part.tokens[0])
    return tuple(parts)


def check_by(by: By | Sequence[By]) -> tuple[By, ...]:
    """Check the levels of a segmentation.

    Raises:
        ValueError: If there are none, or one is unknown.
    """
    levels: tuple[Any, ...] = (by,) if _is_level(by) else tuple(by)  # type: ignore[arg-type]
    if not levels:
        raise ValueError(f"`by` is empty: give at least one of {', '.join(_KINDS)}.")
    for level in levels:
        if isinstance(level, str) and level not in _KINDS:
            raise ValueError(
                f"There are no segments by {level!r}{suggestion(level, _KINDS)}: give one of "
                f"{', '.join(_KINDS)}, a compiled regular expression, or (start, end) characters."
            )
        if not _is_level(level):
            raise ValueError(
                f"A level of segments is a name, a compiled regular expression, or a sequence of "
                f"(start, end) characters, not {level!r}."
            )
    return levels


def sentence_spans(text: str, language: str = "en") -> tuple[Span, ...]:
    """Find the sentences of a text, without the blanks around them.

    Args:
        text: The text.
        language: Its language, as in ``"en"``.

    Returns:
        ``(start, end)`` characters of each.

    Raises:
        ImportError: If sentencex is not installed.
    """
    sentencex = imported(
        "sentencex", "Sentences need sentencex: pip install 'captum-lrpx[sentences]'."
    )
    found = sentencex.get_sentence_boundaries(language, text)
    return tuple(_stripped(text, each["start_index"], each["end_index"]) for each in found)


class _Splitter:
    """Splits the tokens of one text."""

    def __init__(self, tokens: Tokens, language: str) -> None:
        self.tokens = tokens
        self.language = language
        self.characters = [
            tuple(range(*run))
            for run in character_runs(tokens.text, tokens.offsets, tokens.special)
        ]
        self.character_of = {index: run for run in self.characters for index in run}

    def require(self, level: By, inside: Sequence[int]) -> None:
        """Refuse a level of which the text has no segment."""
        if any(self._found(level, *self._extent(run)) for run in _runs(inside)):
            return
        shown = level.pattern if isinstance(level, re.Pattern) else level
        way = "choose another kind, or give a regular expression"
        raise ValueError(f"The text has no segment by {shown!r}: {_REGIONS.get(str(level), way)}.")

    def parts(self, inside: Sequence[int], levels: Sequence[By]) -> Iterator[Part]:
        """Parts of some tokens, none of which is special or of the template."""
        if not levels:
            return
        if levels[0] in ("word", "token"):
            groups = self._small(levels[0] == "word", inside)
        else:
            groups = self._grouped(inside, levels[0])
        if all(name is None for name, _ in groups):
            yield from self.parts(inside, levels[1:])
            return
        kind = levels[0] if isinstance(levels[0], str) else "span"
        for name, group in groups:
            parts = tuple(self.parts(group, levels[1:]))
            if name is None:
                yield Part(ELSEWHERE, f"({ELSEWHERE})", tuple(group), parts)
            else:
                yield Part(kind, name, tuple(group), parts)

    def _small(self, words: bool, inside: Sequence[int]) -> list[tuple[str | None, list[int]]]:
        """Tokens of each word or character, which has no name."""
        text, offsets, special, template, _ = self.tokens
        runs: Sequence[Sequence[int]] = self.characters
        if words:
            spans = token_runs(text, offsets, special, word_spans(text), template)
            runs = [range(*run) for run in spans]
        wanted = set(inside)
        kept = ([index for index in run if index in wanted] for run in runs)
        return [("", group) for group in kept if group]

    def _grouped(self, inside: Sequence[int], level: By) -> list[tuple[str | None, list[int]]]:
        """Name and tokens of each segment of a level, and of none, in the order of the text."""
        groups: dict[tuple[int, int, str] | None, list[int]] = {}
        for run in _runs(inside):
            found = self._found(level, *self._extent(run))
            ends = [end for _, end, _ in found]
            before: tuple[int, int, str] | None = None
            waiting: list[int] = []  # blanks before the first segment
            for index in run:
                place = self._extent(self.character_of[index])
                key = _at(found, ends, place)
                if key is None and self._is_blank(place):
                    key = before
                    if key is None:
                        waiting.append(index)
                        continue
                groups.setdefault(key, []).extend([*waiting, index])
                waiting, before = [], key
            if waiting:
                groups.setdefault(before, []).extend(waiting)
        named = [(key and key[2], sorted(group)) for key, group in groups.items()]
        return sorted(named, key=lambda item: item[1][0])

    def _found(self, level: By, start: int, end: int) -> list[tuple[int, int, str]]:
        """Segments of a level in a piece of the text: ``(start, end, name)``."""
        if isinstance(level, str) and level in _REGIONS:
            return [
                (region.start, region.end, region.name)
                for region in self.tokens.regions
                if region.kind == level and region.start < end and start < region.end
            ]
        if level in ("word", "token"):
            return [] if self._is_blank((start, end)) else [(start, end, "")]
        if not isinstance(level, (str, re.Pattern)):
            return [(a, b, "") for a, b in level if a < end and start < b]
        piece = self.tokens.text[start:end]
        if isinstance(level, re.Pattern):
            found = [(*each.span(), each.lastgroup or "") for each in level.finditer(piece)]
        else:
            found = [(*span, "") for span in self._spans_of(level, piece)]
        return [(start + a, start + b, name) for a, b, name in found if piece[a:b].strip()]

    def _spans_of(self, level: str, text: str) -> Sequence[Span]:
        if level == "sentence":
            return sentence_spans(text, self.language)
        if level == "example":
            return _examples(text)
        return [_stripped(text, *match.span()) for match in _PATTERNS[level].finditer(text)]

    def _extent(self, indices: Sequence[int]) -> Span:
        return extent([self.tokens.offsets[index] for index in indices])

    def _is_blank(self, place: Span) -> bool:
        return not self.tokens.text[slice(*place)].strip()


def _runs(indices: Sequence[int]) -> list[list[int]]:
    """Runs of consecutive indices."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] + 1 == index:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _at(
    found: Sequence[tuple[int, int, str]], ends: Sequence[int], place: Span
) -> tuple[int, int, str] | None:
    """The segment with the largest overlap; the first of them in a tie."""
    best, most = None, 0
    for span in found[bisect_right(ends, place[0]) :]:
        if span[0] >= place[1]:
            break
        overlap = min(span[1], place[1]) - max(span[0], place[0])
        if overlap > most:
            best, most = span, overlap
    return best


def _is_level(by: Any) -> bool:
    """Whether a value is a name, a regular expression, or spans, and no list of levels."""
    return isinstance(by, (str, re.Pattern)) or (
        isinstance(by, Sequence)
        and len(by) > 0
        and all(
            isinstance(span, Sequence)
            and not isinstance(span, str)
            and len(span) == 2
            and all(isinstance(end, Integral) for end in span)
            for span in by
        )
    )


def _stripped(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, start + len(piece.strip()))


def _examples(text: str) -> list[Span]:
    """Few-shot examples: each starts with a line that has the label of the first one (``Q:``)."""
    labels = list(_LABEL.finditer(text))
    starts = [found.start(1) for found in labels if found[1] == labels[0][1]]
    if len(starts) < 2:
        return []
    return [
        _stripped(text, start, end)
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True)
    ]


_KINDS = (*_REGIONS, "paragraph", "example", "line", "sentence", "word", "token")
