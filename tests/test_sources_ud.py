"""Universal Dependencies: text and trees of CoNLL-U, agreeing verbs and their other forms."""

import pytest

from captum_lrpx.sva.sources import read_conllu
from captum_lrpx.sva.sources.conllu import read_trees
from captum_lrpx.sva.sources.universal_dependencies import REASONS

SING, PLUR = "Number=Sing", "Number=Plur"
PRESENT = "Mood=Ind|Person=3|Tense=Pres|VerbForm=Fin"
IS, ARE = f"{PRESENT}|{SING}", f"{PRESENT}|{PLUR}"


def row(at, form, lemma="_", upos="X", feats="_", head=0, relation="dep", misc="_", tag="_"):
    return "\t".join([str(at), form, lemma, upos, tag, feats, str(head), relation, "_", misc])


def write(path, *sentences):
    lines = ["# newdoc", *("\n".join(["# text = ...", *each]) + "\n" for each in sentences)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def copula(noun="keys", noun_feats=PLUR, verb="are", verb_feats=ARE, upos="NOUN"):
    """ "The keys to the cabinet are old." """
    return [
        row(1, "The", "the", "DET", head=2, relation="det"),
        row(2, noun, noun, upos, noun_feats, 7, "nsubj"),
        row(3, "to", "to", "ADP", head=5, relation="case"),
        row(4, "the", "the", "DET", head=5, relation="det"),
        row(5, "cabinet", "cabinet", "NOUN", SING, 2, "nmod"),
        row(6, verb, "be", "AUX", verb_feats, 7, "cop"),
        row(7, "old", "old", "ADJ", "_", 0, "root", "SpaceAfter=No"),
        row(8, ".", ".", "PUNCT", "_", 7, "punct"),
    ]


def plain(noun, noun_feats, verb, lemma, verb_feats, relation="nsubj", upos="VERB"):
    """ "keys fit" """
    return [
        row(1, noun, noun, "NOUN", noun_feats, 2, relation),
        row(2, verb, lemma, upos, verb_feats, 0, "root"),
    ]


DOOR_IS = [
    row(1, "door", "door", "NOUN", SING, 3, "nsubj"),
    row(2, "is", "be", "AUX", IS, 3, "cop"),
    row(3, "old", "old", "ADJ", "_", 0, "root"),
]


def read(tmp_path, *sentences, **options):
    return read_conllu(write(tmp_path / "tiny.conllu", *sentences), **options)


def reasons(collected):
    return {name: n for name, n in collected.counts.items() if n and name not in ("given", "kept")}


def test_copula(tmp_path):
    collected = read(tmp_path, copula(), DOOR_IS, licence="CC BY 4.0")
    keys, door = collected.samples
    assert keys.sentence == "The keys to the cabinet are old."
    assert (keys.prefix, keys.verb, keys.foil) == ("The keys to the cabinet", "are", "is")
    assert [keys.sentence[start:end] for start, end in keys.evidence] == ["keys"]
    assert (keys.number, keys.n_attractors) == ("plural", 1)
    assert (keys.source, keys.licence) == ("tiny.conllu, line 3", "CC BY 4.0")
    assert (door.verb, door.foil, door.number, door.n_attractors) == ("is", "are", "singular", 0)
    assert collected.counts == {"given": 2, **dict.fromkeys(REASONS, 0), "kept": 2}


def test_auxiliary_of_a_passive(tmp_path):
    passive = [
        row(1, "keys", "key", "NOUN", PLUR, 4, "nsubj:pass"),
        row(2, "are", "be", "AUX", ARE, 4, "aux:pass"),
        row(3, "often", "often", "ADV", "_", 4, "advmod"),
        row(4, "lost", "lose", "VERB", "VerbForm=Part|Tense=Past", 0, "root"),
    ]
    sample = read(tmp_path, passive, DOOR_IS).samples[0]
    assert (sample.verb, sample.foil, sample.sentence) == ("are", "is", "keys are often lost")


def test_finite_verb_before_participle_and_modal(tmp_path):
    """French "sont parties": both agree, the auxiliary is the finite one."""
    gone = [
        row(1, "clefs", "clef", "NOUN", f"Gender=Fem|{PLUR}", 3, "nsubj"),
        row(2, "sont", "être", "AUX", ARE, 3, "aux"),
        row(3, "parties", "partir", "VERB", f"Gender=Fem|{PLUR}|VerbForm=Part", 0, "root"),
    ]
    est = plain("porte", SING, "est", "être", IS, upos="AUX")
    assert read(tmp_path, gone, est).samples[0].verb == "sont"


def test_participle_where_nothing_is_finite(tmp_path):
    """Czech "klíče ležely": the form of the same gender comes first, whatever is more frequent."""
    feats = "Tense=Past|VerbForm=Part|Voice=Act"
    keys = plain("klíče", f"Gender=Masc|{PLUR}", "ležely", "ležet", f"Gender=Masc|{feats}|{PLUR}")
    woman = plain("žena", SING, "ležela", "ležet", f"Gender=Fem|{feats}|{SING}")
    key = plain("klíč", SING, "ležel", "ležet", f"Gender=Masc|{feats}|{SING}")
    assert read(tmp_path, keys, woman, woman, key).samples[0].foil == "ležel"
    assert read(tmp_path, keys, woman).samples[0].foil == "ležela"


def test_treebanks_that_mark_one_number_only(tmp_path):
    unmarked = "Mood=Ind|Tense=Pres|VerbForm=Fin"
    collected = read(tmp_path, copula(verb_feats=unmarked), DOOR_IS)
    assert [(each.verb, each.foil, each.number) for each in collected.samples] == [
        ("are", "is", "plural"),
        ("is", "are", "singular"),
    ]
    # A form without a number is no other form of another such form.
    assert reasons(read(tmp_path, copula(verb_feats=unmarked))) == {"no other form": 1}


def test_another_person_is_no_other_form(tmp_path):
    am = plain("keys", SING, "am", "be", IS.replace("Person=3", "Person=1"), "dep", "AUX")
    assert reasons(read(tmp_path, copula(), am)) == {"no other form": 1}


def test_another_tense_is_no_other_form(tmp_path):
    was = plain("keys", SING, "was", "be", IS.replace("Pres", "Past"), "dep", "AUX")
    assert reasons(read(tmp_path, copula(), was)) == {"no other form": 1}


def test_the_more_frequent_form(tmp_path):
    ai = plain("x", SING, "ain't", "be", IS, "dep", "AUX")
    is_ = plain("x", SING, "is", "be", IS, "dep", "AUX")
    assert read(tmp_path, copula(), ai, is_, is_).samples[0].foil == "is"
    assert read(tmp_path, copula(), ai, ai, is_).samples[0].foil == "ain't"


def test_misspelt_forms_are_not_asked_for(tmp_path):
    si = plain("x", SING, "si", "be", f"{IS}|Typo=Yes", "dep", "AUX")
    assert reasons(read(tmp_path, copula(), si)) == {"no other form": 1}
    assert reasons(read(tmp_path, copula(verb_feats=f"{ARE}|Typo=Yes"))) == {"no agreeing verb": 1}


def test_forms_from_other_files(tmp_path):
    more = write(tmp_path / "train.conllu", DOOR_IS)
    (sample,) = read(tmp_path, copula(), forms=[more]).samples
    assert sample.foil == "is"


def test_capitals_and_subject_behind_the_verb(tmp_path):
    question = [
        row(1, "Are", "be", "AUX", ARE, 3, "cop"),
        row(2, "keys", "key", "NOUN", PLUR, 3, "nsubj"),
        row(3, "old", "old", "ADJ", "_", 0, "root", "SpaceAfter=No"),
        row(4, "?", "?", "PUNCT", "_", 3, "punct"),
    ]
    sample = read(tmp_path, question, DOOR_IS).samples[0]
    assert (sample.sentence, sample.verb, sample.foil) == ("Are keys old?", "Are", "Is")
    assert (sample.evidence, sample.n_attractors) == (((4, 8),), 0)


def test_several_subjects_in_a_sentence(tmp_path):
    both = [
        row(1, "doors", "door", "NOUN", PLUR, 2, "nsubj"),
        row(2, "close", "close", "VERB", ARE, 0, "root"),
        row(3, "as", "as", "SCONJ", "_", 5, "mark"),
        row(4, "wind", "wind", "NOUN", SING, 5, "nsubj"),
        row(5, "closes", "close", "VERB", IS, 2, "advcl"),
    ]
    assert [each.verb for each in read(tmp_path, both).samples] == ["close", "closes"]


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("subject not a noun", copula(noun="they", upos="PRON")),
        ("subject has no number", copula(noun_feats="_")),
        ("subject has no number", copula(noun_feats="Number=Ptan")),
        ("no agreeing verb", copula(verb_feats="VerbForm=Inf")),
        ("verb disagrees", copula(noun="key", noun_feats=SING)),
        ("verb disagrees", copula(verb_feats=ARE.replace("Person=3", "Person=2"))),
        ("same form", plain("keys", PLUR, "put", "put", ARE)),
        ("several words", plain("keys", PLUR, "give up", "give up", ARE)),
    ],
)
def test_each_reason(tmp_path, reason, sentence):
    forms = [
        plain("x", PLUR, "are", "be", ARE, "dep"),
        plain("x", SING, "put", "put", IS, "dep"),
        plain("x", SING, "gives up", "give up", IS, "dep"),
    ]
    collected = read(tmp_path, sentence, DOOR_IS, *forms)
    assert reasons(collected) == {reason: 1}
    assert len(collected.samples) == 1


def test_words_that_are_no_subjects(tmp_path):
    for relation in ("obj", "nsubj:outer", "csubj"):
        assert read(tmp_path, plain("keys", PLUR, "fit", "fit", ARE, relation)).counts["given"] == 0


MULTIWORD = [
    row("1-2", "du"),
    row(1, "de", head=3),
    row(2, "le", head=3),
    row(3, "toit", head=0, misc="SpaceAfter=No"),
    row("4-5", "isn't", misc="SpaceAfter=No"),
    row(4, "is", head=3),
    row(5, "n't", head=3),
    row("5.1", "nothing", head="_", relation="_"),
    row(6, "10 000", head=3),
    row(7, "x", head=3),
]


def test_text_of_a_tree(tmp_path):
    (tree,) = read_trees(write(tmp_path / "tiny.conllu", MULTIWORD))
    assert tree.text == "du toitisn't10 000 x"
    written = [None if node.span is None else tree.text[slice(*node.span)] for node in tree.nodes]
    assert written == [None, None, "toit", "is", "n't", "10 000", "x"]
    assert [node.head for node in tree.nodes] == [2, 2, -1, 2, 2, 2, 2]


def test_blanks_of_other_kinds_become_plain_ones(tmp_path):
    (tree,) = read_trees(write(tmp_path / "tiny.conllu", [row(1, "10\u00a0 000"), row(2, "x")]))
    assert tree.text == "10 000 x"
    assert tree.nodes[1].span == (7, 8)


@pytest.mark.parametrize(
    ("token", "first", "second"), [("isn't", "is", "n't"), ("aren", "are", "n"), ("au", "à", "le")]
)
def test_verbs_inside_of_a_multiword_token(tmp_path, token, first, second):
    sentence = [
        row(1, "door", "door", "NOUN", SING, 4, "nsubj"),
        row("2-3", token),
        row(2, first, "be", "AUX", IS, 4, "cop"),
        row(3, second, "not", "PART", "_", 4, "advmod"),
        row(4, "old", "old", "ADJ", "_", 0, "root"),
    ]
    are = plain("x", PLUR, "were", "be", ARE, "dep", "AUX")
    assert reasons(read(tmp_path, sentence, are)) == {"not a word of the text": 1}


def test_file_without_a_blank_line_at_its_end(tmp_path):
    path = tmp_path / "tiny.conllu"
    path.write_text("\n".join(DOOR_IS), encoding="utf-8")
    assert [tree.text for tree in read_trees(path)] == ["door is old"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("1 door door", "expected 10 columns separated by tabs, got 1"),
        (row(2, "x"), "the ID is '2', expected 1, a range or a decimal"),
        (row("one", "x"), "the ID is 'one'"),
        (row("1-9", "x"), "the range '1-9' does not fit"),
        (row("1-2", " ") + "\n" + row(1, "x") + "\n" + row(2, "x"), "the FORM is empty"),
        (row("1-1", "x"), "the range '1-1' does not fit"),
        (row(1, "x", head=9), "the HEAD of the word '1' is '9' in a sentence of 1 words"),
        (row(1, "x", head="_"), "the HEAD of the word '1' is '_'"),
        (row(1, "x", head=1), "the HEAD of the word '1' is '1' in a sentence of 1 words"),
        (row(1, "x", feats="Sing"), "the FEATS are 'Sing'"),
        (row(1, "x", feats="Number="), "the FEATS are 'Number='"),
        (row(1, " "), "the FORM or the DEPREL is empty"),
        (row(1, "x", relation=""), "the FORM or the DEPREL is empty"),
    ],
)
def test_broken_lines(tmp_path, broken, message):
    path = tmp_path / "tiny.conllu"
    path.write_text("\n".join([*DOOR_IS, "", "# text = x", broken]) + "\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"tiny.conllu, line 6: .*{message}"):
        read_conllu(path)


# The filters of the paper -----------------------------------------------------------------------


def clause(subject, upos, verb, tag, lemma="be", relation="nsubj"):
    return [
        row(1, subject, subject, upos, "_", 2, relation),
        row(2, verb, lemma, "AUX", "VerbForm=Fin", 0, "root", tag=tag),
    ]


THEY_ARE, IT_IS = clause("They", "PRON", "are", "VBP"), clause("It", "PRON", "is", "VBZ")


def test_the_papers_filters_take_any_subject_of_a_verb_in_the_present(tmp_path):
    found = read(
        tmp_path, clause("I", "PRON", "am", "VBP"), THEY_ARE, THEY_ARE, IT_IS, filters="paper"
    )
    assert [(each.verb, each.foil, each.number) for each in found.samples] == [
        ("am", "is", "plural"),
        ("are", "is", "plural"),
        ("are", "is", "plural"),
        ("is", "are", "singular"),  # of "am" and "are", the more frequent one
    ]
    assert [each.sentence[slice(*each.evidence[0])] for each in found.samples][:2] == ["I", "They"]


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("relation not nsubj", clause("It", "PRON", "is", "VBZ", relation="nsubj:pass")),
        ("verb not VBZ or VBP", clause("It", "PRON", "was", "VBD")),
        ("verb not VBZ or VBP", clause("It", "PRON", "is", "_")),
        ("no other form", clause("It", "PRON", "does", "VBZ", "do")),
        ("same form", clause("It", "PRON", "are", "VBZ")),
    ],
)
def test_reasons_of_the_papers_filters(tmp_path, reason, sentence):
    found = read(tmp_path, THEY_ARE, IT_IS, IT_IS, sentence, filters="paper")
    assert reasons(found) == {reason: 1}


def test_a_contraction_is_no_other_form(tmp_path):
    short = clause("They", "PRON", "'re", "VBP")
    found = read(tmp_path, short, short, THEY_ARE, IT_IS, filters="paper")
    assert {each.foil for each in found.samples if each.verb == "is"} == {"are"}
