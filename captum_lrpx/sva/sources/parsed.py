"""Sentences with a known verb, whose subject a parser must find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from captum_lrpx.sva.counting import Collected, DroppedError, drop_if, keep
from captum_lrpx.sva.english import number_of_verb
from captum_lrpx.sva.parsing import (
    NO_SUBJECT,
    attractors_between,
    nominal_subject,
    subject_of,
)
from captum_lrpx.sva.samples import Sample, covers_whole_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captum_lrpx.sva.parsing import Filters, ParsedWord, Parser
    from captum_lrpx.sva.samples import Number, Span

__all__ = ["REASONS", "Unparsed", "parse_subjects"]

REASONS: dict[str, str] = {
    "identical forms": "the verb has one form for both numbers",
    "invalid pair": "the two forms are not the singular and the plural of one verb (strict "
    "filters)",
    **NO_SUBJECT,
    "subject not a whole word": "the parser splits the word that contains the subject",
    "other attractors": "the parser counts other attractors than the source (on request only)",
}
"""Reasons for dropping sentences, in the order of the checks; the first reason counts."""


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
        parser: Parses each sentence into words, see :class:`~captum_lrpx.sva.parsing.ParsedWord`.
        licence: The licence of the sentences.
        filters: Kept subjects, see :data:`captum_lrpx.sva.parsing.Filters`; checked before.
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
    subject, number = _subject(given, words, filters)
    span = (words[subject].start, words[subject].end)
    drop_if(not covers_whole_words(given.sentence, span), "subject not a whole word")
    if check_attractors:
        found = attractors_between(words, subject, given.verb_span, number)
        drop_if(found != given.n_attractors, "other attractors")
    return Sample(**vars(given), evidence=(span,), number=number, licence=licence)


def _subject(given: Unparsed, words: Sequence[ParsedWord], filters: Filters) -> tuple[int, Number]:
    """Index of the subject, and the number inferred from the two forms of the verb."""
    number = number_of_verb(given.verb.lower(), given.foil.lower())
    if filters == "paper":
        subject, tagged = nominal_subject(words, given.verb_span)
        return subject, number or tagged
    if number is None:
        raise DroppedError("invalid pair")
    return subject_of(words, given.verb_span, number), number
