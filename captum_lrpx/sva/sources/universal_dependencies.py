"""Universal Dependencies: sentences of any language with annotated subjects.

For every noun that is the subject (``nsubj``) of a clause, the word of the clause that agrees with
it is the finite verb or auxiliary: the head itself, its auxiliary or its copula; without a
finite one, a participle that has a number (the past tense of Czech). Its other form is
looked up in the treebank: a form of the same lemma with the same tense, mood and so on, and the
other number.

A treebank may mark one number only (English before UD 2.13 or so: "is" has ``Number=Sing``, "are"
has no number). A finite form without a number therefore takes the subject's, if the treebank has
a form with the other number.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

from captum_lrpx.sva.counting import Collected, DroppedError, drop_if, keep
from captum_lrpx.sva.english import in_case_of
from captum_lrpx.sva.parsing import check_filters
from captum_lrpx.sva.samples import Sample, covers_whole_words
from captum_lrpx.sva.sources.conllu import read_trees

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from captum_lrpx.sva.parsing import Filters
    from captum_lrpx.sva.samples import Number, Span
    from captum_lrpx.sva.sources.conllu import Node, Tree


LICENCE = "as stated by the treebank"
REASONS: dict[str, str] = {
    "relation not nsubj": "it has a subtype, as in a passive (filters of the paper)",
    "subject not a noun": "it is a pronoun, a number, an adjective, ...",
    "subject has no number": "the treebank marks it neither as singular nor as plural",
    "no agreeing verb": "the clause has no finite verb, nor a participle with a number, or it is "
    "misspelt",
    "verb disagrees": "the verb's number or person differs from the subject's: two nouns "
    "joined by 'and', a collective noun, a verb that agrees with something else",
    "verb not VBZ or VBP": "the treebank's own tag of the verb is another one, or it has none "
    "(filters of the paper)",
    "no other form": "no verb of the treebank differs only in the number",
    "same form": "both numbers have one form in the treebank",
    "several words": "a form of the verb has a blank in it",
    "not a word of the text": "verb or subject is a part of a multiword token or of a written word",
}
"""Reasons for dropping subjects, in the order of the checks; the first reason counts. The
filters of the paper require neither a noun nor its number."""

_NOUNS = ("NOUN", "PROPN")
_VERBS = ("VERB", "AUX")
_AUXILIARIES = ("aux", "cop")
_CELL = ("Mood", "Tense", "VerbForm", "Aspect", "Voice", "Polarity", "Definite", "Polite")
"""Features that two forms must share to differ in number only; person and gender apart."""
_NUMBERS: dict[str, Number] = {"Sing": "singular", "Plur": "plural"}
_OTHER = {"Sing": "Plur", "Plur": "Sing"}
_NOUNS_PERSON = "3"
_PRESENT = {"VBZ": "Sing", "VBP": "Plur"}
"""Penn Treebank tags of present tense verbs, and the number that the paper counts them as."""


def read_conllu(
    *paths: str | os.PathLike[str],
    forms: Iterable[str | os.PathLike[str]] = (),
    filters: Filters = "strict",
    licence: str = LICENCE,
) -> Collected:
    """Read the subjects of a treebank.

    A sentence with several subjects yields several samples. If the subject comes after the verb
    there are no nouns between them: such samples have no attractors, and are for masked models
    only.

    Args:
        paths: The files of the treebank.
        forms: Further files of it, in which forms of verbs are looked up, but no subjects: a small
            part of a treebank lacks one of the forms of many verbs.
        filters: Kept subjects, see :data:`captum_lrpx.sva.parsing.Filters`. The filters of the
            paper need the tags of the Penn Treebank, which English treebanks have.
        licence: The licence of the sentences.

    Returns:
        The samples, and the number of subjects dropped by each of :data:`REASONS`.

    Raises:
        ValueError: If there are no such filters, or a line is broken; the message names the file
            and the line.
    """
    check_filters(filters)
    trees = [tree for path in paths for tree in read_trees(path)]
    lexicon = _Lexicon(itertools.chain(trees, *map(read_trees, forms)))

    def sample(found: tuple[Tree, int]) -> Sample:
        return _sample(*found, lexicon, filters, licence)

    return Collected(*keep(sample, _subjects(trees), REASONS))


class _Form(NamedTuple):
    """A form of a verb, with the features that may vary between its numbers."""

    text: str
    number: str
    person: str
    gender: str


class _Lexicon:
    """Forms of the verbs of trees, by lemma and by the features shared by both numbers."""

    def __init__(self, trees: Iterable[Tree]) -> None:
        self._cells: dict[tuple[str, ...], Counter[_Form]] = defaultdict(Counter)
        self._tagged: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for node in itertools.chain.from_iterable(tree.nodes for tree in trees):
            if node.upos in _VERBS and not _is_odd(node):
                get = node.features.get
                form = _Form(
                    node.form.lower(), get("Number", ""), get("Person", ""), get("Gender", "")
                )
                self._cells[_cell(node)][form] += 1
                if form.text.isalpha():
                    self._tagged[node.lemma.lower(), node.tag][form.text] += 1

    def other_form(self, verb: Node, number: str) -> str | None:
        """Return the form of a verb for the other number: best match, then most frequent.

        Args:
            verb: The verb.
            number: Its number, "Sing" or "Plur", which the verb itself may not have.

        Returns:
            The form in lower case, if the treebank has one.
        """
        person = verb.features.get("Person", _NOUNS_PERSON)
        gender = verb.features.get("Gender", "")
        # A form without a number stands for the number that the treebank does not mark.
        numbers = (_OTHER[number], "") if "Number" in verb.features else (_OTHER[number],)
        forms = self._cells[_cell(verb)]

        def rank(form: _Form) -> tuple[object, ...]:
            return not form.number, form.gender != gender, -forms[form], form.text

        found = [form for form in forms if form.number in numbers and form.person in (person, "")]
        return min(found, key=rank).text if found else None

    def other_tagged(self, verb: Node) -> str | None:
        """The most frequent whole word with the verb's lemma and the other present tense tag."""
        (tag,) = _PRESENT.keys() - {verb.tag}
        forms = self._tagged[verb.lemma.lower(), tag]
        return min(forms, key=lambda text: (-forms[text], text), default=None)


def _cell(verb: Node) -> tuple[str, ...]:
    return (verb.lemma.lower(), *(verb.features.get(name, "") for name in _CELL))


def _is_odd(node: Node) -> bool:
    """Whether a word is misspelt or abbreviated, and so no form for a model to predict."""
    return "Yes" in (node.features.get("Typo"), node.features.get("Abbr"))


def _subjects(trees: Iterable[Tree]) -> Iterator[tuple[Tree, int]]:
    for tree in trees:
        for index, node in enumerate(tree.nodes):
            # A subject of a clause that contains another one as its predicate ("nsubj:outer") is
            # annotated at that clause's predicate, not at the verb that it agrees with.
            if node.relation.split(":")[0] == "nsubj" and node.relation != "nsubj:outer":
                yield tree, index


def _sample(tree: Tree, index: int, lexicon: _Lexicon, filters: Filters, licence: str) -> Sample:
    subject = tree.nodes[index]
    find = _present_verb if filters == "paper" else _verb_of_noun
    at, number = find(tree, subject)
    verb = tree.nodes[at]
    other = lexicon.other_tagged(verb) if filters == "paper" else lexicon.other_form(verb, number)
    if other is None:
        raise DroppedError("no other form")
    foil = in_case_of(other, verb.form)
    drop_if(verb.form in (other, foil) or verb.form.lower() == other, "same form")
    drop_if(" " in verb.form + foil, "several words")
    return Sample(
        sentence=tree.text,
        verb_span=_written_at(tree, verb),
        verb=verb.form,
        foil=foil,
        evidence=(_written_at(tree, subject),),
        number=_NUMBERS[number],
        n_attractors=_attractors(tree, index, at, number),
        source=tree.source,
        licence=licence,
    )


def _verb_of_noun(tree: Tree, subject: Node) -> tuple[int, str]:
    """The verb of a noun, and the number of both (strict filters)."""
    drop_if(subject.upos not in _NOUNS, "subject not a noun")
    number = subject.features.get("Number", "")
    drop_if(number not in _NUMBERS, "subject has no number")
    at = _agreeing(tree, subject.head)
    features = tree.nodes[at].features
    agrees = (features.get("Number", number), features.get("Person", _NOUNS_PERSON))
    drop_if(agrees != (number, _NOUNS_PERSON), "verb disagrees")
    return at, number


def _present_verb(tree: Tree, subject: Node) -> tuple[int, str]:
    """The verb of any subject in the present tense, and its number (filters of the paper)."""
    drop_if(subject.relation != "nsubj", "relation not nsubj")
    at = _agreeing(tree, subject.head)
    number = _PRESENT.get(tree.nodes[at].tag)
    if number is None:
        raise DroppedError("verb not VBZ or VBP")
    return at, number


def _agreeing(tree: Tree, head: int) -> int:
    """The word of a clause that agrees with its subject: finite if there is such a verb."""
    nodes = tree.nodes
    auxiliaries = [
        at
        for at, node in enumerate(nodes)
        if node.head == head and node.relation.split(":")[0] in _AUXILIARIES
    ]
    verbs = [
        at for at in [*auxiliaries, head] if nodes[at].upos in _VERBS and not _is_odd(nodes[at])
    ]
    finite = [at for at in verbs if nodes[at].features.get("VerbForm") == "Fin"]
    with_number = [at for at in verbs if "Number" in nodes[at].features]
    found = [*(at for at in finite if at in with_number), *finite, *with_number]
    drop_if(not found, "no agreeing verb")
    return found[0]


def _written_at(tree: Tree, node: Node) -> Span:
    if node.span is None or not covers_whole_words(tree.text, node.span):
        raise DroppedError("not a word of the text")
    return node.span


def _attractors(tree: Tree, subject: int, verb: int, number: str) -> int:
    return sum(
        node.upos in _NOUNS and node.features.get("Number") == _OTHER[number]
        for node in tree.nodes[subject + 1 : verb]
    )
