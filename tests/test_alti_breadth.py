"""ALTI-Logit on models of every type: its parts sum to the value, or it is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from questions import NotBuilt, asked, pairs, quiet

from captum_lrpx import ALTILogit

TEXT = ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SEQUENCE_CLASSIFICATION")
PAIRS = tuple(pair for pair in pairs() if pair[0] in TEXT)
REFUSED = {
    tuple(pair.split()): reason
    for pair, reason in json.loads(
        (Path(__file__).parent / "alti_refused.json").read_text(encoding="utf-8")
    ).items()
}
"""Pairs that are refused, with what the message says; a list that may only become shorter."""

SOME = (
    ("CAUSAL_LM", "bamba"),
    ("CAUSAL_LM", "bloom"),
    ("CAUSAL_LM", "cohere"),
    ("CAUSAL_LM", "ctrl"),
    ("CAUSAL_LM", "deepseek_v3"),
    ("CAUSAL_LM", "deepseek_v4"),
    ("CAUSAL_LM", "doge"),
    ("CAUSAL_LM", "falcon"),
    ("CAUSAL_LM", "gemma3_text"),
    ("CAUSAL_LM", "gemma3n_text"),
    ("CAUSAL_LM", "gemma4_text"),
    ("CAUSAL_LM", "gpt_bigcode"),
    ("CAUSAL_LM", "gpt_oss"),
    ("CAUSAL_LM", "gptj"),
    ("CAUSAL_LM", "granite"),
    ("CAUSAL_LM", "mamba"),
    ("CAUSAL_LM", "mixtral"),
    ("CAUSAL_LM", "mpt"),
    ("CAUSAL_LM", "olmo2"),
    ("CAUSAL_LM", "openai-gpt"),
    ("CAUSAL_LM", "phi3"),
    ("MASKED_LM", "albert"),
    ("MASKED_LM", "deberta"),
    ("MASKED_LM", "fnet"),
    ("MASKED_LM", "modernbert"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "marian"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "t5"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "t5gemma"),
    ("SEQUENCE_CLASSIFICATION", "bert"),
    ("SEQUENCE_CLASSIFICATION", "gpt2"),
)


def double_or_single(mapping, kind):
    """A tiny model in float64, where it runs in that."""
    try:
        return asked(kind, mapping, dtype=torch.float64)
    except NotBuilt:
        pass
    try:
        return asked(kind, mapping)
    except NotBuilt as reason:
        pytest.skip(f"does not run by itself: {reason}")


def tolerance_of(question):
    """float64 throughout, in part, or not at all."""
    if next(question.model.parameters()).dtype == torch.float32:
        return 1e-5
    config = question.model.config.model_type
    return 1e-10 if config in DOUBLE else 1e-6


DOUBLE = (
    *("albert", "bart", "bert", "bloom", "codegen", "ctrl", "deberta-v2", "falcon", "gpt2"),
    *("gpt_bigcode", "gptj", "marian", "modernbert", "mpt", "openai-gpt", "roberta", "t5"),
)
"""Types that compute in float64 what they are given in float64."""


def check(pair):
    question = double_or_single(*pair)
    before = question.state()
    method = ALTILogit(question.logits, question.model)
    with quiet():
        if pair in REFUSED:
            with pytest.raises(ValueError, match=REFUSED[pair]):
                method.decompose(question.inputs, question.target)
            assert question.state() == before
            return
        parts = method.decompose(question.inputs, question.target, return_alti=True)
        again = method.attribute(question.inputs, question.target)
        value = question.logits(*question.inputs)[(0, *_at(question.target))]
    assert question.state() == before
    mass = torch.stack(list(parts.parts().values())).abs().sum(0)
    assert (parts.remainder.abs() <= tolerance_of(question) * mass).all()
    torch.testing.assert_close(parts.value[0].to(value), value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        parts.alti.sum(-1), torch.ones_like(parts.alti.sum(-1)), rtol=0, atol=1e-4
    )
    assert (parts.alti >= 0).all()
    torch.testing.assert_close(torch.cat(again, -1), parts.tokens(), rtol=1e-4, atol=1e-5)


def _at(target):
    return target if isinstance(target, tuple) else (target,)


@pytest.mark.parametrize("pair", SOME, ids="-".join)
def test_some_models(pair):
    check(pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", sorted(set(PAIRS) - set(SOME)), ids="-".join)
def test_all_other_models(pair):
    check(pair)


def test_the_list_of_refusals_names_pairs_and_is_short():
    assert set(REFUSED) <= set(PAIRS)
    for mapping, most in zip(TEXT, (42, 12, 6, 32), strict=True):
        assert sum(pair[0] == mapping for pair in REFUSED) <= most
