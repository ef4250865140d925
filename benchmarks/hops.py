"""Do hops find the evidence? Needles and chains of variables, with 0, 1 and 2 hops.

    OMP_NUM_THREADS=1 python benchmarks/hops.py --model FILE.gguf --journal hops.jsonl \
        [--lengths 200 400 800] [--rows 20] [--hops 0 1 2]
    python benchmarks/hops.py --journal hops.jsonl --table

Texts are drawn from a seed: filler sentences, and among them a number for a city (needle) or a
chain of assignments (variables). The answer is teacher-forced with its reasoning, which names the
evidence before the number; the number at its end is explained, in logits. Recovery is the share of
the evidence's sentences among as many sentences of the text with the most relevance. Each finished
row is a line of the journal, from which a later run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evidence import done_in

from captum_lrpx import ALTILogit, AttnLRPx, LLMRelevance, LRPx
from captum_lrpx.loading import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from captum_lrpx import LLMRelevanceResult
    from captum_lrpx.loading import LoadedModel


class _Remembering(ALTILogit):
    """Keeps what it found for each token of a text, as every number of hops asks for the same."""

    def attribute_targets(self, inputs: Any, targets: Any, *args: Any, **options: Any) -> Any:
        key = str((inputs.tolist(), targets, args, options))
        self.found: dict[str, Any] = getattr(self, "found", {})
        if key not in self.found:
            self.found[key] = super().attribute_targets(inputs, targets, *args, **options)
        return self.found[key]


_METHODS: dict[str, Callable[[Any], Any]] = {
    "AttnLRPx": AttnLRPx,
    "LRPx": LRPx,
    "ALTILogit": _Remembering,
}
_FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
    "The river runs to the sea.",
    "People walk along the street.",
    "A bird sings in the tree.",
)
_CITIES = ("Paris", "London", "Madrid", "Vienna", "Lisbon", "Athens", "Dublin", "Prague")


class Task(NamedTuple):
    """A text with evidence, and an answer with its reasoning."""

    sentences: list[str]
    evidence: list[int]
    question: str
    reasoning: str
    answer: str


def needle(draw: random.Random, count: int) -> Task:
    """A number for one city among numbers for others, within filler."""
    cities = draw.sample(_CITIES, 3)
    numbers = [str(draw.randrange(1000, 10000)) for _ in cities]
    said = [
        f"The magic number of {city} is {number}."
        for city, number in zip(cities, numbers, strict=True)
    ]
    sentences, places = _spread(draw, said, count)
    return Task(
        sentences,
        places[:1],
        f"What is the magic number of {cities[0]}?",
        f"The text says that the magic number of {cities[0]} is {numbers[0]}. So the answer is",
        f" {numbers[0]}",
    )


def variables(draw: random.Random, count: int) -> Task:
    """A chain of three assignments, and one beside it."""
    names = draw.sample("ABCDEFGHKLMN", 4)
    number, other = (str(draw.randrange(1000, 10000)) for _ in range(2))
    said = [
        f"Variable {names[0]} is {number}.",
        f"Variable {names[1]} equals variable {names[0]}.",
        f"Variable {names[2]} equals variable {names[1]}.",
        f"Variable {names[3]} is {other}.",
    ]
    sentences, places = _spread(draw, said, count)
    return Task(
        sentences,
        places[:3],
        f"What is variable {names[2]}?",
        f"Variable {names[2]} equals variable {names[1]}, variable {names[1]} equals variable "
        f"{names[0]}, and variable {names[0]} is {number}. So the answer is",
        f" {number}",
    )


_TASKS = {"needle": needle, "variables": variables}


def _spread(draw: random.Random, said: list[str], count: int) -> tuple[list[str], list[int]]:
    """Sentences in their order among filler, and where they are."""
    places = sorted(draw.sample(range(count), len(said)))
    sentences = [draw.choice(_FILLER) for _ in range(count)]
    for place, sentence in zip(places, said, strict=True):
        sentences[place] = sentence
    return sentences, places


def of_length(kind: str, seed: int, length: int, tokenizer: Any) -> tuple[Task, str, int]:
    """A task whose text has about a number of tokens with question and reasoning."""
    for count in range(8, length):
        task = _TASKS[kind](random.Random(seed), count)  # noqa: S311 - a draw, no secret
        text = f"{' '.join(task.sentences)}\n\nQuestion: {task.question}\nAnswer:"
        size = len(tokenizer(f"{text} {task.reasoning}{task.answer}").input_ids)
        if size >= length:
            break
    return task, text, size


def recovery(result: LLMRelevanceResult, task: Task) -> float:
    """Share of the evidence among as many sentences with the most relevance."""
    spans, at = [], 0
    for sentence in task.sentences:
        start = result.record.text.index(sentence, at)
        at = start + len(sentence)
        spans.append((start, at))
    segments = result.record.segments(spans).of("span")
    order = sorted(range(len(spans)), key=lambda index: -segments[index].relevance)
    found = set(order[: len(task.evidence)]) & set(task.evidence)
    return len(found) / len(task.evidence)


def row_of(
    loaded: LoadedModel, kind: str, seed: int, length: int, hops: list[int]
) -> dict[str, Any]:
    """Recovery of one text by each method and number of hops, and the share that is lost."""
    task, text, tokens = of_length(kind, seed, length, loaded.tokenizer)
    answer = len(loaded.tokenizer(task.answer).input_ids)
    found: dict[str, Any] = {}
    for name, method in _METHODS.items():
        llm = LLMRelevance(method(loaded.model), loaded.tokenizer, "logit")
        for count in hops:
            result = llm.attribute(
                text,
                f" {task.reasoning}{task.answer}",
                first_token="<|endoftext|>",
                spans=[(-answer, None)],
                hops=count,
            )
            lost = sum(result.record.options.get("lost", []))
            found[f"{name}, {count}"] = recovery(result, task), lost / abs(float(result.values[0]))
    chance = len(task.evidence) / len(task.sentences)
    return {"tokens": tokens, "found": found, "chance": chance}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean recovery with 95 % bootstrap intervals, in Markdown."""
    yield "| task | tokens | rows | chance | method | hops | recovery | 95 % | lost of the logit |"
    yield "|---|---|---|---|---|---|---|---|---|"
    draw = random.Random(0)  # noqa: S311 - a draw, no secret
    for kind, length in sorted({(row["kind"], row["length"]) for row in rows}):
        here = [row for row in rows if (row["kind"], row["length"]) == (kind, length)]
        chance = sum(row["chance"] for row in here) / len(here)
        for name in here[0]["found"]:
            values = [row["found"][name][0] for row in here if name in row["found"]]
            lost = [row["found"][name][1] for row in here if name in row["found"]]
            means = sorted(
                sum(draw.choices(values, k=len(values))) / len(values) for _ in range(2000)
            )
            method, hops = name.split(", ")
            yield (
                f"| {kind} | {length} | {len(values)} | {chance:.2f} | {method} | {hops} "
                f"| {sum(values) / len(values):.2f} | {means[50]:.2f} to {means[1949]:.2f} "
                f"| {sum(lost) / len(lost):+.2f} |"
            )


def main() -> None:
    """Explain rows that are not in the journal yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 400, 800])
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--hops", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    done = done_in(options.journal)
    if not options.table:
        loaded = load_model(options.model)
        seen = {(row["kind"], row["length"], row["seed"]) for row in done}
        wanted = [
            (kind, length, seed)
            for seed in range(options.rows)
            for length in options.lengths
            for kind in _TASKS
        ]
        for kind, length, seed in wanted:
            if (kind, length, seed) in seen:
                continue
            found = row_of(loaded, kind, seed, length, options.hops)
            done.append({"kind": kind, "length": length, "seed": seed, **found})
            with options.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")
    print("\n".join(table(done)))


if __name__ == "__main__":
    main()
