"""A grammar that generates agreement sentences whose subject is known by construction.

Every sentence has one main subject and one main verb. Between them are up to three nouns, in
prepositional phrases ("the keys to the cabinet near the door are") and relative clauses ("the
author that the guards like is", "the author that likes the dogs is"). Such a noun is an
*attractor* if its number differs from the subject's (Linzen et al., 2016). Determiners,
adjectives and everything after the verb are the same for both numbers, so only the subject,
and a relative clause verb that agrees with it, determine the right form of the verb.

The split matters as much: a fixed hash sets aside a quarter of all (noun, verb) and
(noun, noun) pairs. In a test sentence the subject meets only verbs and nouns set aside
for it; in a training sentence it never meets any of them.
"""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from captum_lrpx.sva.lexicon import (
    ADJECTIVES,
    ADVERBS,
    DETERMINERS,
    NOUNS,
    OPENERS,
    PREPOSITIONS,
    TIMES,
    VERBS,
    Noun,
    Verb,
)
from captum_lrpx.sva.samples import NUMBERS, Number, Sample, word_span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from captum_lrpx.sva.samples import Span

Split: TypeAlias = Literal["train", "test"]
T = TypeVar("T")

SPLITS: tuple[Split, Split] = ("train", "test")
LICENCE = "BSD-3-Clause"
MAX_INTERVENING = 3
"""At most this many nouns stand between subject and verb."""

_HELD_OUT_SHARE = 4
"""One pair in this many belongs to the test split."""
_SALT = "sva-0"
"""With this salt "the keys to the cabinet are" is a test sentence."""
_PATIENCE = 10_000
"""Give up after this many rejected sentences in a row: the request leaves too few sentences."""


def held_out(first: str, second: str) -> bool:
    """Tell whether a pair of words, in any order, belongs to the test split.

    Args:
        first: A noun in the singular, or a verb in the plural.
        second: Another one.
    """
    pair = "|".join([_SALT, *sorted((first, second))])
    digest = hashlib.sha256(pair.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % _HELD_OUT_SHARE == 0


@functools.cache
def nouns_for(subject: Noun, split: Split) -> tuple[Noun, ...]:
    """Return the nouns that may share a sentence of ``split`` with ``subject``."""
    return tuple(
        noun
        for noun in NOUNS
        if noun != subject and held_out(subject.singular, noun.singular) == (split == "test")
    )


@functools.cache
def verbs_for(subject: Noun, split: Split) -> tuple[Verb, ...]:
    """Return the verbs that may have ``subject`` as subject in a sentence of ``split``."""
    return tuple(
        verb
        for verb in VERBS
        if (subject.animate or not verb.animate)
        and held_out(subject.singular, verb.plural) == (split == "test")
    )


@functools.cache
def subjects(split: Split) -> tuple[Noun, ...]:
    """Return the nouns with enough partners in ``split`` to be a main subject."""
    # Three intervening nouns, one in an opening phrase and one after the verb.
    needed = MAX_INTERVENING + 2
    return tuple(
        noun for noun in NOUNS if verbs_for(noun, split) and len(nouns_for(noun, split)) >= needed
    )


class _Dice:
    """Random draws that are the same on every machine and with every Python version.

    Only ``random.Random.random`` guarantees this, so all draws are derived from it.
    """

    def __init__(self, *seed: object) -> None:
        digest = hashlib.sha256(repr(seed).encode("utf-8")).digest()
        # Not used for secrets.
        self._random = random.Random(int.from_bytes(digest[:8], "big"))  # noqa: S311

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def below(self, n: int) -> int:
        return int(self._random.random() * n)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def some(self, options: Sequence[T], n: int) -> list[T]:
        """Draw ``n`` different options."""
        pool = list(options)
        return [pool.pop(self.below(len(pool))) for _ in range(n)]


@dataclass(frozen=True)
class _Head:
    """A noun with the number that it has in the sentence."""

    noun: Noun
    number: Number

    @property
    def word(self) -> str:
        return self.noun.form(self.number)


class _Sentence:
    """Writes one sentence, word by word."""

    def __init__(self, dice: _Dice, split: Split) -> None:
        self._dice = dice
        self._split = split
        self._words: list[str] = []

    def write(
        self, subject: _Head, verb: Verb, between: Sequence[_Head], others: Sequence[_Head]
    ) -> tuple[str, Span, Span]:
        """Write the sentence, and return it with the places of its subject and verb.

        Args:
            subject: The main subject.
            verb: The main verb.
            between: The nouns between the two, in order.
            others: Two more nouns, for an opening phrase and for after the verb.
        """
        self._opening(others[0])
        self._noun_phrase(subject)
        subject_at = len(self._words) - 1
        self._modifiers(subject, list(between))
        if self._dice.chance(0.1):
            self._words.append(self._dice.pick(ADVERBS))
        verb_at = len(self._words)
        self._words.append(verb.form(subject.number))
        self._ending(verb, others[1])
        spans = word_span(self._words, subject_at), word_span(self._words, verb_at)
        return " ".join(self._words), *spans

    def _opening(self, head: _Head) -> None:
        if self._dice.chance(0.1):
            self._words.append(self._dice.pick(OPENERS))
        elif self._dice.chance(0.1):
            self._prepositional_phrase(head)
            self._words.append(",")

    def _noun_phrase(self, head: _Head) -> None:
        # "the" is by far the most common determiner, as in ordinary text.
        common = self._dice.chance(0.6)
        self._words.append("the" if common else self._dice.pick(DETERMINERS))
        if self._dice.chance(0.2):
            self._words.append(self._dice.pick(ADJECTIVES))
        self._words.append(head.word)

    def _prepositional_phrase(self, head: _Head) -> None:
        self._words.append(self._dice.pick(PREPOSITIONS))
        self._noun_phrase(head)

    def _modifiers(self, head: _Head, rest: list[_Head]) -> None:
        """Write the phrases between subject and verb, at most one of them a relative clause."""
        clause = False
        while rest:
            following = rest.pop(0)
            if not clause and self._dice.chance(0.4):
                clause = self._relative_clause(head, following, rest)
            else:
                self._prepositional_phrase(following)
            head = following

    def _relative_clause(self, head: _Head, inner: _Head, rest: list[_Head]) -> bool:
        """Write a clause about ``head``; its verb agrees with ``head`` or with ``inner``.

        Returns:
            Whether there was a verb for it; if not, a prepositional phrase is written instead.
        """
        of_subject = self._dice.chance(0.5)
        agent = head if of_subject else inner
        verbs = [verb for verb in verbs_for(agent.noun, self._split) if verb.frame == "object"]
        if not verbs:
            self._prepositional_phrase(inner)
            return False
        verb = self._dice.pick(verbs).form(agent.number)
        who = head.noun.animate and self._dice.chance(0.4)
        self._words.append("who" if who else "that")
        if of_subject:
            self._words.append(verb)
            self._noun_phrase(inner)
            return True
        self._noun_phrase(inner)
        if rest and self._dice.chance(0.4):
            self._prepositional_phrase(rest.pop(0))
        self._words.append(verb)
        return True

    def _ending(self, verb: Verb, head: _Head) -> None:
        """Write what follows the verb: often nothing, or only a full stop."""
        if self._dice.chance(0.65):
            if verb.frame == "link":
                self._words.append(self._dice.pick(ADJECTIVES))
            elif verb.frame == "object":
                self._noun_phrase(head)
            elif self._dice.chance(0.5):
                self._words.append(self._dice.pick(TIMES))
            else:
                self._prepositional_phrase(head)
        if self._dice.chance(0.6):
            self._words.append(".")


def stream(
    split: Split,
    seed: int,
    attractors: tuple[int, int] | None = None,
    intervening: tuple[int, int] = (0, MAX_INTERVENING),
) -> Iterator[Sample]:
    """Generate sentences endlessly.

    Args:
        split: "train" or "test".
        seed: Any integer; the same one always gives the same sentences.
        attractors: Smallest and largest number of attractors; each number between them
            is equally frequent. ``None`` tosses a fair coin for the number of every noun
            instead, as in training, so that the nouns between subject and verb carry no
            information about the subject.
        intervening: Smallest and largest number of nouns between subject and verb.

    Yields:
        Samples; the same sentence may come twice.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check(split, attractors, intervening)
    return _stream(split, seed, attractors, intervening)


def _stream(
    split: Split, seed: int, attractors: tuple[int, int] | None, intervening: tuple[int, int]
) -> Iterator[Sample]:
    dice = _Dice(split, seed, attractors, intervening)
    source = f"captum_lrpx.sva.grammar, split {split}, seed {seed}"
    while True:
        number = dice.pick(NUMBERS)
        flips = _flips(dice, attractors, intervening)
        noun = dice.pick(subjects(split))
        verb = dice.pick(verbs_for(noun, split))
        heads = [
            _Head(other, _flipped(number) if flip else number)
            for other, flip in zip(
                dice.some(nouns_for(noun, split), len(flips) + 2),
                [*flips, dice.chance(0.5), dice.chance(0.5)],
                strict=True,
            )
        ]
        between, others = heads[: len(flips)], heads[len(flips) :]
        text, subject_span, verb_span = _Sentence(dice, split).write(
            _Head(noun, number), verb, between, others
        )
        yield Sample(
            sentence=text,
            verb_span=verb_span,
            verb=verb.form(number),
            foil=verb.form(_flipped(number)),
            evidence=(subject_span,),
            number=number,
            n_attractors=sum(flips),
            source=source,
            licence=LICENCE,
        )


def generate(
    n: int,
    split: Split,
    seed: int,
    attractors: tuple[int, int] | None = (1, 3),
    intervening: tuple[int, int] = (0, MAX_INTERVENING),
) -> list[Sample]:
    """Generate ``n`` different sentences.

    Args:
        n: Number of sentences.
        split: "train" or "test"; see the module docstring for the difference.
        seed: Any integer; the same one always gives the same sentences, on every machine.
        attractors: Smallest and largest number of attractors, see :func:`stream`.
        intervening: Smallest and largest number of nouns between subject and verb.

    Returns:
        The samples, no sentence twice.

    Raises:
        ValueError: If an argument is out of range, or if there are not enough different
            sentences.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    samples: dict[str, Sample] = {}
    rejected = 0
    sentences = stream(split, seed, attractors, intervening)
    while len(samples) < n:
        sample = next(sentences)
        rejected = rejected + 1 if sample.sentence in samples else 0
        samples.setdefault(sample.sentence, sample)
        if rejected > _PATIENCE:
            raise ValueError(f"found only {len(samples)} different sentences, not {n}")
    return list(samples.values())


def _flipped(number: Number) -> Number:
    return "plural" if number == "singular" else "singular"


def _flips(
    dice: _Dice, attractors: tuple[int, int] | None, intervening: tuple[int, int]
) -> list[bool]:
    """Draw which of the intervening nouns are attractors, in order."""
    low, high = intervening
    if attractors is None:
        return [dice.chance(0.5) for _ in range(low + dice.below(high - low + 1))]
    wanted = attractors[0] + dice.below(attractors[1] - attractors[0] + 1)
    low = max(low, wanted)
    total = low + dice.below(high - low + 1)
    chosen = dice.some(range(total), wanted)
    return [position in chosen for position in range(total)]


def _check(split: Split, attractors: tuple[int, int] | None, intervening: tuple[int, int]) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    low, high = intervening
    if not 0 <= low <= high <= MAX_INTERVENING:
        raise ValueError(
            f"intervening must be (low, high) with 0 <= low <= high <= {MAX_INTERVENING}, "
            f"got {intervening}"
        )
    if attractors is not None and not 0 <= attractors[0] <= attractors[1] <= high:
        raise ValueError(
            f"attractors must be (low, high) with 0 <= low <= high <= {high}, got {attractors}"
        )
