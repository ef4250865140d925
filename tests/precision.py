"""How far relevances in a smaller precision are from those in float64, as a table.

``python tests/precision.py`` prints the table of ``docs/trust.md``. The reference has the rounded
parameters and embeddings of the model that it is compared with, so what is measured is the
arithmetic, not the rounding of the weights.
"""

from __future__ import annotations

import copy
import statistics
from functools import cache
from typing import TYPE_CHECKING

import torch
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids

from captum_lrpx import ALTILogit, AttnLRPx, LRPx, zoo

if TYPE_CHECKING:
    from collections.abc import Iterable

METHODS = {"LRPx": LRPx, "AttnLRPx": AttnLRPx, "ALTILogit": ALTILogit}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TARGET = (-1, 7)
SEEDS = 10


@cache
def narrow_and_wide(kind: str, name: str, seed: int, dtype: torch.dtype):
    """A model in a precision, and the same rounded model in float64."""
    made = tiny(name, seed=seed, attn="sdpa") if kind == "random" else zoo.load(name)[0]
    narrow = made.to(dtype)
    return narrow, copy.deepcopy(narrow).double()


@cache
def relative_errors(kind: str, name: str, seed: int, method: str, dtype: torch.dtype):
    """For each example: sum of the absolute errors of all tokens over the relevance's mass."""
    random = kind == "random"  # the trained models have no seed of their own
    narrow, wide = narrow_and_wide(kind, name, seed if random else 0, dtype)
    embeds = narrow.get_input_embeddings()(token_ids(2, 6 if random else 12, seed=seed)).detach()
    found = METHODS[method](narrow).attribute(embeds, target=TARGET).double().sum(-1)
    exact = METHODS[method](wide).attribute(embeds.double(), target=TARGET).sum(-1)
    return ((found - exact).abs().sum(1) / exact.abs().sum(1)).tolist()


def errors_of(kind: str, method: str, dtype: torch.dtype, seeds: Iterable[int]) -> list[float]:
    """Errors of tiny ``"random"`` models of all families, or of the ``"trained"`` ones."""
    names = FAMILIES | MORE_FAMILIES if kind == "random" else zoo.names()
    errors: list[float] = []
    for name in names:
        for seed in seeds:
            errors += relative_errors(kind, name, seed, method, dtype)
    return errors


def main() -> None:
    """Print the table."""
    print("| models | method | dtype | median error | largest error |")  # noqa: T201
    print("|---|---|---|---|---|")  # noqa: T201
    for kind in ("trained", "random"):
        for method in METHODS:
            for dtype in DTYPES:
                errors = errors_of(kind, method, dtype, range(SEEDS))
                name = str(dtype).removeprefix("torch.")
                numbers = f"{statistics.median(errors):.1e} | {max(errors):.1e}"
                print(f"| {kind} | {method} | {name} | {numbers} |")  # noqa: T201


if __name__ == "__main__":
    main()
