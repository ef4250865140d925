"""What a source gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from captum_lrpx.sva.sample_report import Report

if TYPE_CHECKING:
    from captum_lrpx.sva.samples import Sample

__all__ = ["Collected"]


@dataclass(frozen=True)
class Collected:
    """The samples of a source, and what became of the rest.

    Attributes:
        samples: Those kept, in the order of the source.
        counts: ``"given"``, how many were dropped by each reason, and ``"kept"``.
        first_lines: The first line of a file that was dropped for being odd, by its reason.
    """

    samples: tuple[Sample, ...]
    counts: dict[str, int]
    first_lines: dict[str, int] = field(default_factory=dict)

    def report(self) -> Report:
        """The counts, to be printed."""
        return Report(dict(self.counts), None, None, dict(self.first_lines))
