"""Tensors are made on the device of the model, whatever the default device of torch is."""

import pytest
import torch

from captum_lrpx import (
    ALTILogit,
    AttnLRPx,
    LLMRelevance,
    LRPx,
    RandomAttribution,
    Target,
    ask_batch,
    compare,
    explain,
    ledger,
    zoo,
)
from captum_lrpx.methods import METHODS
from captum_lrpx.sva import generate
from captum_lrpx.sva.evaluation import contenders, evaluate

TEXT = "the keys to the cabinet"
SUPPORTED = [name for name in METHODS if name != "deep_lift"]  # it has no rule for these models


@pytest.fixture(scope="module")
def loaded():
    return {name: zoo.load(name) for name in zoo.names()}


@pytest.mark.parametrize("method", SUPPORTED)
@pytest.mark.parametrize("name", zoo.names())
def test_every_method(loaded, name, method):
    expected = explain(*loaded[name], TEXT, "are", method=method, certify="full")
    with torch.device("meta"):
        found = explain(*loaded[name], TEXT, "are", method=method, certify="full")
    assert found == expected


TARGETS = {
    "contrast": Target("are", contrast="is"),
    "several": Target(("are", "were"), contrast="is"),
    "probability": Target(("are", "were"), quantity="log_prob"),
    "function": Target(lambda logits: logits.logsumexp(-1)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", zoo.names())
def test_every_target(loaded, name, target):
    expected = explain(*loaded[name], TEXT, TARGETS[target], certify="full")
    with torch.device("meta"):
        assert explain(*loaded[name], TEXT, TARGETS[target], certify="full") == expected


@pytest.mark.parametrize("quantity", ["log_prob", "prob", "logit"])
@pytest.mark.parametrize("name", ["sva-gpt2", "sva-llama"])
def test_a_continuation(name, quantity):
    model, tokenizer = zoo.load(name)  # bound with the default device, too
    with torch.device("meta"):
        llm = LLMRelevance(AttnLRPx(model), tokenizer, quantity)
        found = llm.attribute(TEXT, target="are old", foil="is", spans=[(0, 2)])
        generated = llm.attribute(TEXT)
    assert torch.isfinite(found.context_attr).all()
    torch.testing.assert_close(llm.attribute(TEXT).context_attr, generated.context_attr)


@pytest.mark.parametrize("name", zoo.names())
def test_the_rest(name):
    model, tokenizer = zoo.load(name)
    ids = tokenizer(f"{TEXT} [MASK]", return_tensors="pt").input_ids
    with torch.device("meta"):
        batch = ask_batch(model, tokenizer, [TEXT, "the author"], Target("are", contrast="is"))
        for method in (LRPx, AttnLRPx, ALTILogit):
            account = method(batch.forward, model)
            found = ledger(account, batch.inputs, None, batch.additional_forward_args)
            assert found.closes(1e-2)
        parts = ALTILogit(model, value_bias="apart").decompose(ids, (-2, 5), return_alti=True)
        one = explain(model, tokenizer, TEXT, "are", certify=False)
        assert compare([one, one], names=["a", "b"]).to_html()
        assert RandomAttribution(model).attribute(ids).device == ids.device
    assert parts.value.device == ids.device


def test_an_evaluation(loaded):
    samples = generate(6, "test", 0, (1, 3))
    models = {"sva-gpt2": lambda: loaded["sva-gpt2"]}
    with torch.device("meta"):
        found = evaluate(models, samples, contenders(["lrpx", "random"], {}))
    assert found
