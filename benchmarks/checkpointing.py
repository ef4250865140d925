"""Peak memory and time of a long input, with and without checkpointed blocks.

    OMP_NUM_THREADS=1 python benchmarks/checkpointing.py [--model smollm2] [--length 4096]
    OMP_NUM_THREADS=1 python benchmarks/checkpointing.py --estimate [--lengths 512 1024 2048]

Memory is what the first attribution adds to the resident memory of a process of its own at its
peak, with the allocator as it is: the largest it has been (``ru_maxrss``) less what it was when the
model was loaded and had run once. The process time is that of the same attribution. The relevances
of both ways are compared.

``--estimate`` compares the first and the second attribution of a process with
``captum_lrpx.memory.estimate``, where the allocator gives back at once what is freed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import added_by, child, machine
from shapes import SHAPES, build

from captum_lrpx import AttnLRPx, LRPx, TokenLogits
from captum_lrpx.memory import estimate

METHODS: dict[str, type[LRPx]] = {"LRPx": LRPx, "AttnLRPx": AttnLRPx}
WAYS = ("without", "with")


def attribute(model: Any, method: str, length: int, *, checkpointing: bool) -> torch.Tensor:
    """Relevances of random tokens for one logit at the last position."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (1, length), generator=generator)
    attribution = METHODS[method](TokenLogits(model), checkpointing=checkpointing)
    relevances: torch.Tensor = attribution.attribute(
        ids, target=7, additional_forward_args=(None, length - 1)
    )
    return relevances


def one(options: argparse.Namespace) -> None:
    """Measure one way of one method in this process, and keep its relevances."""
    method, way, file = options.one
    model = build(options.model)
    with torch.no_grad():
        model(torch.randint(5, 1000, (1, 8)))
    before, start = _peak(), time.process_time()
    relevances = attribute(model, method, options.length, checkpointing=way == "with")
    print(json.dumps([_peak() - before, time.process_time() - start]))
    torch.save(relevances, file)


def _peak() -> float:
    """The largest that this process has been, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peaks(options: argparse.Namespace) -> None:
    """Measure the first and the second attribution in this process, beside their estimate."""
    method, way, length = options.peaks
    model = build(options.model)
    with torch.no_grad():
        model(torch.randint(5, 1000, (1, 8)))
    saving = way == "with"
    found = [
        added_by(lambda: attribute(model, method, int(length), checkpointing=saving))
        for _ in range(2)
    ]
    recipe = METHODS[method].default_recipe
    guess = estimate(model, recipe, 1, int(length), checkpointing=saving) / 2**20
    print(json.dumps([*found, guess]))


def estimates(options: argparse.Namespace) -> None:
    """Print peaks and estimates by length, method and way."""
    print("| tokens | | checkpointing | first call, MiB | later | estimate | later / estimate |")
    print("|---|---|---|---|---|---|---|")
    for length in options.lengths:
        for method in options.methods:
            for way in WAYS:
                asked = ["--model", options.model, "--peaks", method, way, str(length)]
                first, later, guess = child(__file__, asked)
                print(
                    f"| {length} | {method} | {way} | {first:.0f} | {later:.0f} | {guess:.0f} "
                    f"| {later / guess:.2f} |",
                    flush=True,
                )


def row(method: str, options: argparse.Namespace) -> None:
    """Measure one method in processes of their own and print its row."""
    found, relevances = [], []
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS if not options.only_with else WAYS[1:]:
            file = Path(folder) / way
            command = [__file__, "--model", options.model, "--length", str(options.length)]
            command += ["--one", method, way, str(file)]
            result = subprocess.run(  # noqa: S603 - the benchmark itself
                [sys.executable, *command], check=True, capture_output=True, text=True
            )
            found.append(json.loads(result.stdout.strip().splitlines()[-1]))
            relevances.append(torch.load(file))
    memory, seconds = zip(*found, strict=True)
    if options.only_with:
        print(f"| {method} | | {memory[0]:.0f} | | {seconds[0]:.0f} s | |", flush=True)
        return
    print(
        f"| {method} | {memory[0]:.0f} | {memory[1]:.0f} | {memory[1] / memory[0]:.2f} "
        f"| {seconds[1] / seconds[0]:.2f} | {torch.equal(*relevances)} |",
        flush=True,
    )


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", choices=list(SHAPES))
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--only-with", action="store_true", help="for lengths that fit one way")
    parser.add_argument("--estimate", action="store_true", help="compare with the estimate")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # method, way, file
    parser.add_argument("--peaks", nargs=3, help=argparse.SUPPRESS)  # method, way, length
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        one(options)
        return
    if options.peaks:
        peaks(options)
        return
    if options.estimate:
        print(f"{machine()}\n{options.model}, float32\n")
        estimates(options)
        return
    print(f"{machine()}\n{options.model}, {options.length} tokens, float32\n")
    print("| | MiB without | MiB with | ratio | time with / without | equal |")
    print("|---|---|---|---|---|---|")
    for method in options.methods:
        row(method, options)


if __name__ == "__main__":
    main()
