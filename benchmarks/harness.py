"""Honest timings: interleaved repetitions in one process, and peak memory in a child process.

Nothing here knows what is measured. Figures are ratios to the first contender of the same run, so
that they mean the same on another machine, and under other load.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Timing", "child_peak", "interleaved", "machine", "peak_of"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Timing:
    """Seconds of the repetitions of one contender.

    Attributes:
        seconds: One entry per repetition.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    def ratio(self, base: Timing) -> float:
        """Median over the repetitions of the ratio to the neighbour in time."""
        pairs = zip(self.seconds, base.seconds, strict=True)
        return statistics.median(mine / other for mine, other in pairs)


def interleaved(
    contenders: dict[str, Callable[[], object]], repetitions: int, label: str = ""
) -> dict[str, Timing]:
    """Time several things in turn, again and again.

    Args:
        contenders: Name -> what to run.
        repetitions: How often each runs; once more before, unmeasured.
        label: For the progress bar.

    Returns:
        Name -> its times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    gc.collect()
    gc.disable()
    try:
        for _ in tqdm(range(repetitions), desc=label, leave=False):
            for name, run in contenders.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
            gc.collect()
    finally:
        gc.enable()
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def peak_of(run: Callable[[], object]) -> float:
    """Megabytes that one run adds to the resident memory of this process at its peak.

    The run is made once before, so that what it keeps does not count.
    """
    run()
    gc.collect()
    _CLEAR.write_text("5")  # resets the high water mark
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def child_peak(script: str, arguments: Sequence[str]) -> float:
    """Run a script in a fresh process and return the number that it prints as JSON.

    Args:
        script: Path of a script that prints the result of :func:`peak_of`.
        arguments: Its arguments.
    """
    result = subprocess.run(  # noqa: S603 - the benchmark itself
        [sys.executable, script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    return float(json.loads(result.stdout.strip().splitlines()[-1]))


def machine() -> str:
    """The machine and the versions, in one line."""
    names = ("torch", "transformers", "captum")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    threads = torch.get_num_threads()
    cores = os.cpu_count()
    return f"{platform.machine()}, {cores} cores, {threads} thread(s), {versions}"


def _status(field: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{_STATUS} has no {field}: memory is measured on Linux only.")
