"""Sentences of Linzen et al. (2016), laid out as by Gulordava et al. (2018): text and gold file.

The text file has one sentence per line, its words separated by blanks, ``<eos>`` at the end. The
gold file has one line for each of them, four fields separated by tabs: the index of the verb among
the words, counted from 0, its correct form, its wrong form, and the number of attractors. The
subject is not marked; a parser finds it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from captum_lrpx.sva.english import in_case_of
from captum_lrpx.sva.lines import named, numbered_lines
from captum_lrpx.sva.parsing import Unparsed, check_filters, parse_subjects
from captum_lrpx.sva.samples import word_span

if TYPE_CHECKING:
    from captum_lrpx.sva.counting import Collected
    from captum_lrpx.sva.parsing import Filters, Parser


LICENCE = "CC BY-NC 4.0"
END = "<eos>"
FIELDS = ("index of the verb", "correct form", "wrong form", "attractors")


def read_linzen(
    text: str | os.PathLike[str],
    gold: str | os.PathLike[str],
    parser: Parser,
    *,
    licence: str = LICENCE,
    filters: Filters = "paper",
    check_attractors: bool = False,
) -> Collected:
    """Read a text and a gold file and find the subjects.

    The verb's form is taken from the text: where the gold file differs only in case,
    both of its forms follow the text.

    Args:
        text: The sentences.
        gold: Annotations of their verbs.
        parser: Finds the subjects, see
            :func:`captum_lrpx.sva.sources.spacy_pipeline.spacy_parser`.
        licence: The licence of the sentences.
        filters: Kept subjects, see :data:`captum_lrpx.sva.parsing.Filters`.
        check_attractors: Drop sentences where the parser counts other attractors than the file.

    Returns:
        The samples, and the number of sentences dropped by each of
        :data:`captum_lrpx.sva.parsing.REASONS`.

    Raises:
        ValueError: If there are no such filters, a line is broken, or one file is longer than the
            other; the message names the file and the line.
    """
    check_filters(filters)
    name = Path(text).name
    lines, annotations = _lines(text), _lines(gold)
    sentences = []
    for (number, line), (known_at, known) in zip(lines, annotations, strict=False):
        with named(gold, known_at):
            sentences.append(_sentence(line, known, f"{name}, line {number}"))
    n = len(sentences)
    for longer, rest, shorter in ((text, lines[n:], gold), (gold, annotations[n:], text)):
        if rest:
            with named(longer, rest[0][0]):
                raise ValueError(f"{os.fspath(shorter)} has no line for this one")
    return parse_subjects(
        sentences, parser, licence, filters=filters, check_attractors=check_attractors
    )


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    return [(number, line) for number, line in numbered_lines(path) if line.strip()]


def _sentence(text: str, known: str, source: str) -> Unparsed:
    words = text.split()
    if words[-1] == END:
        words.pop()
    fields = known.split("\t")
    if len(fields) != len(FIELDS):
        raise ValueError(
            f"expected {len(FIELDS)} fields separated by tabs ({', '.join(FIELDS)}), "
            f"got {len(fields)}"
        )
    index, correct, wrong, attractors = (field.strip() for field in fields)
    if not index.isdecimal() or not attractors.isdecimal():
        raise ValueError(
            f"the index of the verb is {index!r}, the number of attractors {attractors!r}"
        )
    if int(index) >= len(words):
        raise ValueError(f"the verb has index {index} in a sentence of {len(words)} words")
    verb = words[int(index)]
    if verb.lower() != correct.lower():
        raise ValueError(f"the word with index {index} is {verb!r}, not {correct!r}")
    if len(wrong.split()) != 1:
        raise ValueError(f"the wrong form is {wrong!r}")
    foil = wrong if verb == correct else in_case_of(wrong.lower(), verb)
    span = word_span(words, int(index))
    return Unparsed(" ".join(words), span, verb, foil, int(attractors), source)
