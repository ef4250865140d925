"""spaCy as the parser that finds subjects (Arras et al., 2025, appendix B)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm import tqdm

from captum_lrpx.extras import imported
from captum_lrpx.sva.parsing import ParsedWord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from captum_lrpx.sva.parsing import Parser


DEFAULT_PIPELINE = "en_core_web_trf"
"""The paper's pipeline."""

_NEEDED = ("tagger", "parser")
_NOT_NEEDED = ("ner", "lemmatizer")


def spacy_parser(name: str = DEFAULT_PIPELINE) -> Parser:
    """Make a parser from an English spaCy pipeline.

    spaCy splits the sentences into words itself, as it does with any text.

    Args:
        name: The installed package of the pipeline, or its folder.

    Returns:
        The parser; it shows a progress bar in a terminal.

    Raises:
        ImportError: If spaCy is not installed.
        ValueError: If there is no such pipeline, or if it has no tagger or parser.
    """
    spacy = imported("spacy", "Finding subjects needs spaCy: pip install 'captum-lrpx[spacy]'.")
    try:
        pipeline = spacy.load(name, exclude=_NOT_NEEDED)
    except OSError as error:
        raise ValueError(
            f"spaCy cannot load the pipeline {name!r}: install it with "
            f"`python -m spacy download {name}`, or name one that is installed."
        ) from error
    missing = [part for part in _NEEDED if part not in pipeline.pipe_names]
    if missing:
        raise ValueError(f"The spaCy pipeline {name!r} has no {' and no '.join(missing)}.")

    def parse(sentences: Sequence[str]) -> Iterator[Sequence[ParsedWord]]:
        documents = pipeline.pipe(sentences)
        for document in tqdm(documents, "parsing", len(sentences), unit="sentence", disable=None):
            yield [
                ParsedWord(word.idx, word.idx + len(word), word.tag_, word.dep_, word.head.i)
                for word in document
            ]

    return parse
