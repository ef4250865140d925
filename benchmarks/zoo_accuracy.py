"""Accuracy of the models of the zoo at the right verb form, on held-out sentences.

Run as ``python benchmarks/zoo_accuracy.py``. A sentence counts as right if the logit of the
correct form is greater than the logit of the other number's form. A causal model sees the text
before the verb. A masked model is tested three times: with the whole sentence, the verb masked;
with the text before the verb and the mask; and with a full stop after these two.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from captum_lrpx import zoo
from captum_lrpx.loading import load_model
from captum_lrpx.sva import grammar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from captum_lrpx.sva.samples import Sample

SEED = 20250221
ATTRACTORS = (1, 2, 3)
_BATCH = 100

MASKED_VIEWS: dict[str, Callable[[Sample, str], str]] = {
    "whole sentence": lambda sample, mask: sample.masked(mask),
    "prefix, mask": lambda sample, mask: f"{sample.prefix} {mask}",
    "prefix, mask, stop": lambda sample, mask: f"{sample.prefix} {mask} .",
}
CAUSAL_VIEWS: dict[str, Callable[[Sample, str], str]] = {"prefix": lambda sample, _: sample.prefix}


def views(tokenizer: PreTrainedTokenizerBase) -> dict[str, Callable[[Sample, str], str]]:
    """Return the texts in which a model predicts the verb, by name."""
    return CAUSAL_VIEWS if tokenizer.mask_token is None else MASKED_VIEWS


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    view: Callable[[Sample, str], str],
) -> float:
    """Return the share of samples whose correct form has the greater logit.

    Args:
        model: A model of the zoo.
        tokenizer: Its tokenizer.
        samples: The sentences.
        view: Text of a sample for the model, given the mask token; see :func:`views`.
    """
    if not samples:
        raise ValueError("accuracy needs at least one sample")
    right = 0
    for start in range(0, len(samples), _BATCH):
        right += _count_right(model, tokenizer, samples[start : start + _BATCH], view)
    return right / len(samples)


def _count_right(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    view: Callable[[Sample, str], str],
) -> int:
    mask = str(tokenizer.mask_token or "")
    batch = tokenizer([view(sample, mask) for sample in samples], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch).logits
    if mask:
        rows, positions = (batch["input_ids"] == tokenizer.mask_token_id).nonzero(as_tuple=True)
        if len(rows) != len(samples):
            raise ValueError("every sentence must have exactly one mask")
    else:
        positions = batch["attention_mask"].sum(1) - 1
    at_verb = logits[torch.arange(len(samples)), positions]
    forms = [[_token(tokenizer, s.verb), _token(tokenizer, s.foil)] for s in samples]
    verb, foil = at_verb.gather(1, torch.tensor(forms)).T
    return int((verb > foil).sum())


def _token(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"{word!r} is not a single token but {len(ids)}")
    return int(ids[0])


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int
) -> dict[str, dict[int, float]]:
    """Measure a model on held-out sentences.

    Args:
        model: A model of the zoo.
        tokenizer: Its tokenizer.
        n: Number of sentences for each number of attractors.

    Returns:
        The accuracy by view and number of attractors.
    """
    return {
        name: {
            k: accuracy(model, tokenizer, grammar.generate(n, "test", SEED, (k, k)), view)
            for k in ATTRACTORS
        }
        for name, view in views(tokenizer).items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of accuracies.

    Args:
        arguments: The command line, without the name of the program.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models (default: all of them)")
    parser.add_argument("--folder", type=Path, help="a model that the training script wrote")
    parser.add_argument("-n", type=int, default=1000, help="sentences per number of attractors")
    options = parser.parse_args(arguments)
    if options.n < 1:
        parser.error("-n must be at least 1")
    folders = {name: zoo.path(name) for name in options.names or zoo.names()}
    if options.folder is not None:
        folders = {options.folder.name: options.folder}
    columns = "".join(f"{k:>10}" for k in ATTRACTORS)
    print(f"{'model':<12}{'sees':<20}{columns}{'all':>10}   (columns: attractors)")
    for name, folder in folders.items():
        loaded = load_model(str(folder))
        for view, row in evaluate(loaded.model, loaded.tokenizer, options.n).items():
            values = [*row.values(), sum(row.values()) / len(row)]
            print(f"{name:<12}{view:<20}" + "".join(f"{value:>10.2%}" for value in values))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
