"""Time of LXT's AttnLRP and CP-LRP, and of this package beside them.

    OMP_NUM_THREADS=1 PYTHON benchmarks/lxt_peer.py [--models bert-base gpt2 smollm2]
        [--sizes 1x32 1x128 8x32 1x512] [--repetitions 7] [--dtype float32] [--device cpu]
        [--ours python]

``PYTHON`` is the interpreter of an environment with LXT, which is not ours: LXT 2.1 works with
transformers 4 (4.57.6 is the newest) and this package with transformers 5. To make it:

    python -m venv lxt && lxt/bin/pip install torch==2.13.0 transformers==4.57.6 captum==0.9.0
    lxt/bin/pip install --no-deps lxt==2.1

``--ours`` is the interpreter of an environment with this package; without it LXT is measured alone.

LXT puts its rules on whole classes, so there is a process for what is plain, one for each of its
sets of rules, and one for this package. All hold the same model and stay for the whole run; they
are told in turn to run once, again and again, so that each run has a neighbour of each kind in
time. Each process takes its own process time, with one thread (a GPU: CUDA events). The ratio is to
Captum's InputXGradient without rules in the environment of the contender, hence on the same version
of transformers, and for the InputXGradient of our environment to that of LXT's: the median over the
repetitions, in brackets half of the interquartile range.

All explain one logit at the last position, from the logits of all positions. "Gradient x Input" is
what LXT's examples do (weights without gradients, ``backward()``, embeddings times gradient) on a
model without LXT's rules: what the rules cost is the difference to it. LXT has no CP-LRP for BERT,
and no rules for Qwen3-MoE, which runs under those for Qwen3: its router keeps its gradient. Vision
transformers are not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from harness import Timing, machine
from lxt_model import offered
from lxt_worker import OURS, PLAIN, Worker
from shapes import DTYPES, MEASURED, MODEL_TYPES, SHAPES
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = "InputXGradient"
OUR_METHODS = ("AttnLRPx, full head", "LRPx, full head", "AttnLRPx, Target", "LRPx, Target")


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        worker: The process that runs it.
        name: What it is called there.
        base: The row that it is compared with.
    """

    worker: Worker
    name: str
    base: str = BASE


@contextlib.contextmanager
def contenders(model: str, options: argparse.Namespace) -> Iterator[dict[str, Contender]]:
    """The rows for one model; their processes end with the block."""
    with contextlib.ExitStack() as stack:

        def start(python: str, side: str) -> Worker:
            worker = Worker(python, model, side, options.dtype, options.device)
            return stack.enter_context(worker)

        plain = start(sys.executable, PLAIN)
        rows = {name: Contender(plain, name) for name in (BASE, "Gradient x Input")}
        for rules in offered(MODEL_TYPES[model]):
            name = f"LXT {rules}"
            rows[name] = Contender(start(sys.executable, rules), name)
        if options.ours:
            ours = start(options.ours, OURS)
            base = f"{BASE}, transformers {ours.versions['transformers']}"
            rows[base] = Contender(ours, BASE)
            rows |= {name: Contender(ours, name, base) for name in OUR_METHODS}
        yield rows


def measured(
    rows: dict[str, Contender], size: str, repetitions: int, label: str
) -> dict[str, Timing]:
    """Run all in turn, again and again; once more before, unmeasured."""
    runs = {row: one.worker.measurable(size, one.name) for row, one in rows.items()}
    for run in runs.values():
        run.seconds()
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for _ in tqdm(range(repetitions), desc=label, leave=False):
        for row, run in runs.items():
            seconds[row].append(run.seconds())
    return {row: Timing(tuple(times)) for row, times in seconds.items()}


def table(model: str, options: argparse.Namespace) -> str:
    """The ratios of one model in Markdown, and their mean over the sizes."""
    with contenders(model, options) as rows:
        ratios: dict[str, list[float]] = {row: [] for row in rows}
        cells: dict[str, list[str]] = {row: [] for row in rows}
        for size in options.sizes:
            times = measured(rows, size, options.repetitions, f"{model} {size}")
            for row, one in rows.items():
                ratio, spread = (f(times[one.base]) for f in (times[row].ratio, times[row].spread))
                ratios[row].append(ratio)
                cells[row].append(f"{ratio:.2f} ({spread:.2f})")
    means = {row: f"{statistics.mean(found):.2f}" for row, found in ratios.items()}
    lines = [
        f"| {model} | {' | '.join(options.sizes)} | mean |",
        "|---" * (len(options.sizes) + 2) + "|",
        *(f"| {row} | {' | '.join(cells[row])} | {means[row]} |" for row in cells),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MEASURED, choices=list(SHAPES))
    parser.add_argument("--sizes", nargs="+", default=["1x32", "1x128", "8x32", "1x512"])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ours", metavar="PYTHON", help="interpreter with this package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = f"{options.repetitions} repetitions, {options.dtype}"
    print(f"{machine()}, lxt {version('lxt')}, {settings}\n")
    for model in options.models:
        print(table(model, options), flush=True)


if __name__ == "__main__":
    main()
