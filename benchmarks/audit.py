"""What the certificate of an explanation costs: ``certify=True`` and ``"full"`` to ``False``.

    OMP_NUM_THREADS=1 python benchmarks/audit.py [--models gpt2 smollm2] [--tokens 32 400]

A warm ``explain()`` of random models of true size; an embedded tokenizer encodes the texts.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from harness import interleaved, machine
from shapes import MEASURED, SHAPES, build

from captum_lrpx import explain, zoo

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS = ("lrpx", "attnlrpx")
WORDS = ("the", "keys", "to", "the", "cabinet", "are", "here", "and")
LEVELS: tuple[bool | Literal["full"], ...] = (False, True, "full")


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MEASURED), choices=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[32, 400])
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, process time\n\n| model | tokens | method | checked | in full |")
    print("|---|---:|---|---:|---:|")
    for name in options.models:
        model = build(name)
        _, tokenizer = zoo.load("sva-bert" if name.startswith("bert") else "sva-gpt2")
        for length in options.tokens:
            words = WORDS * length
            ending = ["the", "keys", tokenizer.mask_token or "to"]
            text = " ".join([*words[: length - 3], *ending])
            for method in METHODS:
                ask = partial(explain, model, tokenizer, text, "are", method=method)
                runs: dict[str, Callable[[], object]] = {
                    str(level): partial(ask, certify=level) for level in LEVELS
                }
                times = interleaved(runs, options.repetitions, f"{name} {length}", "cpu")
                ratios = [times[str(level)].ratio(times["False"]) for level in LEVELS[1:]]
                shown = " | ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"| {name} | {length} | {method} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
