"""``captum-lrpx samples``: agreement data to samples, from the command line."""

import pytest

from captum_lrpx import cli
from captum_lrpx.sva import read_jsonl, sources
from captum_lrpx.sva.parsing import ParsedWord

TREES = """\
1\tkeys\tkey\tNOUN\t_\tNumber=Plur\t4\tnsubj\t_\t_
2\tto\tto\tADP\t_\t_\t3\tcase\t_\t_
3\tdoors\tdoor\tNOUN\t_\tNumber=Plur\t1\tnmod\t_\t_
4\tfit\tfit\tVERB\t_\tNumber=Plur|VerbForm=Fin\t0\troot\t_\t_

1\tkey\tkey\tNOUN\t_\tNumber=Sing\t4\tnsubj\t_\t_
2\tto\tto\tADP\t_\t_\t3\tcase\t_\t_
3\tdoors\tdoor\tNOUN\t_\tNumber=Plur\t1\tnmod\t_\t_
4\tfits\tfit\tVERB\t_\tNumber=Sing|VerbForm=Fin\t0\troot\t_\t_

"""
PAIR = (
    '{"UID": "regular_plural_subject_verb_agreement_1", "sentence_good": "Ann is.",'
    ' "sentence_bad": "Ann are.", "one_prefix_prefix": "Ann",'
    ' "one_prefix_word_good": "is", "one_prefix_word_bad": "are"}\n'
)
GOLDBERG = "1\tkeys are\tkeys ***mask***\tare\tis\n"


def fake_parser(asked):
    def spacy_parser(name):
        asked.append(name)
        return lambda sentences: [
            [ParsedWord(0, 4, "NNS", "nsubj", 1), ParsedWord(5, 8, "VBP", "ROOT", 1)]
            for _ in sentences
        ]

    return spacy_parser


@pytest.fixture
def folder(tmp_path):
    contents = {
        "ud": TREES,
        "blimp": PAIR,
        "goldberg": GOLDBERG,
        "text": "keys are <eos>\n",
        "gold": "1\tare\tis\t1\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def samples(folder, source, *words, name=None):
    read, written = folder / (name or source), folder / "samples.jsonl"
    given = ["--source", source, "--input", read, "--output", written, *words]
    return cli.main(["samples", *map(str, given)])


def test_universal_dependencies(folder, capsys):
    assert samples(folder, "ud", "--licence", "CC BY 4.0") == 0
    keys, key = read_jsonl(folder / "samples.jsonl")
    assert (keys.verb, key.verb, key.n_attractors) == ("fit", "fits", 1)
    assert key.licence == "CC BY 4.0"
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["kept 2 of 2 samples", f"wrote {folder / 'samples.jsonl'}"]


def test_filters(folder, monkeypatch):
    passive = [ParsedWord(0, 4, "NNS", "nsubjpass", 1), ParsedWord(5, 8, "VBP", "ROOT", 1)]
    monkeypatch.setattr(sources, "spacy_parser", lambda _: lambda _: [passive])
    kept = {}
    for filters in ("paper", "strict", None):
        for source in ("goldberg", "ud"):
            assert samples(folder, source, *(("--filters", filters) if filters else ())) == 0
            kept[source, filters] = len(read_jsonl(folder / "samples.jsonl"))
    assert kept["goldberg", None] == kept["goldberg", "paper"] == 0 < kept["goldberg", "strict"]
    assert kept["ud", None] == kept["ud", "strict"] == 2  # this treebank has no tags
    assert kept["ud", "paper"] == 0


def test_forms_and_attractors(folder, capsys):
    first, second = TREES.split("\n\n")[:2]
    (folder / "ud").write_text(second + "\n", encoding="utf-8")
    (folder / "more").write_text(first + "\n", encoding="utf-8")
    assert samples(folder, "ud", "--min-attractors", 2, "--forms", folder / "more") == 0
    assert read_jsonl(folder / "samples.jsonl") == []
    assert "of them with 2 or more attractors: 0" in capsys.readouterr().out


def test_blimp(folder):
    assert samples(folder, "blimp") == 0
    (sample,) = read_jsonl(folder / "samples.jsonl")
    assert (sample.verb, sample.licence) == ("is", "CC BY 4.0")


@pytest.mark.parametrize(
    ("words", "pipeline"), [((), "en_core_web_trf"), (("--pipeline", "mine"), "mine")]
)
def test_sources_that_are_parsed(folder, monkeypatch, words, pipeline):
    asked = []
    monkeypatch.setattr(sources, "spacy_parser", fake_parser(asked))
    assert samples(folder, "goldberg", *words) == 0
    goldberg = read_jsonl(folder / "samples.jsonl")
    assert samples(folder, "linzen", "--gold", folder / "gold", *words, name="text") == 0
    linzen = read_jsonl(folder / "samples.jsonl")
    assert asked == [pipeline, pipeline]
    assert [each.sentence for each in goldberg + linzen] == ["keys are", "keys are"]
    # The parser finds no attractor where both files state one.
    assert samples(folder, "goldberg", "--check-attractors", *words) == 0
    assert read_jsonl(folder / "samples.jsonl") == []


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        ("linzen", [], "--gold is the gold file of --source linzen"),
        ("ud", ["--gold", "x"], "--gold is the gold file of --source linzen"),
        ("ud", ["--pipeline", "x"], "--source ud knows its subjects"),
        ("blimp", ["--check-attractors"], "--source blimp knows its subjects"),
        ("blimp", ["--forms", "x"], "--source blimp is one file"),
        ("blimp", ["--filters", "paper"], "knows its subjects from templates"),
        ("ud", ["--input", "nowhere"], "nowhere"),
        ("ud", ["--output", "nowhere/x.jsonl"], "no folder 'nowhere' for 'nowhere/x.jsonl'"),
    ],
)
def test_what_is_refused(folder, capsys, source, words, message):
    (folder / "linzen").write_text("", encoding="utf-8")
    assert samples(folder, source, *words) == 2
    assert message in capsys.readouterr().err


def test_a_broken_file_leaves_an_older_output_as_it_was(folder, capsys):
    (folder / "samples.jsonl").write_text("older", encoding="utf-8")
    (folder / "ud").write_text("broken\n", encoding="utf-8")
    assert samples(folder, "ud") == 2
    assert "ud, line 1: expected 10 columns" in capsys.readouterr().err
    assert (folder / "samples.jsonl").read_text() == "older"
