"""Methods of this package inside of other libraries."""

import sys

import numpy as np
import pytest
import torch
from plain_models import PLAIN
from torch import nn

from captum_lrpx import LRP, ALTILogit, AttnLRPx, LRPx, TokenLogits, zoo
from captum_lrpx.plugins import inseq as inseq_plugin
from captum_lrpx.plugins import quantus as quantus_plugin
from captum_lrpx.rules import Epsilon

METHODS = {"lrpx": LRPx, "attnlrpx": AttnLRPx, "altilogit": ALTILogit}
TEXT, NEXT = "the keys to the cabinet", "are"


# inseq --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_inseq_has_the_methods(name):
    inseq = pytest.importorskip("inseq")
    model, tokenizer = zoo.load("sva-llama")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    are = tokenizer.convert_tokens_to_ids(f"▁{NEXT}")
    embeddings = model.get_input_embeddings()(ids).detach()
    expected = METHODS[name](TokenLogits(model)).attribute(embeddings, target=are)[0].sum(-1)
    inseq_plugin.register()
    wrapped = inseq.load_model(model, name, tokenizer=tokenizer)
    found = wrapped.attribute(
        TEXT, f"{TEXT} {NEXT}", attributed_fn="logit", show_progress=False, device="cpu"
    )
    scores = found.sequence_attributions[0].target_attributions[: ids.shape[1], 0].sum(-1)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_registering_twice_is_registering_once():
    pytest.importorskip("inseq")
    assert inseq_plugin.register() is inseq_plugin.register()


def test_without_inseq_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "inseq", None)
    monkeypatch.setitem(sys.modules, "inseq.attr.feat.gradient_attribution", None)
    inseq_plugin.register.cache_clear()
    with pytest.raises(ImportError, match=r"captum-lrpx\[inseq\]"):
        inseq_plugin.register()


# Quantus ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lrpx", "attnlrpx"])
def test_quantus_gets_an_array_of_the_shape_of_its_batch(method):
    plain = PLAIN["resnet"]
    model, x = plain.module(), plain.batch()
    found = quantus_plugin.explain(
        model, x.numpy(), np.array([2, 0]), method=method, nr_samples=10, channel_first=True
    )
    assert isinstance(found, np.ndarray)
    expected = METHODS[method](model).attribute(x, target=torch.tensor([2, 0]))
    np.testing.assert_allclose(found, expected.numpy())


def test_options_reach_the_method():
    plain = PLAIN["resnet"]
    model, x = plain.module(), plain.batch()
    recipe = LRP.override("*", Epsilon(0.1))
    found = quantus_plugin.explain(model, x, [1, 1], method="lrpx", recipe=recipe)
    expected = LRPx(model, recipe=recipe).attribute(x, target=1)
    np.testing.assert_allclose(found, expected.numpy())
    with pytest.raises(ValueError, match="did you mean 'lrpx'"):
        quantus_plugin.explain(nn.Linear(2, 2), [[1.0, 2.0]], [0], method="lrp")


def test_quantus_measures_it():
    quantus = pytest.importorskip("quantus")
    plain = PLAIN["resnet"]
    model, x = plain.module().float(), plain.batch().float()
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=5, subset_size=16, display_progressbar=False, disable_warnings=True
    )
    scores = metric(
        model,
        x.numpy(),
        np.array([2, 0]),
        explain_func=quantus_plugin.explain,
        explain_func_kwargs={"method": "lrpx"},
        device="cpu",
    )
    assert np.isfinite(scores).all()
