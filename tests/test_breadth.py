"""Models of every type that transformers has: explained and checked, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from breadth import CHECKS, answers_or_reason
from breadth import UNCHECKED as FILE
from questions import NotBuilt, asked, pairs

REFUSED = {
    tuple(pair.split()): reason
    for pair, reason in json.loads(
        (Path(__file__).parent / "refused.json").read_text(encoding="utf-8")
    ).items()
}
"""Pairs that are refused, with what the message names; a list that may only become shorter."""

UNCHECKED = {
    name: {tuple(pair.split()): reason for reason, group in reasons.items() for pair in group}
    for name, reasons in json.loads(FILE.read_text(encoding="utf-8")).items()
}
"""For each check the pairs that it cannot be made for, with the reason."""
MOST = {
    "float64": 2,
    "bfloat16": 7,
    "embeddings for ids": 64,
    "eager and SDPA attention": 137,
}

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

FEW = (
    ("CAUSAL_LM", "ctrl"),
    ("CAUSAL_LM", "mixtral"),
    ("CAUSAL_LM", "qwen3_next"),
    ("MASKED_LM", "modernbert"),
    ("SEQUENCE_CLASSIFICATION", "t5"),
    ("IMAGE_CLASSIFICATION", "vit"),
)
"""Of these every check is made in the normal run."""


def check(pair, name):
    found = answers_or_reason(*pair, name)
    if isinstance(found, str):
        if pair not in UNCHECKED.get(name, {}):
            asked(pair[1], pair[0])
            pytest.fail(f"cannot be checked: {found}")
        return
    assert pair not in UNCHECKED.get(name, {}), "it can be checked: take it off the list"
    for row in found.values():
        assert not row.wrong
        if pair in REFUSED:
            assert REFUSED[pair] in row.refusal
        else:
            assert not row.refusal


@pytest.mark.parametrize("pair", SOME, ids="-".join)
def test_some_models(pair):
    check(pair, "float32")


@pytest.mark.parametrize("name", CHECKS[1:])
@pytest.mark.parametrize("pair", FEW, ids="-".join)
def test_a_few_models_in_other_ways(pair, name):
    check(pair, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("pair", pairs(), ids="-".join)
def test_all_models_in_all_ways(pair, name):
    """Eight minutes on one core."""
    try:
        check(pair, name)
    except NotBuilt as reason:
        pytest.skip(f"does not run by itself: {reason}")


def test_the_list_of_refusals_names_pairs():
    assert set(REFUSED) <= set(pairs())
    assert len(REFUSED) <= 7


@pytest.mark.parametrize(("name", "most"), MOST.items())
def test_the_lists_of_what_cannot_be_checked_only_become_shorter(name, most):
    listed = UNCHECKED[name]
    assert len(listed) <= most
    assert set(listed) <= set(pairs())
    assert all(listed.values())  # with a reason each
