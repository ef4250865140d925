"""Agreement sets of BLiMP (Warstadt et al., 2020): minimal pairs that differ in the verb.

One JSON object per line. The pairs of the sets read here have the same text before the verb
(``one_prefix_prefix``) and differ in the verb (``one_prefix_word_good``, ``one_prefix_word_bad``);
``UID`` names the set. The sets that end in ``_2`` differ in the subject instead, so that they have
no foil.

BLiMP does not mark the subject, but each set is made from one template, so that its place in the
prefix is known:

======================================== ======================================================
set                                      the subject is
======================================== ======================================================
(ir)regular_plural_subject_..._1         the last word of the prefix
distractor_agreement_relational_noun     the word before the first "of" or "about" after the
                                         first noun ("The *sketch* of those trucks"); the noun
                                         in the phrase is an attractor
distractor_agreement_relative_clause     the word before the first "who", "that" or "which" after
                                         the first word ("That *guest* who escaped from men"); the
                                         noun in the clause is an attractor
======================================== ======================================================

The subject is the evidence. A determiner with a number ("those", "every") agrees with it, and so
do verbs in a relative clause about the subject; determiners can be counted as evidence on request.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captum_lrpx.sva.counting import Collected, DroppedError, drop_if, keep
from captum_lrpx.sva.english import number_of_verb
from captum_lrpx.sva.lines import json_object, read_each
from captum_lrpx.sva.samples import Sample, word_span

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from captum_lrpx.sva.samples import Number, Span


LICENCE = "CC BY 4.0"
REASONS: dict[str, str] = {
    "several words differ": "the forms of the verb are phrases that differ in more than one word",
    "invalid pair": "the two forms are not the singular and the plural of one verb",
    "no subject": "the prefix does not follow the template of its set",
    "subject has no number": 'the noun has one form for both numbers ("fish")',
    "subject disagrees": 'the set errs: a determiner ("those") or the noun itself, whose other '
    'sentences have the other number, contradicts the "good" form ("Some men irritates the girl")',
}
"""Reasons for dropping pairs, in the order of the checks; the first reason counts."""

_FIELDS = (
    "UID",
    "sentence_good",
    "sentence_bad",
    "one_prefix_prefix",
    "one_prefix_word_good",
    "one_prefix_word_bad",
)
_PLAIN = (
    "regular_plural_subject_verb_agreement_1",
    "irregular_plural_subject_verb_agreement_1",
)
_AFTER_SUBJECT = {
    "distractor_agreement_relational_noun": ("of", "about"),
    "distractor_agreement_relative_clause": ("who", "that", "which"),
}
_QUANTIFIER = ("a", "lot", "of")
_ONE_FORM = ("fish", "sheep", "deer", "aircraft", "species", "series", "offspring")
_DETERMINERS: dict[str, Number] = {
    **dict.fromkeys(("a", "an", "this", "that", "every", "each"), "singular"),
    **dict.fromkeys(("these", "those", "many", "most", "all", "a lot of"), "plural"),
}
"""Before a noun that can be counted. "Most" and "all" stand with mass nouns too ("all pork"), which
the template sets do not have as subjects with a determiner."""


@dataclass(frozen=True)
class _Pair:
    """A pair, read by the template of its set."""

    source: str
    sentence: str
    prefix: str
    good: tuple[str, ...]
    bad: tuple[str, ...]
    subject: Span | None
    attractors: int

    @property
    def number(self) -> Number | None:
        return number_of_verb(self.good[0], self.bad[0])

    @property
    def noun(self) -> str:
        start, end = self.subject or (0, 0)
        return self.prefix[start:end].lower()

    @property
    def determiner(self) -> str:
        """The words with a number that open the prefix and precede the subject; may be empty."""
        before = self.prefix[: self.subject[0] if self.subject else 0].lower().strip()
        return max((each for each in _DETERMINERS if _begins(before, each)), key=len, default="")


def read_blimp(
    path: str | os.PathLike[str], *, determiners: bool = False, licence: str = LICENCE
) -> Collected:
    """Read one agreement set of BLiMP.

    Args:
        path: The file.
        determiners: Count determiners with a number ("those", "every") as evidence, too.
        licence: The licence of the sentences.

    Returns:
        The samples, and the number of pairs dropped by each of :data:`REASONS`.

    Raises:
        ValueError: If a line is broken, or belongs to an unsupported set; the message names the
            file and the line.
    """
    pairs = read_each(path, lambda line, source: _pair(json_object(line), source))
    usual = _usual_numbers(pairs)

    def sample(pair: _Pair) -> Sample:
        return _sample(pair, usual, licence, determiners)

    return Collected(*keep(sample, pairs, REASONS))


def _pair(record: Mapping[str, Any], source: str) -> _Pair:
    missing = [
        field
        for field in _FIELDS
        if not isinstance(record.get(field), str) or not record[field].strip()
    ]
    if missing:
        raise ValueError(f"no text in the fields {missing}")
    uid, sentence, other, prefix, good, bad = (" ".join(record[field].split()) for field in _FIELDS)
    subject, attractors = _subject(uid, prefix)
    for whole, word in ((sentence, good), (other, bad)):
        if not _begins(whole, f"{prefix} {word}"):
            raise ValueError(f"{whole!r} does not begin with {prefix!r} and {word!r}")
    return _Pair(
        source, sentence, prefix, tuple(good.split()), tuple(bad.split()), subject, attractors
    )


def _subject(uid: str, prefix: str) -> tuple[Span | None, int]:
    """Place of the subject by the template, and number of attractors after it."""
    words = prefix.split()
    lower = [word.lower() for word in words]
    if uid in _PLAIN:
        return word_span(words, len(words) - 1), 0
    first = len(_QUANTIFIER) if tuple(lower[: len(_QUANTIFIER)]) == _QUANTIFIER else 0
    ends = _AFTER_SUBJECT.get(uid)
    if ends is None:
        raise ValueError(
            f"the set {uid!r} is not supported: its pairs must differ in the verb only, as in "
            "(ir)regular_plural_subject_verb_agreement_1, distractor_agreement_relational_noun and "
            "distractor_agreement_relative_clause"
        )
    end = next((at for at in range(first + 1, len(words)) if lower[at] in ends), 0)
    return (word_span(words, end - 1) if end else None), 1


def _begins(text: str, words: str) -> bool:
    """Whether a text begins with these words, not with a part of the last one."""
    return text.startswith(words) and not text[len(words) : len(words) + 1].isalnum()


def _usual_numbers(pairs: Sequence[_Pair]) -> dict[str, Number]:
    """The most frequent number of each noun, unless tied."""
    counts: dict[str, Counter[Number]] = defaultdict(Counter)
    for pair in pairs:
        if pair.number is not None:
            counts[pair.noun][pair.number] += 1
    return {
        noun: numbers.most_common(1)[0][0]
        for noun, numbers in counts.items()
        if numbers["singular"] != numbers["plural"]
    }


def _sample(pair: _Pair, usual: Mapping[str, Number], licence: str, determiners: bool) -> Sample:
    drop_if(pair.good[1:] != pair.bad[1:], "several words differ")
    number = pair.number
    if number is None:
        raise DroppedError("invalid pair")
    if pair.subject is None:
        raise DroppedError("no subject")
    drop_if(pair.noun in _ONE_FORM, "subject has no number")
    drop_if(usual.get(pair.noun) != number, "subject disagrees")
    evidence = [pair.subject]
    if pair.determiner:
        drop_if(_DETERMINERS[pair.determiner] != number, "subject disagrees")
        if determiners:
            evidence.insert(0, (0, len(pair.determiner)))
    start = len(pair.prefix) + 1
    return Sample(
        sentence=pair.sentence,
        verb_span=(start, start + len(pair.good[0])),
        verb=pair.good[0],
        foil=pair.bad[0],
        evidence=tuple(evidence),
        number=number,
        n_attractors=pair.attractors,
        source=pair.source,
        licence=licence,
    )
