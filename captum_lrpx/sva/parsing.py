"""The subject of a verb, found by a parser (Arras et al., 2025, appendix B).

Labels are as in spaCy's English pipelines: Penn Treebank tags and CLEAR dependencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from captum_lrpx.sva.counting import DroppedError, drop_if

if TYPE_CHECKING:
    from captum_lrpx.sva.samples import Number, Span

__all__ = [
    "NO_SUBJECT",
    "Filters",
    "ParsedWord",
    "Parser",
    "attractors_between",
    "check_filters",
    "nominal_subject",
    "subject_of",
]

Filters: TypeAlias = Literal["paper", "strict"]
"""Kept subjects. ``"paper"``: the relation is ``nsubj`` and the verb is tagged VBZ or
VBP, without further conditions (Arras et al., 2025, appendix B). ``"strict"``: the subject is a
noun that agrees with the verb in number; a passive subject (``nsubjpass``) is kept."""

NO_SUBJECT: dict[str, str] = {
    "verb not found": "the parser has no word at the verb's place",
    "relation not nsubj": "neither the verb nor its main verb (of an auxiliary) has an nsubj "
    "(filters of the paper)",
    "verb not VBZ or VBP": "the parser tags the verb as something else, or (strict filters) for "
    "the other number",
    "no subject": "neither the verb nor its main verb (of an auxiliary) has an nsubj or "
    "nsubjpass (as with the second of two verbs that share a subject)",
    "several subjects": "it has more than one",
    "subject after verb": "the only one comes after the verb",
    "subject not a noun": "it is a pronoun, a number, an adjective, ...",
    "subject disagrees": "its number differs from the verb's: two nouns joined by 'and', or a "
    "wrong parse",
}
"""Reasons why a parse yields no subject, in the order of the checks; the first one counts. The
filters of the paper use the first three; the strict ones do not use "relation not nsubj"."""

_NUMBER_OF_VERB: dict[str, Number] = {"VBZ": "singular", "VBP": "plural"}
_NUMBER_OF_TAG: dict[str, Number] = {
    "NN": "singular",
    "NNP": "singular",
    "NNS": "plural",
    "NNPS": "plural",
}
_NOMINAL = ("nsubj",)
_NOMINAL_OR_PASSIVE = ("nsubj", "nsubjpass")
_AUXILIARY = ("aux", "auxpass")


@dataclass(frozen=True)
class ParsedWord:
    """One word of a parse.

    Attributes:
        start: Its start in the sentence, in characters.
        end: Its end.
        tag: Its Penn Treebank tag.
        dep: The label of its dependency.
        head: Index of its head among the words; its own index for the root.
    """

    start: int
    end: int
    tag: str
    dep: str
    head: int


Parser: TypeAlias = Callable[[Sequence[str]], Iterable[Sequence[ParsedWord]]]
"""Maps sentences to the parsed words of each, in the same order."""


def check_filters(filters: str) -> None:
    """Check that filters of a name exist.

    Raises:
        ValueError: If they do not.
    """
    if filters not in get_args(Filters):
        raise ValueError(f"`filters` is {' or '.join(get_args(Filters))}, not {filters!r}.")


def nominal_subject(words: Sequence[ParsedWord], verb_span: Span) -> tuple[int, Number]:
    """Find the subject of a verb by the paper's filters, whatever its part of speech.

    Args:
        words: The parse of the sentence.
        verb_span: Place of the verb.

    Returns:
        The index of the head of the subject (if there are several, the nearest one, preferably
        before the verb), and the number of the verb by its tag.

    Raises:
        DroppedError: If there is none, with one of the reasons in :data:`NO_SUBJECT`.
    """
    verb = _word_at(words, verb_span)
    found = _subjects_of(words, verb, _NOMINAL)
    drop_if(not found, "relation not nsubj")
    number = _NUMBER_OF_VERB.get(words[verb].tag)
    if number is None:
        raise DroppedError("verb not VBZ or VBP")
    return min(found, key=lambda index: (index > verb, abs(index - verb))), number


def subject_of(words: Sequence[ParsedWord], verb_span: Span, number: Number) -> int:
    """Find the subject of a verb by the strict filters.

    Args:
        words: The parse of the sentence.
        verb_span: Place of the verb.
        number: The number of the verb.

    Returns:
        The index of the head of the subject.

    Raises:
        DroppedError: If there is none, with one of the reasons in :data:`NO_SUBJECT`.
    """
    verb = _word_at(words, verb_span)
    drop_if(_NUMBER_OF_VERB.get(words[verb].tag) != number, "verb not VBZ or VBP")
    found = _subjects_of(words, verb, _NOMINAL_OR_PASSIVE)
    drop_if(not found, "no subject")
    drop_if(len(found) > 1, "several subjects")
    drop_if(found[0] > verb, "subject after verb")
    subject_number = _NUMBER_OF_TAG.get(words[found[0]].tag)
    drop_if(subject_number is None, "subject not a noun")
    drop_if(subject_number != number, "subject disagrees")
    return found[0]


def attractors_between(
    words: Sequence[ParsedWord], subject: int, verb_span: Span, number: Number
) -> int:
    """Count the nouns between a subject and its verb that have the other number.

    Args:
        words: The parse of the sentence.
        subject: The index of the subject.
        verb_span: Place of the verb.
        number: The number of the subject.
    """
    return sum(
        _NUMBER_OF_TAG.get(word.tag, number) != number
        for word in words[subject + 1 :]
        if word.end <= verb_span[0]
    )


def _word_at(words: Sequence[ParsedWord], span: Span) -> int:
    for index, word in enumerate(words):
        if (word.start, word.end) == span:
            return index
    raise DroppedError("verb not found")


def _subjects_of(words: Sequence[ParsedWord], verb: int, relations: tuple[str, ...]) -> list[int]:
    """Subjects of a verb; for an auxiliary without any, of its main verb."""
    heads = [verb, words[verb].head] if words[verb].dep in _AUXILIARY else [verb]
    for head in heads:
        found = [
            index for index, word in enumerate(words) if word.head == head and word.dep in relations
        ]
        if found:
            return found
    return []
