"""Time of an explanation with compiled blocks, what compiling takes, and how equal it is.

    OMP_NUM_THREADS=1 python benchmarks/compile.py [--models bert-base gpt2 smollm2]
        [--lengths 32 128] [--repetitions 9] [--clock cpu]

One row with a target at the last position, with ``compile=True`` and without, in turn. Compiling is
measured once, with an empty cache of the compiler, C++ compiler included. "pays from" is the number
of explanations of one shape from which compiling is worth its time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import Any

import torch
from harness import Clock, interleaved, machine
from shapes import MEASURED, SHAPES, build
from torch import Tensor

from captum_lrpx import AttnLRPx, LogitDifference, LRPx

METHODS: dict[str, type[LRPx]] = {"LRPx": LRPx, "AttnLRPx": AttnLRPx}


def seconds(clock: Clock) -> float:
    """Wall time, or CPU time of this process and of those that it has waited for."""
    return time.perf_counter() if clock == "wall" else sum(os.times()[:4])


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MEASURED, choices=list(SHAPES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--clock", default="cpu", choices=["wall", "cpu"], help="which time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a process that is waited for
    print(f"{machine()}, {options.repetitions} repetitions, {options.clock} time\n")
    print("| | tokens | s | s compiled | ratio | relative difference | s to compile | pays from |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.models:
        model = build(name)
        for method in options.methods:
            for length in options.lengths:
                row(f"{name}, {method}", model, METHODS[method], length, options)


def row(
    label: str, model: Any, method: type[LRPx], length: int, options: argparse.Namespace
) -> None:
    """Measure one method on one shape and print its row."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (1, length), generator=generator)
    embeds = model.get_input_embeddings()(ids).detach()
    forward = LogitDifference(model)

    def attribute(*, compiled: bool) -> Tensor:
        relevances: Tensor = method(forward, compile=compiled).attribute(
            embeds, additional_forward_args=(None, 7, 8, length - 1)
        )
        return relevances

    expected = attribute(compiled=False)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        start = seconds(options.clock)
        found = attribute(compiled=True)
        to_compile = seconds(options.clock) - start
        times = interleaved(
            {
                "plain": lambda: attribute(compiled=False),
                "compiled": lambda: attribute(compiled=True),
            },
            options.repetitions,
            clock=options.clock,
        )
    plain, compiled = times["plain"], times["compiled"]
    difference = float((found - expected).abs().max() / expected.abs().max())
    saved = plain.median - compiled.median
    pays = f"{to_compile / saved:.0f}" if saved > 0 else "never"
    print(
        f"| {label} | {length} | {plain.median:.3f} | {compiled.median:.3f} "
        f"| {compiled.ratio(plain):.2f} ({compiled.spread(plain):.2f}) | {difference:.0e} "
        f"| {to_compile:.0f} | {pays} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
