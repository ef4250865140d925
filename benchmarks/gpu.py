"""Time and memory on a GPU, or at small sizes on a CPU to see that it runs.

    python benchmarks/gpu.py [--models bert-base gpt2 smollm2 llama-1b] [--sizes 1x32 1x512]
        [--dtype float32] [--repetitions 7] [--device cuda] [--lxt PYTHON]
    python benchmarks/gpu.py --models llama-1b --sizes 1x16 1x512 1x8192 --dtype bfloat16

Random weights. Time by CUDA events, memory by ``max_memory_allocated`` over what was allocated
before; on a CPU process time, and no memory. Ratios to Captum's InputXGradient in the same run,
medians over interleaved repetitions. What does not fit into memory is shown as such.

LXT is measured where it can be imported, each of its sets of rules in a process of its own that
holds another copy of the model; ``--lxt`` is the interpreter of an environment that has it
(``lxt_peer.py`` says how to make one).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from typing import TYPE_CHECKING, Any

import torch
from captum.attr import InputXGradient
from device import Run
from harness import machine
from lxt_worker import LXT, Worker
from shapes import DTYPES, SHAPES, build

from captum_lrpx import AttnLRPx, LogitDifference, LRPx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from device import Measurable

BASE = "InputXGradient"


def contenders(model: Any, size: str) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    batch, length = map(int, size.split("x"))
    device = next(model.parameters()).device
    ids = torch.randint(5, 1000, (batch, length)).to(device)
    embeds = model.get_input_embeddings()(ids).detach()
    target, arguments = (length - 1, 7), (None, 7, 8, length - 1)
    short = LogitDifference(model)

    def logits(embeds: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model(inputs_embeds=embeds).logits
        return output

    runs: dict[str, Callable[[], object]] = {
        BASE: lambda: InputXGradient(logits).attribute(embeds, target=target)
    }
    for method in (AttnLRPx, LRPx):
        name = method.__name__
        runs[f"{name}, full head"] = lambda method=method: method(model).attribute(  # type: ignore[misc]
            embeds, target=target
        )
        for checkpointing in (False, True):
            attribution = method(short, checkpointing=checkpointing)
            label = f"{name}, Target{', checkpointing' if checkpointing else ''}"
            runs[label] = lambda attribution=attribution: attribution.attribute(  # type: ignore[misc]
                embeds, additional_forward_args=arguments
            )
    return runs


@contextlib.contextmanager
def lxt_workers(name: str, options: argparse.Namespace) -> Iterator[dict[str, Worker]]:
    """Processes under LXT's rules, by contender; those that cannot be are named."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for rules in LXT:
            label = f"LXT {rules}"
            try:
                worker = Worker(options.lxt, name, rules, options.dtype, options.device)
            except RuntimeError as error:
                print(f"| {name} | | {label} | not measured: {error} | | | |", flush=True)
            else:
                workers[label] = stack.enter_context(worker)
        yield workers


def table(name: str, size: str, runs: dict[str, Measurable], repetitions: int) -> None:
    """Measure one model at one size and print a row for each contender."""
    peaks: dict[str, float] = {}
    for label, run in list(runs.items()):
        found = run.peak()
        if found is None:
            print(f"| {name} | {size} | {label} | does not fit | | | |", flush=True)
            del runs[label]
        else:
            peaks[label] = found
    times: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(repetitions):
        for label, run in runs.items():
            times[label].append(run.seconds())
    for label, own in times.items():
        compared = BASE in times
        ratio = statistics.median(
            mine / base for mine, base in zip(own, times.get(BASE, own), strict=True)
        )
        memory = peaks[label] / peaks.get(BASE, float("nan"))
        shown = f"{ratio:.2f} | {peaks[label]:.0f} | {memory:.2f}" if compared else " | | "
        print(
            f"| {name} | {size} | {label} | {statistics.median(own) * 1e3:.1f} | {shown} |",
            flush=True,
        )


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--sizes", nargs="+", default=["1x32", "1x128", "8x32", "1x512"])
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lxt", default=sys.executable, metavar="PYTHON")
    options = parser.parse_args()
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{where}, {options.dtype}, {machine()}, {options.repetitions} repetitions\n")
    print("| model | size | | ms | to InputXGradient | MB | to InputXGradient |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        model = build(name, DTYPES[options.dtype], options.device)
        with lxt_workers(name, options) as workers:
            for size in options.sizes:
                runs: dict[str, Measurable] = {
                    label: Run(run, device) for label, run in contenders(model, size).items()
                }
                runs |= {label: peer.measurable(size, label) for label, peer in workers.items()}
                table(name, size, runs, options.repetitions)


if __name__ == "__main__":
    main()
