"""How often the subject's token has the highest relevance, on the embedded models.

    python benchmarks/subject_pointing.py [--sentences 200] [--seed 0]

Held-out agreement sentences of the package's grammar with one to three attractors. Explained is the
logit of the correct verb form minus that of the wrong one, at the end of the prefix (GPT-2, Llama)
or at the mask in the whole sentence (BERT). Counted over all tokens, and over those of the text
only (without special tokens such as a first token, which causal models use as an attention sink).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from captum_lrpx import Target, explain, zoo
from captum_lrpx.methods import METHODS
from captum_lrpx.sva.grammar import generate
from captum_lrpx.targets import task_of

if TYPE_CHECKING:
    from captum_lrpx import Explanation
    from captum_lrpx.sva.samples import Sample


def main() -> None:
    """Count and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples = generate(options.sentences, "test", options.seed, attractors=(1, 3))
    print(f"{len(samples)} sentences, torch {torch.__version__}\n")
    print("| model | method | correct | subject first | subject first, text tokens only |")
    print("|---|---|---|---|---|")
    for name in zoo.names():
        model, tokenizer = zoo.load(name)
        for method in METHODS:
            progress = tqdm(samples, desc=f"{name} {method}", leave=False)
            rows = [count(model, tokenizer, sample, method) for sample in progress]
            shares = [
                f"{100 * sum(column) / len(rows):.1f} %" for column in zip(*rows, strict=True)
            ]
            print(f"| {name} | {method} | {' | '.join(shares)} |")


def count(model: Any, tokenizer: Any, sample: Sample, method: str) -> tuple[bool, bool, bool]:
    """Whether the model is right, and whether the subject is first among all and text tokens."""
    masked = task_of(model) == "masked-lm"
    text = sample.masked(tokenizer.mask_token) if masked else sample.prefix
    explanation = explain(
        model, tokenizer, text, Target(sample.verb, contrast=sample.foil), method=method
    )
    text_only = [
        float("-inf") if special else relevance
        for relevance, special in zip(explanation.relevances, explanation.special, strict=True)
    ]
    return (
        explanation.value > 0,
        is_first(explanation, explanation.relevances, sample),
        is_first(explanation, text_only, sample),
    )


def is_first(explanation: Explanation, relevances: Any, sample: Sample) -> bool:
    """Whether the token of highest relevance is part of the subject."""
    best = max(range(len(relevances)), key=relevances.__getitem__)
    start, end = explanation.offsets[best]
    return any(start < stop and begin < end for begin, stop in sample.evidence)


if __name__ == "__main__":
    main()
