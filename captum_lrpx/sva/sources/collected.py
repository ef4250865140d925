"""Result of reading a source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from captum_lrpx.sva.sample_report import Report

if TYPE_CHECKING:
    from captum_lrpx.sva.samples import Sample

__all__ = ["Collected"]


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
