"""Time and memory of LRPx and AttnLRPx against Captum's InputXGradient.

    OMP_NUM_THREADS=1 python benchmarks/speed.py [--models bert-base gpt2 smollm2]
        [--sizes 1x32 1x128 8x32 1x512] [--repetitions 7] [--clock wall] [--memory]
        [--dtype bfloat16] [--only CONTENDER ...] [--write docs/performance-table.md]

Ratios to InputXGradient on the same model in the same run. "full head" explains a Hugging Face
model as it is, by Captum's ``target=(position, token)``; "Target" explains the same logit through
``TokenLogits``, which computes one position of the head only. Captum's IntegratedGradients with 50
steps, in passes of at most 512 tokens, is measured where ``--only`` names it: it takes up to 50
times as long.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from captum.attr import InputXGradient, IntegratedGradients
from harness import child_peak, interleaved, machine, peak_of
from shapes import DTYPES, MEASURED, SHAPES, build

from captum_lrpx import LRP, AttnLRPx, LogitDifference, LRPx, propagation
from captum_lrpx.files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = ("1x32", "1x128", "8x32", "1x512")
STEPS, TOKENS_PER_PASS = 50, 512
INTEGRATED = f"IntegratedGradients, {STEPS} steps"
ON_REQUEST = (INTEGRATED,)
"""Contenders that are measured where they are asked for by name."""


def contenders(model: Any, size: str) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the first is what the others are compared with."""
    batch, length = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (batch, length), generator=generator)
    embeds = model.get_input_embeddings()(ids).detach()
    target = (length - 1, 7)

    def logits(embeds: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model(inputs_embeds=embeds).logits
        return output

    args = (None, 7, 8, length - 1)
    short = LogitDifference(model)
    rows = batch * max(1, TOKENS_PER_PASS // (batch * length))

    @torch.no_grad()
    def plain() -> torch.Tensor:
        return logits(embeds)

    return {
        "InputXGradient": lambda: InputXGradient(logits).attribute(embeds, target=target),
        "forward": plain,
        "AttnLRPx, full head": lambda: AttnLRPx(model).attribute(embeds, target=target),
        "LRPx, full head": lambda: LRPx(model).attribute(embeds, target=target),
        "AttnLRPx, Target": lambda: AttnLRPx(short).attribute(embeds, additional_forward_args=args),
        "LRPx, Target": lambda: LRPx(short).attribute(embeds, additional_forward_args=args),
        INTEGRATED: lambda: IntegratedGradients(logits).attribute(
            embeds, target=target, n_steps=STEPS, internal_batch_size=rows
        ),
    }


def chosen(runs: dict[str, Callable[[], object]], only: list[str] | None) -> list[str]:
    """Names of what is measured: all but those on request, or the first and those named."""
    if only is None:
        return [run for run in runs if run not in ON_REQUEST]
    if unknown := set(only) - set(runs):
        raise SystemExit(f"No contender {sorted(unknown)}: there are {list(runs)}.")
    return [run for run in runs if run in (next(iter(runs)), *only)]


ATTACHING = "attaching and removing the rules"
"""Measured against a whole attribution, not against InputXGradient."""


def attaching(model: Any, length: int = 32) -> dict[str, Callable[[], object]]:
    """An attribution of one short text, and the part of it that attaches the rules."""
    run = contenders(model, f"1x{length}")["LRPx, Target"]

    def attach() -> None:
        with propagation(model, LRP):
            pass

    return {"LRPx, Target": run, ATTACHING: attach}


def main() -> None:
    """Measure, and print tables in Markdown or write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MEASURED, choices=list(SHAPES))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="batch x length")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="which time")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--only", nargs="+", metavar="CONTENDER", help="beside InputXGradient")
    parser.add_argument("--write", type=Path, help="file for time and memory, in Markdown")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # model, size, contender
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        name, size, contender = options.one
        print(json.dumps(peak_of(contenders(build(name, DTYPES[options.dtype]), size)[contender])))
        return
    if options.write is None:
        dtype = "" if options.dtype == "float32" else f", {options.dtype}"
        print(f"{machine()}, {options.repetitions} repetitions, {options.clock} time{dtype}\n")
        for name in options.models:
            print(table(name, options, memory=options.memory), flush=True)
        return
    parts = [preamble(options)]
    for memory in (False, True):
        parts.append("## Peak extra memory\n" if memory else "## Time\n")
        parts += [table(name, options, memory=memory) for name in options.models]
        write_text(options.write, "\n".join(parts))  # what is measured so far


def preamble(options: argparse.Namespace) -> str:
    """What the tables are, in Markdown."""
    return (
        "# Measured times and memory\n\n"
        "Ratios to Captum's `InputXGradient` on the same model with random weights in the same "
        f"run, {options.dtype}, by batch x length. Time: median over "
        f"{options.repetitions} interleaved repetitions ({options.clock} time), in brackets half "
        "of the interquartile range. Memory: peak of the resident memory over that before, in a "
        f"fresh process.\n\n{machine()}.\n"
    )


def table(name: str, options: argparse.Namespace, *, memory: bool) -> str:
    """The ratios of one model, and their mean over the sizes."""
    dtype = DTYPES[options.dtype]
    model = None if memory else build(name, dtype)
    rows: dict[str, list[float]] = {}
    cells: dict[str, list[str]] = {}
    for size in options.sizes:
        runs = contenders(build(name, dtype) if model is None else model, size)
        names = chosen(runs, options.only)
        if memory:
            options_of = ["--dtype", options.dtype, "--one", name, size]
            peaks = {run: child_peak(__file__, [*options_of, run]) for run in names}
            found = {run: (peak / peaks["InputXGradient"], "") for run, peak in peaks.items()}
        else:
            times = interleaved(
                {run: runs[run] for run in names},
                options.repetitions,
                f"{name} {size}",
                options.clock,
            )
            base = times["InputXGradient"]
            found = {
                run: (time.ratio(base), f" ({time.spread(base):.2f})")
                for run, time in times.items()
            }
        for run, (ratio, spread) in found.items():
            rows.setdefault(run, []).append(ratio)
            cells.setdefault(run, []).append(f"{ratio:.2f}{spread}")
    lines = [
        f"| {name} | {' | '.join(options.sizes)} | mean |",
        "|---" * (len(options.sizes) + 2) + "|",
        *(
            f"| {run} | {' | '.join(cells[run])} | {statistics.mean(rows[run]):.2f} |"
            for run in rows
        ),
    ]
    if not memory and "LRPx, Target" in rows:
        times = interleaved(attaching(model), 4 * options.repetitions, clock=options.clock)
        share = times[ATTACHING].median / times["LRPx, Target"].median
        lines += ["", f"Attaching and removing the rules: {share:.1%} of LRPx with a target, 1x32."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
