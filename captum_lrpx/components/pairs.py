"""Pairs of texts that differ in what decides a prediction, read from files and tokenized."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """Two texts of the same structure, and continuations that tell them apart.

    Attributes:
        task: Name of the task.
        clean: A text.
        corrupted: The other text.
        good: Continuations that fit the clean text.
        bad: Continuations that do not; the explained value is the mean logit of the good
            ones minus the mean logit of the bad ones.
    """

    task: str
    clean: str
    corrupted: str
    good: tuple[str, ...]
    bad: tuple[str, ...]


@dataclass(frozen=True)
class TokenPair:
    """A pair as a model reads it.

    Attributes:
        task: Name of the task.
        number: Index among the pairs of the task.
        clean: Token ids ``[1, T]``.
        corrupted: Token ids ``[1, T]``.
        tokens: Ids of the continuations ``[1, K]``.
        weights: Their weights in the explained value ``[1, K]``.
    """

    task: str
    number: int
    clean: Tensor
    corrupted: Tensor
    tokens: Tensor
    weights: Tensor

    @property
    def first_difference(self) -> int:
        """The first position at which the texts differ."""
        return int((self.clean != self.corrupted)[0].nonzero()[0])


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Read pairs from a file of JSON lines.

    Supported forms: ``clean``, ``corrupted``, ``good``, ``bad`` (strings, or lists of them);
    the files of Marks et al. (2024, ``clean_prefix``, ``patch_prefix``, ``clean_answer``,
    ``patch_answer``); and the files of Hanna et al. (2024): indirect objects (``corrupted_hard``,
    where the other person gives) and years (``label``, the last two digits to be exceeded).

    Args:
        path: The file; the task is its name.

    Raises:
        ValueError: If a line has none of these forms; the message names the line.
        OSError: If the file cannot be read.
    """
    path = Path(path)
    pairs = []
    # Other line breaks of Unicode may stand inside of a text.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            pairs.append(_pair(path.stem, json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: no pair of texts ({type(error).__name__}: {error}). A "
                'line is {"clean": ..., "corrupted": ..., "good": ..., "bad": ...}, or of a form '
                "that the documentation names."
            ) from None
    return pairs


def _pair(task: str, given: Mapping[str, Any]) -> Pair:
    if "clean_prefix" in given:
        return Pair(
            task,
            given["clean_prefix"],
            given["patch_prefix"],
            (given["clean_answer"],),
            (given["patch_answer"],),
        )
    if "corrupted_hard" in given:
        return _indirect_object(task, given["clean"], given["corrupted_hard"])
    if "label" in given:
        # Placeholders for many continuations, years after and before: see `tokenized`.
        year = str(given["label"])
        return Pair(task, given["clean"], given["corrupted"], (f">{year}",), (f"<{year}",))
    return Pair(
        task, given["clean"], given["corrupted"], _texts(given["good"]), _texts(given["bad"])
    )


def _texts(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"continuations are texts, not {value!r}")
    return texts


def _indirect_object(task: str, clean: str, corrupted: str) -> Pair:
    """A pair in which giver and receiver swap places."""
    words = [re.findall(r"\w+", text) for text in (clean, corrupted)]
    different = [(one, other) for one, other in zip(*words, strict=True) if one != other]
    if len(different) != 1:
        raise ValueError("the texts differ in more than the person who gives")
    giver, receiver = different[0]
    return Pair(task, clean, corrupted, (f" {receiver}",), (f" {giver}",))


def tokenized(
    pairs: Sequence[Pair],
    tokenizer: Any,
    *,
    number: int | None = None,
    first_token: str | None = None,
    seed: int = 0,
) -> list[TokenPair]:
    """Select pairs that fit a model: of equal length, with continuations of one token.

    Args:
        pairs: Pairs of one task.
        tokenizer: Tokenizer of the model.
        number: Number of pairs to keep, in random order. Default: all
        first_token: Special token to put before each text.
        seed: Seed of the order.

    Returns:
        The pairs that fit.
    """
    order = list(pairs)
    if number is not None:
        random.Random(seed).shuffle(order)  # noqa: S311 - a sample, no secret
    found: list[TokenPair] = []
    for pair in order:
        if len(found) == number:
            break
        fitting = _fitting(pair, tokenizer, first_token, len(found))
        if fitting is not None:
            found.append(fitting)
    return found


def _fitting(pair: Pair, tokenizer: Any, first_token: str | None, number: int) -> TokenPair | None:
    """The pair as a model reads it; None if it does not fit."""
    prefix = [] if first_token is None else [tokenizer.convert_tokens_to_ids(first_token)]

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=first_token is None).input_ids
        return [*prefix, *found]

    clean, corrupted = ids(pair.clean), ids(pair.corrupted)

    def token(text: str) -> int | None:
        """The single token that continues a text; None if there is none."""
        longer = ids(pair.clean + text)
        fits = len(longer) == len(clean) + 1 and longer[:-1] == clean
        return longer[-1] if fits else None

    if pair.good[0].startswith(">") and pair.bad[0].startswith("<"):
        good, bad = _years(pair.good[0][1:], token)
    else:
        good, bad = [token(text) for text in pair.good], [token(text) for text in pair.bad]
    if (
        len(clean) != len(corrupted)
        or clean == corrupted
        or None in good + bad
        or not good
        or not bad
    ):
        return None
    weights = [1 / len(good)] * len(good) + [-1 / len(bad)] * len(bad)
    return TokenPair(
        pair.task,
        number,
        torch.tensor([clean]),
        torch.tensor([corrupted]),
        torch.tensor([good + bad]),
        torch.tensor([weights]),
    )


def _years(
    year: str, token: Callable[[str], int | None]
) -> tuple[list[int | None], list[int | None]]:
    """Continuations above and below two digits of a year; one digit where that is a token."""
    digits = 2 if token(year) is not None else 1
    bound = int(year[:digits])
    numbers = [f"{each:0{digits}d}" for each in range(10**digits)]
    after = [token(each) for each in numbers if int(each) > bound]
    before = [token(each) for each in numbers if int(each) < bound]
    return after, before
