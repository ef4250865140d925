"""Factual recall and indirect objects: is the evidence found, and does the prediction hang on it?

    OMP_NUM_THREADS=1 python benchmarks/recall.py known_1000.jsonl ioi.jsonl --model FILE.gguf \
        --journal FOUND.jsonl [--rows 100] [--first-token '<|endoftext|>'] [--minutes 10]

The data of Dual Path Attribution (Jantsch et al. 2026, https://arxiv.org/abs/2603.19742): prompts
about a subject, of which the attribute is predicted, and prompts about two persons, of whom the
answer is predicted. Rows that the model gets wrong are left out. Evidence is the subject, or the
other mention of the answer.

``recovery`` keeps the embeddings of the most relevant 20, 40, ... 100 % of the tokens,
``disruption`` sets them to zero; both are the probability of the answer that is left, as a share of
what it was, in the mean over the five steps. A first token stays, and does not count.

Each row that is done is a line of the journal, from which a later run goes on; tables are printed
of all lines, with 95 % bootstrap intervals over rows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import captum.attr as captum
import torch

from captum_lrpx import (
    LRP_MIRRORED_GATE,
    ALTILogit,
    InformationFlow,
    LRPx,
    RandomAttribution,
    TokenLogits,
)
from captum_lrpx.loading import load_model
from captum_lrpx.metrics import (
    mean_reciprocal_rank,
    pointing_game,
    relevance_rank_accuracy,
)
from captum_lrpx.recipes import PUBLISHED
from captum_lrpx.sva.evaluation.statistics import Estimate, estimates, resampling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Method = Callable[[TokenLogits, Tensor, int], Tensor]

STEPS = 5
MEASURES = ("pointing", "MRR", "RRA", "recovery", "disruption", "difference")


def _gradients(
    kind: type, forward: TokenLogits, ids: Tensor, target: int, **options: Any
) -> Tensor:
    embeddings = forward.model.get_input_embeddings()(ids).detach().requires_grad_()
    found: Tensor = kind(forward).attribute(embeddings, target=target, **options)
    return found.detach().sum(-1)


def _leave_one_out(forward: TokenLogits, ids: Tensor, target: int) -> Tensor:
    embeddings = forward.model.get_input_embeddings()(ids).detach()
    count = ids.shape[1]
    without = embeddings.repeat(count, 1, 1)
    without[range(count), range(count)] = 0
    with torch.no_grad():
        values = forward(torch.cat([embeddings, without]))[:, target]
    return (values[0] - values[1:]).unsqueeze(0)


def _by_rules(recipe: Any, forward: TokenLogits, ids: Tensor, target: int) -> Tensor:
    found: Tensor = LRPx(forward, recipe=recipe).attribute(ids, target=target)
    return found


METHODS: dict[str, Method] = {
    "CP-LRP": partial(_by_rules, PUBLISHED["cp-lrp"]),
    "RelP, LibraGrad": partial(_by_rules, PUBLISHED["relp"]),
    "LRP, gate mirrored": partial(_by_rules, LRP_MIRRORED_GATE),
    "AttnLRP, DPA": partial(_by_rules, PUBLISHED["dpa"]),
    "ALTI-Logit": lambda forward, ids, target: ALTILogit(forward).attribute(ids, target=target),
    "IFR": lambda forward, ids, target: InformationFlow(forward).attribute(ids, target=target),
    "ALTI": lambda forward, ids, target: InformationFlow(forward, by_head=False).attribute(
        ids, target=target
    ),
    "Gradient, L1": partial(_gradients, captum.Saliency),
    "Gradient x Input": partial(_gradients, captum.InputXGradient),
    "Integrated Gradients": lambda forward, ids, target: _gradients(
        captum.IntegratedGradients, forward, ids, target, n_steps=10
    ),
    "leave one out": _leave_one_out,
    "random": lambda forward, ids, _target: RandomAttribution(forward).attribute(ids),
}


def spans(row: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """The answer, and the characters of its evidence."""
    prompt = row["prompt"]
    answer = row.get("attribute") or row["answer"]
    evidence = row.get("subject") or row["answer"]
    start = prompt.find(evidence)
    return answer, [] if start < 0 else [(start, start + len(evidence))]


def zeroed(order: Tensor) -> Tensor:
    """Which tokens are zero at each step of recovery and of disruption ``[2, STEPS, T]``.

    Args:
        order: Tokens from the most relevant one to the least ``[T]``.
    """
    count = len(order)
    zero = torch.zeros(2, STEPS, count, dtype=torch.bool)
    for step in range(STEPS):
        top = order[: math.ceil(count * (step + 1) / STEPS)]
        zero[1, step, top] = True
        zero[0, step] = ~zero[1, step]
    return zero


def left(forward: TokenLogits, ids: Tensor, target: int, zero: Tensor) -> Tensor:
    """The probability that is left without some tokens, as a share of what it was ``[..]``.

    Args:
        forward: The model.
        ids: Token ids ``[1, first + T]``, of which those in front of the ``T`` stay.
        target: The answer.
        zero: Whether the embedding of a token is zero ``[.., T]``.
    """
    flat = zero.flatten(0, -2)
    different, place = flat.unique(dim=0, return_inverse=True)
    embeddings = forward.model.get_input_embeddings()(ids).detach()
    rows = embeddings.repeat(len(different), 1, 1)
    rows[:, ids.shape[1] - flat.shape[1] :][different] = 0
    with torch.no_grad():
        odds = forward(torch.cat([embeddings, rows])).softmax(-1)[:, target]
    return (odds[1:] / odds[0])[place].view(zero.shape[:-1])


def found_in(
    forward: TokenLogits, tokenizer: Any, row: dict[str, Any], first: str | None
) -> dict[str, Any] | None:
    """All measures of all methods for a row; None if it is of no use."""
    answer, evidence = spans(row)
    encoded = tokenizer(row["prompt"], return_offsets_mapping=True, add_special_tokens=False)
    ahead = [] if first is None else [tokenizer.convert_tokens_to_ids(first)]
    ids = torch.tensor([ahead + encoded["input_ids"]])
    target = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        right = int(forward(ids).argmax(-1)) == target
    truth = torch.tensor(
        [
            [
                any(b < stop and e > start for start, stop in evidence)
                for b, e in encoded["offset_mapping"]
            ]
        ]
    )
    if not right or not truth.any() or truth.all():
        return None
    relevances = {
        name: attribute(forward, ids, target)[:, len(ahead) :].float()
        for name, attribute in METHODS.items()
    }
    orders = [each[0].argsort(descending=True, stable=True) for each in relevances.values()]
    curves = left(forward, ids, target, torch.stack([zeroed(order) for order in orders]))
    measures = {}
    for (name, relevance), (recovery, disruption) in zip(
        relevances.items(), curves.mean(-1).tolist(), strict=True
    ):
        measures[name] = [
            *(
                float(metric(relevance, truth))
                for metric in (pointing_game, mean_reciprocal_rank, relevance_rank_accuracy)
            ),
            recovery,
            disruption,
            recovery - disruption,
        ]
    return measures


def rows_of(path: Path, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file in a drawn order, with their keys."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a sample
    return ((f"{path.stem} {number}", rows[number]) for number in order)


def tables(lines: list[dict[str, Any]]) -> None:
    """Print a table for each file."""
    for stem in dict.fromkeys(line["key"].split()[0] for line in lines):
        of_file = [line for line in lines if line["key"].split()[0] == stem]
        told = [line["measures"] for line in of_file if line["measures"] is not None]
        print(
            f"\n{stem}: {len(told)} of {len(of_file)} rows are predicted right and have evidence\n"
        )
        if not told:
            continue
        resampled = resampling(len(told))
        print("| method | " + " | ".join(MEASURES) + " |")
        print("|---" * (1 + len(MEASURES)) + "|")
        for name in METHODS:
            values = torch.tensor([each[name] for each in told], dtype=torch.float64)
            found = estimates(values.T.unsqueeze(1), resampled)
            print(f"| {name} | " + " | ".join(map(_cell, found)) + " |")


def _cell(each: Estimate) -> str:
    return f"{each.mean:.2f} [{each.low:.2f}, {each.high:.2f}]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--journal", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=100, help="rows of use in each file")
    parser.add_argument("--first-token", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    options = parser.parse_args()
    lines = []
    if options.journal.exists():
        lines = [json.loads(line) for line in options.journal.read_text().splitlines()]
    known = {line["key"] for line in lines}
    end = time.monotonic() + 60 * options.minutes
    loaded = load_model(options.model)
    forward = TokenLogits(loaded.model)
    streams = [list(rows_of(path, options.seed)) for path in options.data]
    for path, rows in zip(options.data, streams, strict=True):
        end_of_file = time.monotonic() + (end - time.monotonic()) / (
            len(streams) - options.data.index(path)
        )
        for key, row in rows:
            of_use = sum(
                line["measures"] is not None
                for line in lines
                if line["key"].split()[0] == path.stem
            )
            if of_use >= options.rows or time.monotonic() > end_of_file:
                break
            if key in known:
                continue
            found = found_in(forward, loaded.tokenizer, row, options.first_token)
            line = {"key": key, "measures": found}
            lines.append(line)
            with options.journal.open("a", encoding="utf-8") as journal:
                print(json.dumps(line), file=journal)
    tables(lines)


if __name__ == "__main__":
    main()
