"""How often the subject's token has the highest relevance.

    python benchmarks/subject_pointing.py [--sentences 200] [--seed 0] [--methods lrpx ...]
    python benchmarks/subject_pointing.py --models FILE.gguf --prefixes FILE.jsonl
        --first-token "<|endoftext|>"

By default: the embedded models on held-out agreement sentences of the package's grammar with one to
three attractors. Explained is the logit of the correct verb form minus that of the wrong one, at
the end of the prefix (causal models) or at the mask in the whole sentence (masked ones). Counted
over all tokens, and over those of the text only (without special tokens such as a first token,
which causal models use as an attention sink).

``--prefixes`` names a file of natural sentences, one JSON object a line: ``prefix`` (the text
before the verb), ``subject_start`` and ``subject_end`` (characters), ``verb_good``, ``verb_bad``,
``n_attractors``, and ``parse_consistent`` (others are left out). Sentences whose verb forms are not
one token each, or that the model gets wrong, are left out as in the paper (appendix B); both are
counted.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from captum_lrpx import Target, explain, zoo
from captum_lrpx.loading import load_model
from captum_lrpx.methods import METHODS
from captum_lrpx.sva.grammar import generate
from captum_lrpx.targets import task_of

if TYPE_CHECKING:
    from captum_lrpx import Explanation

DEFAULT_METHODS = ["lrpx", "attnlrpx", "altilogit"]


@dataclass(frozen=True)
class Item:
    """One text with a verb to predict and the characters of its subject."""

    text: str
    masked: str | None
    good: str
    bad: str
    evidence: tuple[tuple[int, int], ...]


def main() -> None:
    """Count and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(zoo.names()))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=DEFAULT_METHODS)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefixes", type=Path, help="natural sentences instead of the grammar's")
    parser.add_argument("--first-token", help="special token to put in front of each text")
    options = parser.parse_args()
    unknown = set(options.methods) - set(METHODS)
    if unknown:
        parser.error(f"unknown methods {sorted(unknown)}; known are {', '.join(METHODS)}")
    torch.set_num_threads(1)
    items = natural(options) if options.prefixes else grammatical(options)
    print(f"torch {torch.__version__}, {len(items)} sentences\n")
    print("| model | method | correct | counted | subject first | ... of the text's tokens |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        loaded = load_model(name)
        for method in options.methods:
            row(loaded, method, items, options.first_token)


def grammatical(options: argparse.Namespace) -> list[Item]:
    """Held-out sentences of the grammar."""
    samples = generate(options.sentences, "test", options.seed, attractors=(1, 3))
    return [
        Item(each.prefix, each.masked("[MASK]"), each.verb, each.foil, each.evidence)
        for each in samples
    ]


def natural(options: argparse.Namespace) -> list[Item]:
    """Sentences of a file with at least one attractor, a random choice of them."""
    lines = options.prefixes.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    usable = [
        record
        for record in records
        if record["n_attractors"] > 0
        and record["parse_consistent"]
        and "unk" not in record["prefix"]
    ]
    chosen = random.Random(options.seed).sample(usable, min(options.sentences, len(usable)))  # noqa: S311
    return [
        Item(
            each["prefix"],
            None,
            each["verb_good"],
            each["verb_bad"],
            ((each["subject_start"], each["subject_end"]),),
        )
        for each in chosen
    ]


def row(loaded: Any, method: str, items: list[Item], first_token: str | None) -> None:
    """Print the counts of one method on one model."""
    right, first, first_in_text, possible = 0, 0, 0, 0
    for item in tqdm(items, desc=f"{loaded.name} {method}", leave=False):
        try:
            explanation = of_item(loaded, item, method, first_token)
        except ValueError:  # a verb form of several tokens
            continue
        possible += 1
        if explanation.value <= 0:
            continue
        right += 1
        first += is_first(explanation, list(explanation.relevances), item)
        text_only = [
            float("-inf") if special else relevance
            for relevance, special in zip(explanation.relevances, explanation.special, strict=True)
        ]
        first_in_text += is_first(explanation, text_only, item)
    shares = " | ".join(f"{100 * count / right:.1f} %" for count in (first, first_in_text))
    name = Path(loaded.name).name
    print(
        f"| {name} | {method} | {100 * right / possible:.1f} % | {right} | {shares} |", flush=True
    )


def of_item(loaded: Any, item: Item, method: str, first_token: str | None) -> Explanation:
    """The explanation of one verb."""
    masked = task_of(loaded.model) == "masked-lm"
    text = item.masked if masked and item.masked else item.text
    target = Target(item.good, contrast=item.bad)
    return explain(
        loaded.model, loaded.tokenizer, text, target, method=method, first_token=first_token
    )


def is_first(explanation: Explanation, relevances: list[float], item: Item) -> bool:
    """Whether the token of highest relevance is part of the subject."""
    best = max(range(len(relevances)), key=relevances.__getitem__)
    start, end = explanation.offsets[best]
    return any(start < stop and begin < end for begin, stop in item.evidence)


if __name__ == "__main__":
    main()
