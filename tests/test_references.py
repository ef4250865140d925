"""Reference samples of neurons: one pass over a corpus, stored, resumed, shared by processes."""

import pytest
import torch
from models import tiny, token_ids

from captum_lrpx import ConceptRelevance, ReferenceIndex, build_references

CORPUS = [token_ids(1, length, seed=seed) for seed, length in enumerate([5, 3, 7, 4, 6, 5, 5, 8])]
TARGET = (-1, 7)


@pytest.fixture
def concepts():
    model = tiny("gpt2")
    return ConceptRelevance(model, model.transformer.h[0].mlp.c_proj, at_input=True)


def same(one, other):
    assert one.seen == other.seen
    for name in ("scores", "samples", "positions"):
        assert getattr(one, name).equal(getattr(other, name)), name


def scores(concepts, by):
    """Largest score of each text and neuron, and where it is: ``[texts, neurons]``."""
    found = [
        concepts.activations(text)[0] if by == "activation" else concepts.attribute(text, TARGET)[0]
        for text in CORPUS
    ]
    return [torch.stack(each) for each in zip(*(text.max(0) for text in found), strict=True)]


@pytest.mark.parametrize("by", ["relevance", "activation"])
def test_references_are_the_texts_with_the_largest_scores(concepts, by, tmp_path):
    index = build_references(concepts, CORPUS, tmp_path, by=by, target=TARGET, k=3)
    best, positions = scores(concepts, by)
    assert index.seen == len(CORPUS)
    for neuron in range(12):
        order = best[:, neuron].argsort(descending=True)[:3].tolist()
        found = index.of(neuron)
        assert [each.sample for each in found] == order
        assert [each.position for each in found] == positions[order, neuron].tolist()
        for each, number in zip(found, order, strict=True):
            assert each.score == pytest.approx(float(best[number, neuron]), rel=1e-6)


def test_the_index_is_stored(concepts, tmp_path):
    index = build_references(concepts, CORPUS, tmp_path, target=TARGET)
    same(ReferenceIndex.load(tmp_path), index)


def test_a_run_that_was_stopped_goes_on(concepts, tmp_path):
    whole = build_references(concepts, CORPUS, tmp_path / "whole", target=TARGET, k=2)
    seen = []

    def corpus(stop):
        for number, text in enumerate(CORPUS):
            if number == stop:
                raise KeyboardInterrupt
            yield text

    def target(text):
        seen.append(text)
        return TARGET

    options = {"target": target, "k": 2, "save_every": 2}
    with pytest.raises(KeyboardInterrupt):
        build_references(concepts, corpus(5), tmp_path / "run", **options)
    assert ReferenceIndex.load(tmp_path / "run").seen == 4
    with pytest.raises(ValueError, match="resume it"):
        build_references(concepts, CORPUS, tmp_path / "run", **options)
    seen.clear()
    same(build_references(concepts, CORPUS, tmp_path / "run", **options, resume=True), whole)
    assert len(seen) == 4, "the first four texts are not looked at again"
    with pytest.raises(ValueError, match="k=2, not 3"):
        build_references(concepts, CORPUS, tmp_path / "run", k=3, resume=True)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_share_a_corpus(concepts, tmp_path, processes):
    whole = build_references(concepts, CORPUS, tmp_path / "whole", target=TARGET, k=2)
    for rank in range(processes):
        build_references(
            concepts, CORPUS, tmp_path / "run", target=TARGET, k=2, rank=rank, processes=processes
        )
    same(ReferenceIndex.load(tmp_path / "run"), whole)


def test_fewer_texts_than_references(concepts, tmp_path):
    index = build_references(concepts, CORPUS[:2], tmp_path, target=TARGET, k=5)
    assert {each.sample for each in index.of(0)} == {0, 1}


def test_of_equal_scores_the_earlier_text_is_kept(concepts, tmp_path):
    index = build_references(concepts, [CORPUS[0]] * 4, tmp_path, target=TARGET, k=2)
    assert index.samples.eq(torch.tensor([0, 1])).all()


def test_what_cannot_be_built_is_refused(concepts, tmp_path):
    for message, options in [
        ("`by` is", {"by": "gradient"}),
        ("`k`", {"k": 0}),
        ("`rank` is from 0 to 1", {"rank": 2, "processes": 2}),
        ("has 2 rows", {"samples": [token_ids()]}),
        ("no samples", {"samples": []}),
    ]:
        given = {"samples": CORPUS, "target": TARGET, **options}
        with pytest.raises(ValueError, match=message):
            build_references(concepts, folder=tmp_path / "none", **given)
    with pytest.raises(ValueError, match="build it first"):
        ReferenceIndex.load(tmp_path)
    (tmp_path / "references-00000.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no index of references"):
        ReferenceIndex.load(tmp_path)
    index = build_references(concepts, CORPUS[:1], tmp_path / "one", target=TARGET)
    with pytest.raises(IndexError, match="12 neurons"):
        index.of(12)
