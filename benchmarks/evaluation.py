"""Throughput of batched evaluation, against a loop of single ``explain`` calls.

    python benchmarks/evaluation.py [--sentences 100] [--repetitions 3] [--models sva-gpt2 ...]
        [--threads 1]

Both explain the same sentences of the package's grammar by the same methods with the same options,
and give the same relevances, which is checked first. A ratio is the time of the loop over that of
the batches, the medians over repetitions that are made in turn. The row of a method is an
evaluation of that method alone; "all" is one evaluation of all methods, as ``captum-lrpx evaluate``
makes it, against the sum of their loops.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from harness import interleaved, machine

from captum_lrpx import Target, explain, zoo
from captum_lrpx.sva import generate
from captum_lrpx.sva.evaluation import DEFAULT_METHODS, Settings, contenders, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from captum_lrpx.sva.evaluation import Contender, ModelResults
    from captum_lrpx.sva.samples import Sample

RELATIVE_TOLERANCE = 1e-3
"""Of the largest relevance of a text: float32, in batches of another shape."""


@dataclass(frozen=True)
class Case:
    """One model, on the same samples in both ways."""

    name: str
    loaded: tuple[Any, Any]
    samples: list[Sample]

    def batched(self, *chosen: Contender) -> ModelResults:
        """All samples in batches, as ``captum-lrpx evaluate`` explains them."""
        models = {self.name: lambda: self.loaded}
        return evaluate(models, self.samples, chosen, Settings()).models[0]

    def loop(self, contender: Contender) -> list[tuple[float, ...]]:
        """One ``explain`` call for each sample (and draw)."""
        model, tokenizer = self.loaded
        found = []
        for sample in self.samples:
            mask = tokenizer.mask_token
            text = sample.prefix if mask is None else sample.masked(mask)
            target = Target(f" {sample.verb}", contrast=f" {sample.foil}")  # a blank comes first
            for draw in range(contender.draws):
                seed = {"seed": draw} if contender.draws > 1 else {}
                one = explain(
                    model,
                    tokenizer,
                    text,
                    target,
                    method=contender.method,
                    certify=False,  # no evaluation certifies
                    **contender.options,
                    **seed,
                )
                found.append(one.relevances)
        return found

    def check(self, contender: Contender) -> None:
        """Stop unless both ways give the same relevances."""
        results = self.batched(contender)
        if len(results.samples) < len(self.samples):
            raise ValueError(f"{self.name} gets a sentence wrong: both ways must do the same work.")
        alone = iter(self.loop(contender))
        place = {id(sample): row for row, sample in enumerate(results.samples)}
        for sample in self.samples:
            row = place[id(sample)]
            for draw in range(contender.draws):
                ours = results.relevances[contender.name, draw][row][results.mask[row]]
                theirs = torch.tensor(next(alone), dtype=torch.float64)
                atol = RELATIVE_TOLERANCE * theirs.abs().max().item()
                torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def main() -> None:
    """Check, time and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(zoo.names()), choices=zoo.names())
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT_METHODS), metavar="METHOD")
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}, {options.sentences} sentences, {options.repetitions} repetitions\n")
    print("| model | method | single calls, ms per sample | batched, ms per sample | ratio |")
    print("|---|---|---:|---:|---:|")
    for name in options.models:
        loaded = zoo.load(name)
        case = Case(name, loaded, right_ones(name, loaded, options.sentences))
        for row in rows(case, contenders(options.methods), options.repetitions):
            print(f"| {name} | {row} |", flush=True)


def rows(case: Case, chosen: Sequence[Contender], repetitions: int) -> Iterator[str]:
    """A row for each method, and one for all of them."""
    singly: dict[str, float] = {}
    for contender in chosen:
        case.check(contender)
        ways = {
            "single": partial(case.loop, contender),
            "batched": partial(case.batched, contender),
        }
        times = interleaved(ways, repetitions, f"{case.name} {contender.name}")
        singly[contender.name] = times["single"].median
        yield _row(case, contender.name, times["single"].median, times["batched"].median)
    groups = {"all": chosen, "all but random": [each for each in chosen if each.draws == 1]}
    for name, group in groups.items():
        times = interleaved({"batched": partial(case.batched, *group)}, repetitions)
        single = sum(singly[each.name] for each in group)
        yield _row(case, name, single, times["batched"].median)


def _row(case: Case, name: str, single: float, batched: float) -> str:
    alone, together = (1000 * seconds / len(case.samples) for seconds in (single, batched))
    return f"{name} | {alone:.1f} | {together:.2f} | {single / batched:.1f}"


def right_ones(name: str, loaded: tuple[Any, Any], count: int) -> list[Sample]:
    """Sentences that the model gets right, so that both ways have the same work."""
    samples = generate(2 * count, "test", 0, attractors=(1, 3))
    found = evaluate({name: lambda: loaded}, samples, contenders(["random"])).models[0]
    right = set(map(id, found.samples))
    return [sample for sample in samples if id(sample) in right][:count]


if __name__ == "__main__":
    main()
