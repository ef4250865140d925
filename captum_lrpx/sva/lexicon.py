"""The words of the grammar."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from captum_lrpx.sva.samples import Number

Frame: TypeAlias = Literal["link", "object", "bare"]


@dataclass(frozen=True)
class Word:
    """A word in both numbers."""

    singular: str
    plural: str

    def form(self, number: Number) -> str:
        """Return the form for ``number``."""
        return self.singular if number == "singular" else self.plural


@dataclass(frozen=True)
class Noun(Word):
    """A noun, which may be animate."""

    animate: bool


@dataclass(frozen=True)
class Verb(Word):
    """A verb in both forms of the third person.

    Attributes:
        singular: The form for a singular subject.
        plural: The form for a plural subject; it also names the verb in the split.
        frame: What may follow: an adjective ("link"), an object, or neither ("bare").
        animate: Whether the verb takes animate subjects only.
    """

    frame: Frame
    animate: bool


def _nouns(text: str, animate: bool) -> tuple[Noun, ...]:
    """Read nouns from words; ``child/children`` gives a plural that is not simply ``-s``."""
    pairs = (word.partition("/") for word in text.split())
    return tuple(Noun(one, many or one + "s", animate) for one, _, many in pairs)


def _verbs(text: str, frame: Frame, animate: bool) -> tuple[Verb, ...]:
    """Read verbs from words; ``has/have`` gives a singular that is not simply ``-s``."""
    pairs = (word.partition("/") for word in text.split())
    return tuple(
        Verb(one if many else one + "s", many or one, frame, animate) for one, _, many in pairs
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS: tuple[Noun, ...] = (
    *_nouns(
        "author guard dog teacher doctor student pilot farmer singer lawyer judge driver waiter "
        "writer actor painter player soldier manager visitor friend cousin brother sister "
        "officer tourist dancer king poet sailor nurse boy girl cat horse bird "
        "child/children woman/women man/men",
        animate=True,
    ),
    *_nouns(
        "key cabinet car door table book chair window house garden bridge box/boxes bottle "
        "picture letter lamp wall road train truck boat ship coin clock computer phone tree "
        "flower river mountain school church/churches shop hat coat cup plate knife/knives "
        "report engine",
        animate=False,
    ),
)
VERBS: tuple[Verb, ...] = (
    *_verbs("is/are was/were seem look remain appear", "link", animate=False),
    *_verbs("has/have need hide block", "object", animate=False),
    *_verbs("fall move stay", "bare", animate=False),
    *_verbs("like see know find help follow watches/watch avoid", "object", animate=True),
    *_verbs("sleep laugh wait work", "bare", animate=True),
)
DETERMINERS = _words("the my your our his her their")
ADJECTIVES = _words(
    "old new small big red green blue black white young quiet famous strange happy sad clean "
    "dirty tall heavy cheap pretty lonely broken lucky"
)
PREPOSITIONS = _words("to near behind beside with of by from above under for at")
ADVERBS = _words("often still always never clearly really")
TIMES = _words("today yesterday here there again outside")
OPENERS = _words("perhaps sometimes maybe today and but")
RELATIVES = _words("that who")
PUNCTUATION = (",", ".")


def words() -> tuple[str, ...]:
    """Return every word that the grammar can write, each once, in a fixed order."""
    groups = [
        *((noun.singular, noun.plural) for noun in NOUNS),
        *((verb.singular, verb.plural) for verb in VERBS),
        *(DETERMINERS, ADJECTIVES, PREPOSITIONS, ADVERBS, TIMES, OPENERS, RELATIVES),
        PUNCTUATION,
    ]
    return tuple(dict.fromkeys(itertools.chain.from_iterable(groups)))
