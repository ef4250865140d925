"""Layers of bitsandbytes, the usual way to load a large model: linear layers like others."""

from __future__ import annotations

import json

import pytest
import torch

from captum_lrpx import ALTILogit, AttnLRPx, LLMRelevance, LRPx, TokenLogits, explain, zoo
from captum_lrpx.cli import main

pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

TEXT = "the keys to the cabinet"
CONFIGS = {
    "4 bits": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
    "4 bits, twice": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "8 bits": {"load_in_8bit": True},
}
pytestmark = pytest.mark.filterwarnings("ignore")  # bitsandbytes tells of casts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    for part in zoo.load("sva-llama"):
        part.save_pretrained(path)
    return path


def quantized(folder, name, **options):
    config = BitsAndBytesConfig(**CONFIGS[name] | options)
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module", params=CONFIGS)
def model(folder, request):
    return quantized(folder, request.param)


@pytest.fixture(scope="module")
def tokenizer():
    return zoo.load("sva-llama")[1]


@pytest.mark.parametrize("method", ["lrpx", "attnlrpx"])
def test_they_are_explained_and_certified(model, tokenizer, method):
    explanation = explain(model, tokenizer, TEXT, "are", method=method)
    assert explanation.certificate.holds, str(explanation.certificate)
    plain = explain(*zoo.load("sva-llama"), TEXT, "are", method=method)
    found, expected = (torch.tensor(each.relevances) for each in (explanation, plain))
    assert (found - expected).abs().max() < 0.15 * expected.abs().max()  # what four bits change


@pytest.mark.parametrize("method", [LRPx, AttnLRPx, ALTILogit])
def test_the_same_once_more(model, tokenizer, method):
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    forward = TokenLogits(model)
    first, delta = method(forward).attribute(ids, 5, return_convergence_delta=True)
    assert torch.equal(method(forward).attribute(ids, 5), first)
    with torch.enable_grad():
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        value = forward(embeds)[:, 5].detach()
    torch.testing.assert_close(first.sum(1) + delta, value, rtol=1e-4, atol=1e-4)


def test_lrp_of_four_bits_conserves(folder, tokenizer):
    """The weights are rounded, the activations are not: the layer is exactly linear."""
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    model = quantized(folder, "4 bits")
    _, delta = LRPx(TokenLogits(model)).attribute(ids, 5, return_convergence_delta=True)
    assert delta.abs().max() < 1e-4


def test_a_model_that_has_predicted_before(folder, tokenizer):
    """On some processors bitsandbytes packs weights then, for a kernel without a gradient."""
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    model = quantized(folder, "4 bits")
    with torch.no_grad():
        model(ids)
    explanation = explain(model, tokenizer, TEXT, "are")
    assert explanation.certificate.holds, str(explanation.certificate)


def test_a_continuation(folder, tokenizer):
    model = quantized(folder, "8 bits")
    result = LLMRelevance(AttnLRPx(model), tokenizer).attribute("the keys to", target=" the")
    assert result.token_attr.isfinite().all()


def test_adapters_on_quantized_layers(folder, tokenizer):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    model = peft.get_peft_model(quantized(folder, "4 bits"), config).eval()
    explanation = explain(model, tokenizer, TEXT, "are")
    assert explanation.certificate.holds, str(explanation.certificate)


@pytest.mark.parametrize("name", ["4 bits", "8 bits"])
def test_the_command_line_explains_a_folder_with_quantized_weights(folder, name, tmp_path):
    saved, record = tmp_path / "model", tmp_path / "record.json"
    quantized(folder, name).save_pretrained(saved)
    zoo.load("sva-llama")[1].save_pretrained(saved)
    status = main(
        ["explain", TEXT, "--target", "are", "--model", str(saved), "--json", str(record)]
    )
    assert status == 0
    assert json.loads(record.read_text())["certificate"]["unruled"] == 0
