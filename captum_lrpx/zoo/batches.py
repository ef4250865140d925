"""Training batches: endless sentences of the grammar, as tensors."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, TypeAlias

import torch

from captum_lrpx.sva import grammar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

    from captum_lrpx.sva.samples import Sample

Batch: TypeAlias = dict[str, torch.Tensor]
Row: TypeAlias = tuple[list[int], list[int]]

IGNORED = -100
"""Label of a position where nothing is predicted."""
_BUCKET = 16
"""Number of batches sorted by length at a time, which keeps padding small."""
_MASK_VERB = 0.9
_MASK_OTHER = 0.08


def batches(
    tokenizer: PreTrainedTokenizerFast, size: int, seed: int, intervening: tuple[int, int]
) -> Iterator[Batch]:
    """Make training batches endlessly.

    A masked model (its tokenizer has a mask token) predicts the verb and a few other tokens, which
    are masked; a causal model predicts the whole sentence, closed by its end token.

    Args:
        tokenizer: The tokenizer of the model.
        size: Number of sentences of a batch.
        seed: Seed of the random numbers.
        intervening: Smallest and largest number of nouns between subject and verb.

    Yields:
        The arguments of the model's forward pass, and "labels": the token to predict at each
        position, or ``IGNORED``.
    """
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    masked = tokenizer.mask_token_id is not None
    sentences = grammar.stream("train", seed, None, intervening)
    while True:
        samples = list(itertools.islice(sentences, size * _BUCKET))
        rows = _masked(tokenizer, samples, dice) if masked else _causal(tokenizer, samples)
        rows.sort(key=lambda row: len(row[0]))
        bucket = [rows[start : start + size] for start in range(0, len(rows), size)]
        dice.shuffle(bucket)
        for batch in bucket:
            yield _tensors(batch, _id(tokenizer.pad_token_id))


def _causal(tokenizer: PreTrainedTokenizerFast, samples: list[Sample]) -> list[Row]:
    end = _id(tokenizer.eos_token_id)
    encoded = tokenizer([sample.sentence for sample in samples])["input_ids"]
    # Each position predicts the next token.
    return [(ids, [*ids[1:], end]) for ids in encoded]


def _masked(
    tokenizer: PreTrainedTokenizerFast, samples: list[Sample], dice: random.Random
) -> list[Row]:
    mask = _id(tokenizer.mask_token_id)
    encoded = tokenizer([sample.sentence for sample in samples])
    rows = []
    for index, sample in enumerate(samples):
        ids = list(encoded["input_ids"][index])
        verb = encoded.char_to_token(index, sample.verb_span[0])
        labels = [IGNORED] * len(ids)
        # The first and the last token are [CLS] and [SEP].
        for position in range(1, len(ids) - 1):
            if dice.random() < (_MASK_VERB if position == verb else _MASK_OTHER):
                labels[position], ids[position] = ids[position], mask
        rows.append((ids, labels))
    return rows


def _tensors(rows: list[Row], pad: int) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": _padded([ids for ids, _ in rows], width, pad),
        "attention_mask": _padded([[1] * len(ids) for ids, _ in rows], width, 0),
        "labels": _padded([labels for _, labels in rows], width, IGNORED),
    }


def _padded(rows: list[list[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def _id(value: object) -> int:
    """Narrow the type of a token id, which tokenizers may lack."""
    if not isinstance(value, int):
        raise TypeError(f"the tokenizer lacks a special token, its number is {value!r}")
    return value
