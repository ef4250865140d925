"""Report of filtered samples: counts and lengths."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Lengths", "Report"]


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
