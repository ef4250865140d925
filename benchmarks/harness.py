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
from typing import TYPE_CHECKING, Any, Literal

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Clock",
    "Timing",
    "added_by",
    "child",
    "child_peak",
    "interleaved",
    "machine",
    "peak_of",
]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


Clock = Literal["wall", "cpu"]
"""Wall time, for tables; or CPU time of this process, to compare while others use the machine."""


@dataclass(frozen=True)
class Timing:
    """Seconds of the repetitions of one contender, by one clock.

    Attributes:
        seconds: One entry per repetition.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    def ratios(self, base: Timing) -> tuple[float, ...]:
        """The ratio of each repetition to its neighbour in time."""
        pairs = zip(self.seconds, base.seconds, strict=True)
        return tuple(mine / other for mine, other in pairs)

    def ratio(self, base: Timing) -> float:
        """Median over the repetitions of the ratio to the neighbour in time."""
        return statistics.median(self.ratios(base))

    def spread(self, base: Timing) -> float:
        """Half of the interquartile range of these ratios."""
        low, _, high = statistics.quantiles(self.ratios(base), n=4, method="inclusive")
        return (high - low) / 2


def interleaved(
    contenders: dict[str, Callable[[], object]],
    repetitions: int,
    label: str = "",
    clock: Clock = "wall",
) -> dict[str, Timing]:
    """Time several things in turn, again and again.

    Args:
        contenders: Name -> what to run.
        repetitions: How often each runs; once more before, unmeasured.
        label: For the progress bar.
        clock: By which clock.

    Returns:
        Name -> its times.
    """
    now = time.perf_counter if clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    gc.collect()
    gc.disable()
    try:
        for _ in tqdm(range(repetitions), desc=label, leave=False):
            for name, run in contenders.items():
                _wait_for_device()
                start = now()
                run()
                _wait_for_device()
                seconds[name].append(now() - start)
            gc.collect()
    finally:
        gc.enable()
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_of(run: Callable[[], object]) -> float:
    """Megabytes that one run adds to the resident memory of this process at its peak.

    The run is made once before, so that what it keeps does not count.
    """
    run()
    return added_by(run)


def added_by(run: Callable[[], object]) -> float:
    """The same for a run that may be the first of its kind."""
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
    return float(child(script, arguments))


def child(script: str, arguments: Sequence[str]) -> Any:
    """Run a script in a fresh process that gives memory back at once, and read what it prints.

    Args:
        script: Path of a script whose last line is JSON.
        arguments: Its arguments.
    """
    result = subprocess.run(  # noqa: S603 - the benchmark itself
        [sys.executable, script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    return json.loads(result.stdout.strip().splitlines()[-1])


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
