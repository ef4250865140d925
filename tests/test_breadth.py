"""Models of every type that transformers has: explained and checked, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from breadth import METHODS, NotBuilt, asked, examine, pairs

REFUSED = {
    tuple(pair.split()): reason
    for pair, reason in json.loads(
        (Path(__file__).parent / "refused.json").read_text(encoding="utf-8")
    ).items()
}
"""Pairs that are refused, with what the message names; a list that may only become shorter."""

SOME = (
    ("CAUSAL_LM", "deepseek_v3"),
    ("CAUSAL_LM", "falcon"),
    ("CAUSAL_LM", "gemma2"),
    ("CAUSAL_LM", "gemma3_text"),
    ("CAUSAL_LM", "gpt_neox"),
    ("CAUSAL_LM", "gpt_oss"),
    ("CAUSAL_LM", "jamba"),
    ("CAUSAL_LM", "lfm2"),
    ("CAUSAL_LM", "llama4_text"),
    ("CAUSAL_LM", "mamba"),
    ("CAUSAL_LM", "mamba2"),
    ("CAUSAL_LM", "mixtral"),
    ("CAUSAL_LM", "phi3"),
    ("CAUSAL_LM", "qwen3_moe"),
    ("CAUSAL_LM", "qwen3_next"),
    ("CAUSAL_LM", "recurrent_gemma"),
    ("CAUSAL_LM", "rwkv"),
    ("MASKED_LM", "albert"),
    ("MASKED_LM", "deberta-v2"),
    ("MASKED_LM", "longformer"),
    ("MASKED_LM", "modernbert"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "bart"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "t5"),
    ("SEQUENCE_CLASSIFICATION", "canine"),
    ("IMAGE_CLASSIFICATION", "dinov2"),
    ("IMAGE_CLASSIFICATION", "vit"),
    ("IMAGE_TEXT_TO_TEXT", "llava"),
    ("IMAGE_TEXT_TO_TEXT", "qwen2_vl"),
)


def check(pair, method):
    mapping, kind = pair
    try:
        question = asked(kind, mapping)
    except NotBuilt as reason:
        pytest.skip(f"does not run by itself: {reason}")
    found = examine(question, method)
    assert not found.wrong
    if pair in REFUSED:
        assert REFUSED[pair] in found.refusal
    else:
        assert not found.refusal


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", SOME, ids="-".join)
def test_some_models(pair, method):
    check(pair, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", sorted(set(pairs()) - set(SOME)), ids="-".join)
def test_all_other_models(pair, method):
    check(pair, method)


def test_the_list_of_refusals_names_pairs():
    assert set(REFUSED) <= set(pairs())
    assert len(REFUSED) <= 7
