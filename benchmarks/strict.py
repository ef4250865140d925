"""What strict checking costs an `attribute` that is repeated: a ratio, interleaved.

    python benchmarks/strict.py --batch 8 --length 32

The first call of a model traces it once and is not part of the figure.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING
from unittest import mock

import torch
from harness import machine
from shapes import MEASURED, SHAPES, build
from tqdm import tqdm

from captum_lrpx import AttnLRPx, LRPx

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def unchecked(method: type[LRPx]) -> AbstractContextManager[object]:
    """The method without the check, the cache look-up included."""
    return mock.patch.object(method, "require_coverage", return_value=None)


def seconds(method: LRPx, ids: torch.Tensor) -> float:
    """CPU seconds of one call: other work on the machine does not count."""
    start = time.process_time()
    method.attribute(ids, (-1, 7))
    return time.process_time() - start


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MEASURED, choices=list(SHAPES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    print(machine())
    for name in options.models:
        model = build(name)
        ids = torch.randint(5, 1000, (options.batch, options.length))
        for kind in (LRPx, AttnLRPx):
            method, ratios = kind(model), []
            first = seconds(method, ids)
            for _ in tqdm(range(options.repetitions), desc=name, leave=False):
                with unchecked(kind):
                    without = seconds(method, ids)
                ratios.append(seconds(method, ids) / without)
            print(
                f"{name:10} {kind.__name__:9} {options.batch}x{options.length}  "
                f"ratio {statistics.median(ratios):.3f}  first call {first / without:.2f}"
            )


if __name__ == "__main__":
    main()
