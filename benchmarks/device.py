"""Time and memory of one run: CUDA events and allocations on a GPU, process time on a CPU."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Measurable", "Run"]


class Measurable(Protocol):
    """Something that is run again and again."""

    def seconds(self) -> float:
        """Time of one run."""

    def peak(self) -> float | None:
        """Megabytes that one run adds at its peak: not a number on a CPU, None if it cannot be."""


@dataclass(frozen=True)
class Run:
    """Something that is run in this process.

    Attributes:
        run: What is run.
        device: Where.
    """

    run: Callable[[], object]
    device: torch.device

    def seconds(self) -> float:
        """Time of one run on its device."""
        if self.device.type != "cuda":
            start = time.process_time()
            self.run()
            return time.process_time() - start
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        first.record()
        self.run()
        last.record()
        torch.cuda.synchronize(self.device)
        return float(first.elapsed_time(last)) / 1e3

    def peak(self) -> float | None:
        """Megabytes that one run adds at its peak: not a number on a CPU, None if they do not fit.

        It is run once before, so that what it keeps does not count.
        """
        try:
            self.run()
            if self.device.type != "cuda":
                return float("nan")
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.run()
            torch.cuda.synchronize(self.device)
        except (torch.OutOfMemoryError, MemoryError):
            return None
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20
