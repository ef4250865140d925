"""One annotated agreement sentence, and files of them (one JSON object per line)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from captum_lrpx.files import write_text
from captum_lrpx.sva.lines import json_object, read_each

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

Number: TypeAlias = Literal["singular", "plural"]
Span: TypeAlias = tuple[int, int]

NUMBERS: tuple[Number, Number] = ("singular", "plural")


@dataclass(frozen=True)
class Sample:
    """A sentence whose verb must agree with a known subject.

    Spans are character offsets into ``sentence``: ``sentence[start:end]``.

    Attributes:
        sentence: The whole sentence, the verb included; words are separated by single blanks.
        verb_span: Place of the verb.
        verb: The correct form, exactly the text at ``verb_span``.
        foil: The form of the same verb for the other number.
        evidence: Places of the words that determine the number (the subject noun).
        number: The number of the subject.
        n_attractors: Number of nouns between subject and verb with the other number.
        source: Origin of the sentence.
        licence: The licence of the sentence.
    """

    sentence: str
    verb_span: Span
    verb: str
    foil: str
    evidence: tuple[Span, ...]
    number: Number
    n_attractors: int
    source: str
    licence: str

    def __post_init__(self) -> None:
        """Check that the fields are consistent.

        Raises:
            ValueError: If they are not; the message names the field and the reason.
        """
        for name in ("sentence", "verb", "foil", "source", "licence"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name} must be a non-empty string, got {value!r}")
        if self.sentence != " ".join(self.sentence.split()):
            raise ValueError(
                f"sentence must have its words separated by single blanks: {self.sentence!r}"
            )
        if self.number not in NUMBERS:
            raise ValueError(f"number must be one of {NUMBERS}, got {self.number!r}")
        if type(self.n_attractors) is not int or self.n_attractors < 0:
            raise ValueError(f"n_attractors must be an int >= 0, got {self.n_attractors!r}")
        self._check_verb()
        self._check_evidence()

    def _check_verb(self) -> None:
        _check_span("verb_span", self.verb_span, self.sentence)
        start, end = self.verb_span
        if self.sentence[start:end] != self.verb:
            raise ValueError(
                f"verb_span {self.verb_span} covers {self.sentence[start:end]!r}, "
                f"not the verb {self.verb!r}"
            )
        if len(self.foil.split()) != 1 or self.foil != self.foil.strip():
            raise ValueError(f"foil must be one word, got {self.foil!r}")
        if self.foil == self.verb:
            raise ValueError(f"foil must differ from the verb, both are {self.verb!r}")

    def _check_evidence(self) -> None:
        if not isinstance(self.evidence, tuple) or not self.evidence:
            raise ValueError(f"evidence must be a non-empty tuple of spans, got {self.evidence!r}")
        for span in self.evidence:
            _check_span("evidence", span, self.sentence)
            if span[0] < self.verb_span[1] and self.verb_span[0] < span[1]:
                raise ValueError(f"evidence {span} overlaps the verb at {self.verb_span}")

    @property
    def prefix(self) -> str:
        """The text before the verb, without blanks at its ends."""
        return self.sentence[: self.verb_span[0]].strip()

    def masked(self, mask_token: str) -> str:
        """Return the whole sentence with the verb replaced.

        Args:
            mask_token: Replacement of the verb, e.g. ``[MASK]``.
        """
        start, end = self.verb_span
        return self.sentence[:start] + mask_token + self.sentence[end:]


def _check_span(name: str, span: object, sentence: str) -> None:
    """Refuse a span that is not a pair of offsets around whole words of ``sentence``."""
    if (
        not isinstance(span, tuple)
        or len(span) != 2
        or not all(type(offset) is int for offset in span)
    ):
        raise ValueError(f"{name} must be (start, end) with two ints, got {span!r}")
    start, end = span
    if not 0 <= start < end <= len(sentence):
        raise ValueError(f"{name} {span} lies outside the sentence of {len(sentence)} characters")
    if not covers_whole_words(sentence, (start, end)):
        raise ValueError(f"{name} {span} does not cover whole words: {sentence[start:end]!r}")


def covers_whole_words(sentence: str, span: Span) -> bool:
    """Whether a part of a sentence starts and ends at word boundaries.

    Args:
        sentence: The sentence.
        span: The part, not empty and within the sentence.
    """
    start, end = span
    before, after = sentence[:start][-1:], sentence[end:][:1]
    inside = sentence[start] + sentence[end - 1]
    return not (before.isalnum() or after.isalnum() or " " in inside)


def word_span(words: Sequence[str], index: int) -> Span:
    """Place of one of the words of a sentence, which are separated by single blanks."""
    start = sum(len(word) + 1 for word in words[:index])
    return start, start + len(words[index])


def read_jsonl(path: str | os.PathLike[str]) -> list[Sample]:
    """Read samples from a file with one JSON object per line.

    Blank lines are skipped.

    Args:
        path: The file.

    Returns:
        The samples in the order of the file.

    Raises:
        ValueError: If a line is broken; the message names the file and the line.
    """
    return read_each(path, lambda line, _: _from_json(json_object(line)))


def write_jsonl(path: str | os.PathLike[str], samples: Iterable[Sample]) -> None:
    """Write samples to a file with one JSON object per line.

    The file is written whole or not at all: an interrupted run leaves an older file as it was.

    Args:
        path: The file; an existing one is replaced.
        samples: The samples.
    """
    write_text(
        path,
        "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples),
    )


def _from_json(record: Mapping[str, Any]) -> Sample:
    """Build a sample from a decoded line; lists become tuples."""
    wanted = [field.name for field in fields(Sample)]
    missing = [name for name in wanted if name not in record]
    unknown = sorted(set(record) - set(wanted))
    if missing or unknown:
        raise ValueError(f"fields missing: {missing}, unknown: {unknown}")
    return Sample(**{name: _with_tuples(value) for name, value in record.items()})


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
