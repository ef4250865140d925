"""Sentences per second in batches of similar length against one by one.

    OMP_NUM_THREADS=1 python benchmarks/batching.py [--models sva-gpt2 sva-bert sva-llama]
        [--sentences 512] [--max-tokens 1024] [--repetitions 3]

Sentences of the agreement grammar as they come, each up to its verb and explained there
(``LogitDifference`` of two tokens), by the embedded models with their own tokenizers, or by a model
of a true size with random weights with that of the embedded GPT-2, in process time.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from harness import machine
from shapes import SHAPES, build
from torch.nn.utils.rnn import pad_sequence

from captum_lrpx import AttnLRPx, LogitDifference, LRPx, zoo
from captum_lrpx.batching import buckets, in_order
from captum_lrpx.sva import grammar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

EMBEDDED = ("sva-gpt2", "sva-bert", "sva-llama")
METHODS: dict[str, type[LRPx]] = {"AttnLRPx": AttnLRPx, "LRPx": LRPx}


def rows_of(tokenizer: Any, count: int) -> list[Tensor]:
    """Token ids of sentences of the grammar, up to the verb and with it."""
    samples = itertools.islice(grammar.stream("train", 0, None, (0, 3)), count)
    texts = [sample.sentence[: sample.verb_span[1]] for sample in samples]
    return [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]


def explained(attribution: Any, rows: Sequence[Tensor], batch: Sequence[int]) -> list[Tensor]:
    """Relevances of the rows of one batch, without padding."""
    ids = pad_sequence([rows[index] for index in batch], batch_first=True)
    lengths = torch.tensor([len(rows[index]) for index in batch])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    arguments = (None if len(batch) == 1 else mask, 10, 11, lengths - 1)
    relevances = attribution.attribute(ids, additional_forward_args=arguments)
    return [row[:length] for row, length in zip(relevances, lengths, strict=True)]


def measured(
    model: Any, method: str, rows: list[Tensor], options: argparse.Namespace
) -> tuple[float, float, float]:
    """Sentences per second one by one and in batches, and the largest relative difference."""
    attribution = METHODS[method](LogitDifference(model))

    def run(batches: Sequence[Sequence[int]]) -> list[Tensor]:
        found = (explained(attribution, rows, batch) for batch in batches)
        return in_order(batches, found)

    singly = [(index,) for index in range(len(rows))]
    batches = buckets([len(row) for row in rows], options.max_tokens)
    one_by_one, together = run(singly), run(batches)
    pairs = zip(one_by_one, together, strict=True)
    error = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    times = [
        [_seconds(lambda group=group: run(group)) for group in (singly, batches)]  # type: ignore[misc]
        for _ in range(options.repetitions)
    ]
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    return len(rows) / slow, len(rows) / fast, error


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=EMBEDDED, choices=[*EMBEDDED, *SHAPES])
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{machine()}, {options.repetitions} repetitions, process time, {options.sentences} "
        f"sentences, batches of {options.max_tokens} tokens\n"
    )
    print("| model | method | tokens | one by one, 1/s | in batches, 1/s | ratio | difference |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        model, tokenizer = zoo.load(name if name in EMBEDDED else "sva-gpt2")
        rows = rows_of(tokenizer, options.sentences)
        lengths = sorted(map(len, rows))
        tokens = f"{lengths[0]} to {lengths[-1]}, median {statistics.median(lengths):.0f}"
        if name in SHAPES:
            model = build(name)
        for method in METHODS:
            alone, together, error = measured(model, method, rows, options)
            print(
                f"| {name} | {method} | {tokens} | {alone:.1f} | {together:.1f} "
                f"| {together / alone:.1f} | {error:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
