"""Filtering of items, with a count for each reason, and reports of the counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from captum_lrpx.sva.samples import Sample


T = TypeVar("T")
S = TypeVar("S")


class DroppedError(Exception):
    """Raised to drop an item; its message is one of the counted reasons."""


def drop_if(condition: bool, reason: str) -> None:
    """Drop the current item if a condition holds.

    Raises:
        DroppedError: If it holds.
    """
    if condition:
        raise DroppedError(reason)


def keep(
    make: Callable[[S], T], items: Iterable[S], reasons: Iterable[str]
) -> tuple[tuple[T, ...], dict[str, int]]:
    """Map items, and count the dropped ones by reason.

    Args:
        make: Maps an item, or raises :class:`DroppedError`.
        items: The items.
        reasons: All reasons, in the order in which they are reported.

    Returns:
        The results, in order, and the counts: ``"given"``, each reason, ``"kept"``.
    """
    counts = {"given": 0, **dict.fromkeys(reasons, 0), "kept": 0}
    made = []
    for item in items:
        counts["given"] += 1
        try:
            made.append(make(item))
        except DroppedError as dropped:
            counts[str(dropped)] += 1
        else:
            counts["kept"] += 1
    return tuple(made), counts


@dataclass(frozen=True)
class Lengths:
    """Lengths of several things, in tokens."""

    mean: float
    min: int
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths | None:
        """Summarize lengths; ``None`` if there are none."""
        if not lengths:
            return None
        return cls(sum(lengths) / len(lengths), min(lengths), max(lengths))

    def __str__(self) -> str:
        return f"mean {self.mean:.1f}, min {self.min}, max {self.max}"


@dataclass(frozen=True)
class Report:
    """Numbers of samples kept, and dropped by reason, and lengths of the inputs.

    Attributes:
        counts: ``"given"``, the number dropped by each filter, and ``"kept"``.
        input_tokens: Lengths of the inputs, special tokens included; ``None`` without samples.
        evidence_tokens: Number of evidence tokens per input; ``None`` without samples.
        first_lines: First line of a file that was dropped for each reason, where known.
    """

    counts: dict[str, int]
    input_tokens: Lengths | None
    evidence_tokens: Lengths | None
    first_lines: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"kept {self.counts['kept']} of {self.counts['given']} samples"]
        lines += [
            f"  dropped {count}: {name}{self._first(name)}"
            for name, count in self.counts.items()
            if count and name not in ("given", "kept")
        ]
        if self.input_tokens and self.evidence_tokens:
            lines += [
                f"input tokens: {self.input_tokens}",
                f"evidence tokens: {self.evidence_tokens}",
            ]
        return "\n".join(lines)

    def _first(self, name: str) -> str:
        line = self.first_lines.get(name)
        return "" if line is None else f" (first: line {line})"


@dataclass(frozen=True)
class Collected:
    """Samples of a source, and counts of the dropped ones.

    Attributes:
        samples: The samples kept, in the order of the source.
        counts: ``"given"``, the number dropped for each reason, and ``"kept"``.
        first_lines: First line of a file that was dropped as malformed, by reason.
    """

    samples: tuple[Sample, ...]
    counts: dict[str, int]
    first_lines: dict[str, int] = field(default_factory=dict)

    def report(self) -> Report:
        """Report of the counts."""
        return Report(dict(self.counts), None, None, dict(self.first_lines))
