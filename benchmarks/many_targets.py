"""Time of many targets on one prompt: one call for all of them against a call for each.

    OMP_NUM_THREADS=1 python benchmarks/many_targets.py [--models bert-base gpt2 smollm2]
        [--length 128] [--targets 32] [--targets-per-backward 1 8] [--repetitions 3]

Random weights, logits of as many tokens at the last position (``TokenLogits``). Process time; the
ratio is the median over interleaved repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from harness import machine
from shapes import MEASURED, SHAPES, build

from captum_lrpx import ALTILogit, AttnLRPx, LRPx, TokenLogits

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS: dict[str, type[LRPx | ALTILogit]] = {
    "AttnLRPx": AttnLRPx,
    "LRPx": LRPx,
    "ALTILogit": ALTILogit,
}


def seconds(run: Callable[[], object]) -> float:
    """Process time of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def ratios(model: Any, method: str, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """For each number of targets at once: ratio to single calls, and largest relative error."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (1, options.length), generator=generator)
    targets = list(range(100, 100 + options.targets))
    arguments = (None, options.length - 1)
    attribution: Any = METHODS[method](TokenLogits(model))

    def singly() -> torch.Tensor:
        rows = [
            attribution.attribute(ids, target, additional_forward_args=arguments)
            for target in targets
        ]
        return torch.stack(rows)

    def together(at_once: int) -> torch.Tensor:
        keywords = {} if method == "ALTILogit" else {"targets_per_backward": at_once}
        found: torch.Tensor = attribution.attribute_targets(ids, targets, arguments, **keywords)
        return found

    several = [1] if method == "ALTILogit" else options.targets_per_backward
    expected = singly()
    errors = [
        float((together(at_once) - expected).abs().max() / expected.abs().max())
        for at_once in several
    ]
    pairs: list[list[float]] = [[] for _ in several]
    for _ in range(options.repetitions):
        base = seconds(singly)
        for found, at_once in zip(pairs, several, strict=True):
            found.append(seconds(lambda at_once=at_once: together(at_once)) / base)  # type: ignore[misc]
    names = ["all" if method == "ALTILogit" else str(at_once) for at_once in several]
    medians = map(statistics.median, pairs)
    return dict(zip(names, zip(medians, errors, strict=True), strict=True))


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MEASURED, choices=list(SHAPES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--targets-per-backward", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, {options.repetitions} repetitions, process time")
    print(f"{options.targets} targets on {options.length} tokens, ratio to single calls\n")
    print("| model | method | targets at once | ratio | largest relative error |")
    print("|---|---|---|---|---|")
    for name in options.models:
        model = build(name)
        for method in options.methods:
            for at_once, (ratio, error) in ratios(model, method, options).items():
                print(f"| {name} | {method} | {at_once} | {ratio:.2f} | {error:.0e} |", flush=True)


if __name__ == "__main__":
    main()
