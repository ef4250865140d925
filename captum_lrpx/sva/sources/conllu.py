"""CoNLL-U: trees of Universal Dependencies, with their texts.

The format is described at https://universaldependencies.org/format.html. Empty nodes and enhanced
dependencies are ignored: the basic tree has every word of the text.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from captum_lrpx.sva.lines import named, numbered_lines

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from captum_lrpx.sva.samples import Span


_COLUMNS = 10
_NUMBER = re.compile(r"[1-9][0-9]*")
_RANGE = re.compile(r"([1-9][0-9]*)-([1-9][0-9]*)")
_EMPTY_NODE = re.compile(r"[0-9]+\.[1-9][0-9]*")


@dataclass(frozen=True)
class Node:
    """One syntactic word.

    Attributes:
        form: The word as written.
        lemma: Its lemma.
        upos: Its universal part of speech.
        tag: The treebank's own tag (``XPOS``), empty without one.
        features: Its morphological features, by name.
        head: The index of its head in the tree, -1 for the root.
        relation: Its relation to the head, subtype included (``nsubj:pass``).
        span: Its place in the text, in characters; ``None`` for a part of a multiword token
            whose parts do not spell the token ("du" for "de le").
    """

    form: str
    lemma: str
    upos: str
    tag: str
    features: Mapping[str, str]
    head: int
    relation: str
    span: Span | None


@dataclass(frozen=True)
class Tree:
    """One sentence.

    Attributes:
        text: The text; words that the treebank separates have one blank between them.
        nodes: Its words, in order.
        source: Its file and first line, in words.
    """

    text: str
    nodes: tuple[Node, ...]
    source: str


Row = tuple[int, list[str]]
"""A line number and the columns of the line."""


def read_trees(path: str | os.PathLike[str]) -> Iterator[Tree]:
    """Read the trees of a file.

    Args:
        path: The file.

    Yields:
        The trees.

    Raises:
        ValueError: If a line is broken; the message names the file and the line.
    """
    lines = ((at, line) for at, line in numbered_lines(path) if not line.startswith("#"))
    for is_tree, rows in itertools.groupby(lines, lambda each: bool(each[1].strip())):
        if is_tree:
            yield _tree(path, [(at, line.split("\t")) for at, line in rows])


def _tree(path: str | os.PathLike[str], rows: Sequence[Row]) -> Tree:
    words: list[Row] = []
    joined: list[tuple[int, int, Row]] = []  # first and last word of each multiword token
    for number, columns in rows:
        with named(path, number):
            if len(columns) != _COLUMNS:
                raise ValueError(
                    f"expected {_COLUMNS} columns separated by tabs, got {len(columns)}"
                )
            name = columns[0]
            span = _RANGE.fullmatch(name)
            if span:
                joined.append((int(span[1]) - 1, int(span[2]) - 1, (number, columns)))
            elif _NUMBER.fullmatch(name) and int(name) == len(words) + 1:
                words.append((number, columns))
            elif not _EMPTY_NODE.fullmatch(name):
                raise ValueError(
                    f"the ID is {name!r}, expected {len(words) + 1}, a range or a decimal"
                )
    last = -1
    for first, final, (number, columns) in joined:
        with named(path, number):
            if not last < first < final < len(words):
                raise ValueError(f"the range {columns[0]!r} does not fit the words around it")
            if not columns[1].strip():
                raise ValueError("the FORM is empty")
        last = final
    text, spans = _text(words, joined)
    nodes = []
    for (number, columns), place in zip(words, spans, strict=True):
        with named(path, number):
            nodes.append(_node(columns, len(words), place))
    return Tree(text, tuple(nodes), f"{Path(path).name}, line {rows[0][0]}")


def _text(
    words: Sequence[Row], joined: Sequence[tuple[int, int, Row]]
) -> tuple[str, list[Span | None]]:
    """The text, and the place of each word in it."""
    spans: list[Span | None] = [None] * len(words)
    ranges = {first: (final, columns) for first, final, (_, columns) in joined}
    text, at = "", 0
    while at < len(words):
        final, columns = ranges.get(at, (at, words[at][1]))
        form = _written(columns[1])
        parts = [_written(word[1]) for _, word in words[at : final + 1]]
        start = len(text)
        if "".join(parts) == form:
            for index, part in enumerate(parts, start=at):
                spans[index] = (start, start + len(part))
                start += len(part)
        text += form
        if "SpaceAfter=No" not in columns[9].split("|"):
            text += " "
        at = final + 1
    return text.rstrip(" "), spans


def _written(form: str) -> str:
    """A form with plain single blanks; some treebanks have words with blanks ("10 000")."""
    return " ".join(form.split())


def _node(columns: Sequence[str], n_words: int, span: Span | None) -> Node:
    name, form, lemma, upos, tag, features, head, relation, _, _ = columns
    if not head.isdecimal() or int(head) > n_words or head == name:
        raise ValueError(
            f"the HEAD of the word {name!r} is {head!r} in a sentence of {n_words} words"
        )
    if not form.strip() or not relation.strip():
        raise ValueError("the FORM or the DEPREL is empty")
    pairs = [] if features == "_" else [pair.partition("=") for pair in features.split("|")]
    if not all(equals and value for _, equals, value in pairs):
        raise ValueError(f"the FEATS are {features!r}, expected Name=Value|...")
    found = {name: value for name, _, value in pairs}
    return Node(_written(form), lemma, upos, tag.strip("_"), found, int(head) - 1, relation, span)
