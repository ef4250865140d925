"""What a newcomer waits for: help, the import, and the first explanation, each in a new process.

    OMP_NUM_THREADS=1 python benchmarks/first_minutes.py [--repetitions 5] [--cold]

Warm: the files have been read before; the median of several processes, in turn. Cold (Linux): the
files of the environment are dropped from the page cache before each process, as after starting the
machine. Bytecode is compiled in advance, as pip does when it installs. Seconds of the processor can
be compared while others use the machine; on an idle one with warm files they are the wall time.
"""

from __future__ import annotations

import argparse
import compileall
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import captum_lrpx

TORCH = "import torch"
MODEL = f"{TORCH}; from transformers import BertForMaskedLM"
TEXT = "the keys to the cabinet"
CLASS = "import torch and one transformers class"
EXPLAIN = "captum-lrpx explain"
CASES = {
    "python -c pass": ["-c", "pass"],
    "import captum_lrpx": ["-c", "import captum_lrpx"],
    "captum-lrpx --help": ["-m", "captum_lrpx", "--help"],
    "captum-lrpx explain --help": ["-m", "captum_lrpx", "explain", "--help"],
    "captum-lrpx explane": ["-m", "captum_lrpx", "explane"],
    "import torch": ["-c", TORCH],
    CLASS: ["-c", MODEL],
    "the same, and captum": ["-c", f"{MODEL}; import captum.attr"],
    EXPLAIN: ["-m", "captum_lrpx", "explain", TEXT, "--target", "are"],
    f"{EXPLAIN} --no-certificate": [
        *("-m", "captum_lrpx", "explain", TEXT, "--target", "are", "--no-certificate")
    ],
}
"""What is run -> the arguments of Python."""

PACKAGE = Path(captum_lrpx.__file__).parent


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Wall time and processor time of a process of its own, from its start to its end."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(  # noqa: S603 - the commands above
        [sys.executable, *arguments], capture_output=True, check=False, env=environment
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def forget() -> None:
    """Drop the environment and the package from the page cache, except what is in use."""
    for folder in (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"], PACKAGE):
        for path in Path(folder).rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    compileall.compile_dir(PACKAGE, quiet=1)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for repetition in range(options.repetitions + 1):
        for name, arguments in CASES.items():
            if options.cold:
                forget()
            taken = seconds(arguments)
            if repetition or options.cold:  # the first round reads the files
                found[name].append(taken)
    print("| | wall | processor |\n|---|---|---|")
    for name, times in found.items():
        wall, processor = map(statistics.median, zip(*times, strict=True))
        print(f"| `{name}` | {wall:.2f} | {processor:.2f} |")
    pairs = zip(found[EXPLAIN], found[CLASS], strict=True)
    wall, processor = map(
        statistics.median,
        zip(*((mine[0] - base[0], mine[1] - base[1]) for mine, base in pairs), strict=True),
    )
    print(f"\n{EXPLAIN} over {CLASS}: {wall:.2f} s wall, {processor:.2f} s processor")


if __name__ == "__main__":
    main()
