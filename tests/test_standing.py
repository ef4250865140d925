"""What is explained stands among the other outputs: predicted or not, rank, probability."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from explanations import explanation
from models import tiny

from captum_lrpx import Explanation, Target, ask_batch, explain, zoo
from captum_lrpx.explanation import Certificate
from captum_lrpx.explanation.certificate import sealed
from captum_lrpx.targets import Standing

TEXT = "the keys to the cabinet"
VOCABULARY = {"max_position_embeddings": 64, "pad_token_id": 0, "dtype": torch.float32}


@pytest.mark.parametrize("name", zoo.names())
def test_ranks_and_probabilities_are_those_of_the_model(loaded, name):
    model, tokenizer = loaded[name]
    found = explain(model, tokenizer, TEXT, Target("are", contrast=("is", "was")))
    logits = model(torch.tensor([found.ids])).logits[0, found.position]
    order = logits.argsort(descending=True).tolist()
    for standing in found.standings:
        assert order[standing.rank - 1] == standing.index
        expected = float(logits.softmax(-1)[standing.index])
        assert standing.probability == pytest.approx(expected, rel=1e-5)
    assert [each.name.strip("Ġ▁") for each in found.standings] == ["are", "is", "was"]
    assert (found.rank, found.probability) == (
        found.standings[0].rank,
        found.standings[0].probability,
    )


@pytest.mark.parametrize("name", zoo.names())
def test_without_a_target_the_prediction_is_explained(loaded, name):
    model, tokenizer = loaded[name]
    found = explain(model, tokenizer, TEXT)
    best = int(model(torch.tensor([found.ids])).logits[0, found.position].argmax())
    assert found.rank == 1
    assert found.standings[0].index == best
    assert found.target == f"logit of the predicted token {found.standings[0].name!r}"
    assert found.relevances == explain(model, tokenizer, TEXT, best).relevances
    other = explain(model, tokenizer, TEXT, Target(contrast="is", quantity="log_prob"))
    assert " minus log-probability of " in other.target
    assert other.rank == 1


def test_predicted_classes_and_answers():
    tokenizer = zoo.load("sva-bert")[1]
    for head, noun in (("sequence", "class"), ("token", "class"), ("qa", "position")):
        model = tiny("bert", head, vocab_size=len(tokenizer), **VOCABULARY)
        found = explain(model, tokenizer, TEXT)
        assert f"the predicted {noun} " in found.target
        assert found.rank == 1
    output = model(torch.tensor([found.ids]))
    assert found.standings[0].index == int(output.start_logits.argmax())
    end = explain(model, tokenizer, TEXT, Target(end="end"))
    assert end.standings[0].index == int(output.end_logits.argmax())


def test_classes_by_number_are_named():
    tokenizer = zoo.load("sva-bert")[1]
    model = tiny("bert", "sequence", vocab_size=len(tokenizer), **VOCABULARY)
    by_number, by_name = (
        explain(model, tokenizer, TEXT, each, certify=False) for each in (1, "LABEL_1")
    )
    assert by_number == by_name
    assert by_number.target == "logit of class 'LABEL_1'"
    model.config.problem_type = "multi_label_classification"
    logits = model(torch.tensor([by_name.ids])).logits[0]
    several = explain(model, tokenizer, TEXT, 1, certify=False)
    assert several.probability == pytest.approx(float(logits.sigmoid()[1]), abs=1e-6)


def test_each_row_of_a_batch_has_its_own_prediction(loaded):
    for name in zoo.names():
        model, tokenizer = loaded[name]
        texts = [TEXT, "the author"]
        batch = ask_batch(model, tokenizer, texts)
        alone = [explain(model, tokenizer, text, certify=False) for text in texts]
        assert list(batch.descriptions) == [each.target for each in alone]
        values = batch.forward(batch.inputs, *batch.additional_forward_args)
        torch.testing.assert_close(values, torch.tensor([each.value for each in alone]))
        mixed = ask_batch(model, tokenizer, texts, [None, "are"])
        assert mixed.descriptions[0] == alone[0].target
        assert "predicted" not in mixed.descriptions[1]


def test_spans_and_functions(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    found = explain(model, tokenizer, f"{TEXT} are old", Target(span="are old"))
    logits = model(torch.tensor([found.ids])).logits[0, -3:-1].softmax(-1)
    expected = [float(row[index]) for row, index in zip(logits, found.ids[-2:], strict=True)]
    assert [each.probability for each in found.standings] == pytest.approx(expected, rel=1e-5)
    assert explain(model, tokenizer, TEXT, Target(lambda x: x.sum(-1))).standings == ()


# In the record ----------------------------------------------------------------------------------

STANDINGS = (Standing("Ġare", 9, 2, 0.1 + 0.2), Standing("Ġis", 8, 17, 1e-30))


def test_they_are_shown_wherever_the_value_is():
    found = explanation(standings=STANDINGS)
    line = "'Ġare' has rank 2, probability 0.3; 'Ġis' has rank 17, probability 1e-30"
    assert found.standing == line
    assert line in str(found)
    assert "&#x27;Ġare&#x27; has rank 2" in found.to_html()
    assert "&#x27;Ġare&#x27; has rank 2" in found._repr_html_()
    many = explanation(standings=STANDINGS * 3)
    assert many.standing.endswith("; and 2 more")


def test_they_are_stored_exactly():
    found = explanation(standings=STANDINGS, template=(True, False))
    assert Explanation.from_json(found.to_json()) == found
    assert found.words().standings == STANDINGS
    assert found.words().template == (True, False)
    assert (found - 2 * found).standings is None, "that is another value"


@pytest.mark.parametrize(
    "change",
    [
        {"standings": 3},
        {"standings": [3]},
        {"standings": [{"name": "a"}]},
        {"standings": [{"name": "a", "index": 1, "rank": 1.5, "probability": 0.5}]},
        {"template": [True]},
    ],
)
def test_damaged_ones_are_refused(change):
    record = json.loads(explanation().to_json()) | change
    with pytest.raises(ValueError, match="not a stored explanation"):
        Explanation.from_json(json.dumps(record))


def test_records_of_older_versions_are_read_with_their_seal():
    old = sealed(explanation(), Certificate(True, 9, 3, 0, 1e-4, ledger_residual=1e-7))
    record = asdict(old)
    del record["template"], record["standings"], record["certificate"]["ledger_delta"]
    text = json.dumps({"format": "captum_lrpx.explanation/3", **record})
    read = Explanation.from_json(text)
    assert read == old
    assert (read.standings, read.rank, read.probability) == (None, None, None)
    assert read.standing == ""


def test_explanations_can_be_in_sets(loaded):
    found = explain(*loaded["sva-gpt2"], TEXT, "are")
    same = Explanation.from_json(found.to_json())
    assert {found, same} == {found}
    assert len({found, replace(found, value=1.0, certificate=None)}) == 2


def test_the_certificate_says_where_the_delta_went(loaded):
    for name, method in (("sva-gpt2", "attnlrpx"), ("sva-llama", "attnlrpx"), ("sva-gpt2", "lrpx")):
        found = explain(*loaded[name], TEXT, "are", method=method, certify="full")
        amounts = dict(found.certificate.ledger_delta)
        assert sum(amounts.values()) == pytest.approx(found.delta, abs=1e-3)
        named = f"the softmax of attention {amounts.get('softmax', 0):+.4f}"
        assert (named in found.certification) == (method == "attnlrpx")
        biases = f"biases {amounts.get('bias', 0):+.4f}"
        assert (biases in found.certification) == (name == "sva-gpt2")
        assert Explanation.from_json(found.to_json()) == found
    conserved = explain(*loaded["sva-llama"], TEXT, "are", method="lrpx")
    assert "the delta went" not in conserved.certification, "there is none"
