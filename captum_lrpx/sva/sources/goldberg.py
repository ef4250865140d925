"""Sentences of Goldberg (2019), "Assessing BERT's syntactic abilities": ``lgd_dataset.tsv``.

They are the sentences of Linzen et al. (2016) with at least one noun between subject and verb in
which all such nouns are attractors. The file does not mark the subject; in the paper (Arras
et al., 2025, appendix B) a parser finds it.

One sentence per line, five fields separated by tabs: the number of attractors, the sentence, the
sentence with ``***mask***`` for the verb, the verb, and its other form.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from captum_lrpx.sva.counting import Collected, DroppedError, drop_if
from captum_lrpx.sva.lines import byte_lines, decoded, named
from captum_lrpx.sva.parsing import Unparsed, check_filters, parse_subjects
from captum_lrpx.sva.samples import covers_whole_words

if TYPE_CHECKING:
    import os

    from captum_lrpx.sva.parsing import Filters, Parser

__all__ = ["LICENCE", "ODD_LINES", "read_goldberg"]

LICENCE = "CC BY-SA 3.0 (Wikipedia)"
MASK = "***mask***"
FIELDS = ("attractors", "sentence", "masked sentence", "verb", "other form")
ODD_LINES: dict[str, str] = {
    "not UTF-8": "a byte of the line is not valid UTF-8",
    "not five fields": "the line has more or fewer than five fields, or an empty one",
    "attractors not a number": "the first field is not a number",
    "not one mask": f"the masked sentence does not have {MASK} exactly once",
    "not one word": "a form of the verb has a blank",
    "verb does not fill the mask": "the masked sentence with the verb for the mask differs from "
    "the sentence",
    "mask in a word": "the verb is a part of a word",
}
"""Reasons for dropping lines before parsing, in the order of the checks."""


def read_goldberg(
    path: str | os.PathLike[str],
    parser: Parser,
    *,
    licence: str = LICENCE,
    filters: Filters = "paper",
    check_attractors: bool = False,
) -> Collected:
    """Read Goldberg's file and find the subjects.

    Malformed lines are dropped and counted; blank lines are skipped.

    Args:
        path: The file.
        parser: Finds the subjects, see
            :func:`captum_lrpx.sva.sources.spacy_pipeline.spacy_parser`.
        licence: The licence of the sentences.
        filters: Kept subjects, see :data:`captum_lrpx.sva.parsing.Filters`.
        check_attractors: Drop sentences where the parser counts other attractors than the file.

    Returns:
        The samples, and the number of lines dropped by each of :data:`ODD_LINES` (with the first
        line of each kind) and of :data:`captum_lrpx.sva.parsing.REASONS`.

    Raises:
        ValueError: If there are no such filters, or no line of the file is well-formed.
    """
    check_filters(filters)
    name = Path(path).name
    sentences = []
    odd: Counter[str] = Counter()
    first_lines: dict[str, int] = {}
    for number, line in byte_lines(path):
        if not line.strip():
            continue
        try:
            sentences.append(_sentence(number, line, f"{name}, line {number}"))
        except DroppedError as dropped:
            odd[str(dropped)] += 1
            first_lines.setdefault(str(dropped), number)
    if odd and not sentences:
        reason, number = next(iter(first_lines.items()))
        with named(path, number):
            raise ValueError(
                f"{reason}, and no other line is better: {len(FIELDS)} fields separated by tabs "
                f"are expected ({', '.join(FIELDS)}). Is it another file?"
            )
    found = parse_subjects(
        sentences, parser, licence, filters=filters, check_attractors=check_attractors
    )
    counts = {"given": 0, **{reason: odd[reason] for reason in ODD_LINES}, **found.counts}
    counts["given"] += odd.total()
    return Collected(found.samples, counts, first_lines)


def _sentence(number: int, line: bytes, source: str) -> Unparsed:
    try:
        text = decoded(number, line)
    except ValueError as error:
        raise DroppedError("not UTF-8") from error
    fields = [" ".join(field.split()) for field in text.split("\t")]
    drop_if(len(fields) != len(FIELDS) or not all(fields), "not five fields")
    attractors, sentence, masked, verb, foil = fields
    drop_if(not attractors.isdecimal() or len(attractors) > 3, "attractors not a number")
    drop_if(masked.count(MASK) != 1, "not one mask")
    drop_if(" " in verb + foil, "not one word")
    start = masked.find(MASK)
    span = (start, start + len(verb))
    drop_if(masked.replace(MASK, verb) != sentence, "verb does not fill the mask")
    drop_if(not covers_whole_words(sentence, span), "mask in a word")
    return Unparsed(sentence, span, verb, foil, int(attractors), source)
