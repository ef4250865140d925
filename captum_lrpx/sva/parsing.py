"""Sentences with a known verb, whose subject a parser finds (Arras et al., 2025, appendix B).

Labels are as in spaCy's English pipelines: Penn Treebank tags and CLEAR dependencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from captum_lrpx.sva.counting import Collected, DroppedError, drop_if, keep
from captum_lrpx.sva.english import number_of_verb
from captum_lrpx.sva.samples import Sample, covers_whole_words

if TYPE_CHECKING:
    from captum_lrpx.sva.samples import Number, Span

__all__ = [
    "REASONS",
    "Filters",
    "ParsedWord",
    "Parser",
    "Unparsed",
    "check_filters",
    "parse_subjects",
]

Filters: TypeAlias = Literal["paper", "strict"]
"""Kept subjects. ``"paper"``: the relation is ``nsubj`` and the verb is tagged VBZ or
VBP, without further conditions (Arras et al., 2025, appendix B). ``"strict"``: the subject is a
noun that agrees with the verb in number; a passive subject (``nsubjpass``) is kept."""

REASONS: dict[str, str] = {
    "identical forms": "the verb has one form for both numbers",
    "invalid pair": "the two forms are not the singular and the plural of one verb (strict "
    "filters)",
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
    "subject not a whole word": "the parser splits the word that contains the subject",
    "other attractors": "the parser counts other attractors than the source (on request only)",
}
"""Reasons for dropping sentences, in the order of the checks; the first reason counts. The filters
of the paper do not use those from "no subject" to "subject disagrees"; the strict ones do not use
"relation not nsubj"."""

_NUMBER_OF_VERB: dict[str, Number] = {"VBZ": "singular", "VBP": "plural"}
_NUMBER_OF_TAG: dict[str, Number] = {
    "NN": "singular",
    "NNP": "singular",
    "NNS": "plural",
    "NNPS": "plural",
}
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


@dataclass(frozen=True)
class Unparsed:
    """A sample without its subject; its fields are as in a sample."""

    sentence: str
    verb_span: Span
    verb: str
    foil: str
    n_attractors: int
    source: str


def parse_subjects(
    sentences: Sequence[Unparsed],
    parser: Parser,
    licence: str,
    *,
    filters: Filters,
    check_attractors: bool,
) -> Collected:
    """Make samples of sentences with a known verb.

    Args:
        sentences: The sentences.
        parser: Parses each sentence into words, see :class:`ParsedWord`.
        licence: The licence of the sentences.
        filters: Kept subjects, see :data:`Filters`; checked before.
        check_attractors: Drop sentences where the parser counts other attractors than the source:
            it has probably found another subject.

    Returns:
        The samples, and the number of sentences dropped by each of :data:`REASONS`.

    Raises:
        ValueError: If the numbers of parses and sentences differ.
    """

    def sample(pair: tuple[Unparsed, Sequence[ParsedWord]]) -> Sample:
        return _sample(*pair, licence, filters, check_attractors)

    parses = parser([each.sentence for each in sentences])
    return Collected(*keep(sample, zip(sentences, parses, strict=True), REASONS))


def _sample(
    given: Unparsed,
    words: Sequence[ParsedWord],
    licence: str,
    filters: Filters,
    check_attractors: bool,
) -> Sample:
    drop_if(given.verb.lower() == given.foil.lower(), "identical forms")
    find = _nominal_subject if filters == "paper" else _agreeing_subject
    subject, number = find(given, words)
    span = (words[subject].start, words[subject].end)
    drop_if(not covers_whole_words(given.sentence, span), "subject not a whole word")
    if check_attractors:
        between = [word for word in words[subject + 1 :] if word.end <= given.verb_span[0]]
        found = sum(_NUMBER_OF_TAG.get(word.tag, number) != number for word in between)
        drop_if(found != given.n_attractors, "other attractors")
    return Sample(**vars(given), evidence=(span,), number=number, licence=licence)


def _nominal_subject(given: Unparsed, words: Sequence[ParsedWord]) -> tuple[int, Number]:
    """Find the subject of a verb by the paper's filters, whatever its part of speech.

    Returns:
        The index of the head of the subject (if there are several, the nearest one, preferably
        before the verb), and the number of the verb by its two forms, or by its tag.
    """
    verb = _word_at(words, given.verb_span)
    found = _subjects_of(words, verb, ("nsubj",))
    drop_if(not found, "relation not nsubj")
    tagged = _NUMBER_OF_VERB.get(words[verb].tag)
    if tagged is None:
        raise DroppedError("verb not VBZ or VBP")
    nearest = min(found, key=lambda index: (index > verb, abs(index - verb)))
    return nearest, number_of_verb(given.verb.lower(), given.foil.lower()) or tagged


def _agreeing_subject(given: Unparsed, words: Sequence[ParsedWord]) -> tuple[int, Number]:
    """Find the subject of a verb by the strict filters: its index, and the number of both."""
    number = number_of_verb(given.verb.lower(), given.foil.lower())
    if number is None:
        raise DroppedError("invalid pair")
    verb = _word_at(words, given.verb_span)
    drop_if(_NUMBER_OF_VERB.get(words[verb].tag) != number, "verb not VBZ or VBP")
    found = _subjects_of(words, verb, ("nsubj", "nsubjpass"))
    drop_if(not found, "no subject")
    drop_if(len(found) > 1, "several subjects")
    drop_if(found[0] > verb, "subject after verb")
    subject_number = _NUMBER_OF_TAG.get(words[found[0]].tag)
    drop_if(subject_number is None, "subject not a noun")
    drop_if(subject_number != number, "subject disagrees")
    return found[0], number


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
