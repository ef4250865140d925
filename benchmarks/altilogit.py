"""Time and memory of ALTILogit against a plain forward pass and the algorithm as it is published.

    OMP_NUM_THREADS=1 python benchmarks/altilogit.py [--lengths 16 64 128 256 512]
        [--repetitions 5] [--output docs/altilogit-benchmark.md]

GPT-2 small with random weights, float32, one thread. Everything explains one logit at the last
position through a forward function that computes the logits of that position only, which is the
cheapest forward pass there is; the column "full head" computes them at all positions, in the
forward pass as well.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from harness import child_peak, interleaved, machine, peak_of
from shapes import build
from straightforward_altilogit import StraightforwardALTILogit

from captum_lrpx import ALTILogit

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LENGTHS = (16, 64, 128, 256, 512)
TOKEN = 7
STRAIGHTFORWARD_UP_TO = 256  # a longer text takes more than 20 GB
FORWARD, ALTI, STRAIGHT = "forward", "ALTILogit", "straightforward"
FORWARD_FULL, ALTI_FULL = "forward, full head", "ALTILogit, full head"


def contenders(model: Any, length: int) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by name; the first is what the others are compared with."""
    ids = torch.randint(5, 1000, (1, length), generator=torch.Generator().manual_seed(0))

    def last_logits(ids: Tensor) -> Tensor:
        logits: Tensor = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        return logits

    def all_logits(ids: Tensor) -> Tensor:
        logits: Tensor = model(ids, use_cache=False).logits
        return logits

    @torch.no_grad()
    def forward() -> Tensor:
        return last_logits(ids)

    @torch.no_grad()
    def forward_full() -> Tensor:
        return all_logits(ids)

    # The same weights in a model that returns its attention.
    config = copy.deepcopy(model.config)
    eager = type(model)._from_config(config, attn_implementation="eager").eval()  # noqa: SLF001
    eager.load_state_dict(model.state_dict(), assign=True)
    straightforward = StraightforwardALTILogit(eager)
    alti, alti_full = (ALTILogit(f, model=model) for f in (last_logits, all_logits))
    runs: dict[str, Callable[[], Tensor]] = {
        FORWARD: forward,
        ALTI: lambda: alti.attribute(ids, TOKEN)[0],
        FORWARD_FULL: forward_full,
        ALTI_FULL: lambda: alti_full.attribute(ids, (-1, TOKEN))[0],
    }
    if length <= STRAIGHTFORWARD_UP_TO:
        runs[STRAIGHT] = lambda: straightforward.attribute(ids, TOKEN)
    return runs


def row(model: Any, length: int, repetitions: int) -> str:
    """One line of the table."""
    runs = contenders(model, length)
    difference = ""
    if STRAIGHT in runs:
        expected = runs[STRAIGHT]()
        error = (runs[ALTI]() - expected).abs().max() / expected.abs().max()
        difference = f"{error.item():.0e}"
    times = interleaved(runs, repetitions, f"T = {length}")
    base = times[FORWARD]
    cells = [
        str(length),
        f"{1000 * base.median:.0f}",
        f"{times[ALTI].ratio(base):.2f}",
        f"{times[ALTI_FULL].ratio(times[FORWARD_FULL]):.2f}",
        f"{times[STRAIGHT].ratio(base):.1f}" if STRAIGHT in runs else "not run",
        f"{times[STRAIGHT].ratio(times[ALTI]):.1f}" if STRAIGHT in runs else "not run",
        difference,
    ]
    for name in (FORWARD, ALTI, STRAIGHT):
        measured = name in runs
        peak = child_peak(__file__, ["--one", str(length), name]) if measured else None
        cells.append("not run" if peak is None else f"{peak:.0f}")
    return f"| {' | '.join(cells)} |"


def report(lengths: list[int], repetitions: int) -> str:
    """The tables in Markdown."""
    model = build("gpt2")
    columns = (
        "T",
        "forward (ms)",
        "ALTILogit / forward",
        "the same, full head",
        "straightforward / forward",
        "straightforward / ALTILogit",
        "largest relative difference",
        "forward (MB)",
        "ALTILogit (MB)",
        "straightforward (MB)",
    )
    lines = [
        "# ALTILogit: time and memory",
        "",
        (
            f"GPT-2 small with random weights, float32: {machine()}; {repetitions} interleaved "
            "repetitions, medians of the ratios of neighbours; memory is what a run adds to the "
            "resident memory at its peak, each in a process of its own. Written by "
            "`benchmarks/altilogit.py`; `benchmarks/straightforward_altilogit.py` is the published "
            "algorithm as it is written down."
        ),
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    lines += [row(model, length, repetitions) for length in lengths]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file for the tables, else they are printed")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # length, contender
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        length, name = options.one
        print(json.dumps(peak_of(contenders(build("gpt2"), int(length))[name])))
        return
    text = report(options.lengths, options.repetitions)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
