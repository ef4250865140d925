"""Relevances of segments: sums over tokens, level by level, and the rest of the value."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from captum_lrpx import segments
from captum_lrpx.characters import readable
from captum_lrpx.explanation import grouping, storage, terminal
from captum_lrpx.explanation.arithmetic import total
from captum_lrpx.visualization.console import plain_text, styles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from captum_lrpx.explanation.record import Explanation
    from captum_lrpx.segments import By, Part
    from captum_lrpx.words import Span


_SHOWN = 60
"""Number of characters of a segment shown in a table."""


@dataclass(frozen=True)
class Segment:
    """A part of a text and its relevance.

    Attributes:
        kind: The level: ``"turn"``, ``"document"``, ``"sentence"``, ...; ``"span"`` for regular
            expressions and given spans, ``"elsewhere"`` for tokens in no segment of the level,
            ``"special"`` for special tokens and chat template.
        name: The role of a turn, the title of a document, the group of a regular expression, or
            empty.
        text: The text from its first to its last token.
        span: ``(start, end)`` characters of it.
        tokens: Indices of its entries in the explanation.
        relevance: The sum of their relevances.
        parts: Its segments on the next level; their relevances sum to its own.
    """

    kind: str
    name: str
    text: str
    span: Span
    tokens: tuple[int, ...]
    relevance: float
    parts: tuple[Segment, ...] = ()

    @property
    def label(self) -> str:
        """The name if there is one, and the text, on one line."""
        if self._collects:
            return self.name
        shown = readable(self.text)
        return f"{self.name}: {shown}" if self.name else shown

    @property
    def _collects(self) -> bool:
        """Whether its tokens come from several places, and have a name in common."""
        return self.kind in (segments.ELSEWHERE, segments.SPECIAL) and bool(self.name)


@dataclass(frozen=True)
class Segments:
    """The relevances of the segments of an explanation.

    ``sum of the segments + sum of the rest + residual = value``: no token is left out or counted
    twice, and the ledger accounts for the rest.

    Attributes:
        explanation: The explanation that was summed.
        parts: The segments of the first level, in order.
        rest: The share of no token, by kind of ledger line (``"bias"``, ``"softmax"``, ...; see
            :class:`captum_lrpx.conservation.Entry`), from the certificate of the explanation;
            without one a single ``"delta"``. For :func:`captum_lrpx.leave_one_out` a single
            ``"interaction"``.
    """

    explanation: Explanation
    parts: tuple[Segment, ...]
    rest: tuple[tuple[str, float], ...]

    @property
    def value(self) -> float:
        """The explained value."""
        return self.explanation.value

    @property
    def sum(self) -> float:
        """Sum of the relevances of the first level, equal to the sum of any other level."""
        return total([part.relevance for part in self.parts])

    @property
    def residual(self) -> float:
        """The share of neither segments nor ledger: rounding."""
        return self.value - self.sum - total([amount for _, amount in self.rest])

    def walk(self) -> Iterator[tuple[int, Segment]]:
        """All segments of all levels with their depth, each before its parts."""
        yield from _walk(self.parts, 0)

    def of(self, kind: str) -> tuple[Segment, ...]:
        """The segments of a kind, wherever they are.

        Args:
            kind: A value of :attr:`Segment.kind`.
        """
        return tuple(segment for _, segment in self.walk() if segment.kind == kind)

    def top(self, k: int = 5, kind: str | None = None) -> tuple[Segment, ...]:
        """Return the segments with the most absolute relevance, most relevant first.

        Args:
            k: Largest number of segments.
            kind: Kind of the segments. Default: the first level.

        Raises:
            ValueError: If ``k`` is negative.
        """
        if k < 0:
            raise ValueError(f"k is a number of segments, not {k}.")
        found = self.parts if kind is None else self.of(kind)
        return tuple(heapq.nlargest(k, found, key=lambda segment: abs(segment.relevance)))

    def level(self, kind: str | None = None) -> Explanation:
        """The segments as an explanation with one entry for each, to draw, store or compare.

        Args:
            kind: The level. Default: the last one, the smallest segments.

        Returns:
            An explanation whose entries are the segments of this level; where a segment has none,
            the smallest available ones.

        Raises:
            ValueError: If there are none of this kind.
        """
        if kind is not None and not self.of(kind):
            known = ", ".join(dict.fromkeys(segment.kind for _, segment in self.walk()))
            raise ValueError(f"There are no segments of the kind {kind!r}, only {known}.")
        chosen = sorted(_cut(self.parts, kind), key=_place)
        result = grouping.grouped(self.explanation, [segment.tokens for segment in chosen])
        tokens, offsets = list(result.tokens), list(result.offsets)
        for index, segment in enumerate(chosen):
            if segment._collects:  # noqa: SLF001 - of the same module
                tokens[index], offsets[index] = segment.name, (0, 0)
        return replace(result, tokens=tuple(tokens), offsets=tuple(offsets))

    # Views ------------------------------------------------------------------------------------

    def to_pandas(self) -> pd.DataFrame:
        """Convert the segments to a data frame, one line for each segment of every level.

        Returns:
            Columns ``depth``, ``kind``, ``name``, ``text``, ``start``, ``end``, ``relevance``, and
            ``share`` of the explained value.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = storage.import_pandas()
        lines = [
            (
                *(depth, segment.kind, segment.name, segment.text, *segment.span),
                segment.relevance,
                segment.relevance / self.value if self.value else float("nan"),
            )
            for depth, segment in self.walk()
        ]
        names = ["depth", "kind", "name", "text", "start", "end", "relevance", "share"]
        frame: pd.DataFrame = pandas.DataFrame(lines, columns=names)
        frame.attrs = {"value": self.value, "rest": dict(self.rest), "residual": self.residual}
        return frame

    def __rich__(self) -> Table:
        """The table, for a terminal."""
        table = Table("relevance", "share", "segment", box=None, pad_edge=False)
        table.columns[0].justify = table.columns[1].justify = "right"
        walked = list(self.walk())
        painted = styles([segment.relevance for _, segment in walked])
        for (depth, segment), style in zip(walked, painted, strict=True):
            label = Text("  " * depth + _shortened(segment.label))
            table.add_row(Text(f"{segment.relevance:+.4f}", style), self._share(segment), label)
        for name, amount in (*self.rest, ("residual", self.residual), ("value", self.value)):
            table.add_row(f"{amount:+.4f}", "", f"({name})")
        return table

    def __str__(self) -> str:
        """The table as plain text, with the explained value below."""
        lines = terminal.summary(self.explanation), terminal.source(self.explanation)
        return "\n".join([plain_text(self.__rich__()), "", *lines])

    def _repr_html_(self) -> str:
        """The heat map of the smallest segments, for a notebook."""
        return self.level()._repr_html_()

    def _share(self, segment: Segment) -> str:
        """Share of a positive value; of a negative one it would reverse the signs."""
        return f"{segment.relevance / self.value:.1%}" if self.value > 0 else ""


def segments_of(
    explanation: Explanation, by: By | Sequence[By], *, language: str, fold_special: bool
) -> Segments:
    """The segments of an explanation; see :meth:`captum_lrpx.Explanation.segments`."""
    tokens = segments.Tokens(
        explanation.text,
        explanation.offsets,
        explanation.special,
        explanation.template,
        explanation.regions or (),
    )
    parts = segments.split(tokens, by, language=language, fold_special=fold_special)
    certificate = explanation.certificate
    if certificate is not None and certificate.ledger_delta is not None:
        rest = tuple((kind, amount) for kind, amount in certificate.ledger_delta if amount)
    else:
        rest = (("delta", explanation.delta),) if explanation.delta else ()
    return Segments(explanation, tuple(_segment(explanation, part) for part in parts), rest)


def _segment(explanation: Explanation, part: Part) -> Segment:
    start, end = grouping.extent(explanation, part.tokens)
    names = [explanation.tokens[index] for index in part.tokens]
    return Segment(
        part.kind,
        part.name,
        explanation.text[start:end] or " ".join(names),
        (start, end),
        part.tokens,
        total([explanation.relevances[index] for index in part.tokens]),
        tuple(_segment(explanation, each) for each in part.parts),
    )


def _walk(parts: Sequence[Segment], depth: int) -> Iterator[tuple[int, Segment]]:
    for part in parts:
        yield depth, part
        yield from _walk(part.parts, depth + 1)


def _cut(parts: Sequence[Segment], kind: str | None) -> Iterator[Segment]:
    """Segments of a kind and, where there are none, the smallest."""
    for part in parts:
        if part.kind == kind or not part.parts:
            yield part
        else:
            yield from _cut(part.parts, kind)


def _place(segment: Segment) -> tuple[bool, int]:
    """Sort key: folded special tokens come last."""
    return segment.kind == segments.SPECIAL and bool(segment.name), segment.tokens[0]


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    half = _SHOWN // 2
    return f"{text[:half]} ... {text[-half:]}"
