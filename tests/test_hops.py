"""Hops: relevance of generated tokens handed on to what these were predicted from."""

import pytest
import torch
from generation_cases import PROMPT, STEPS, single_calls, some_ids, words
from models import tiny

from captum_lrpx import (
    ALTILogit,
    AttnLRPx,
    LayerLRPx,
    LLMRelevance,
    LLMRelevanceResult,
    LRPx,
    TokenLogits,
)
from captum_lrpx.attr.generation_rows import followed

METHODS = (LRPx, AttnLRPx, ALTILogit)


def by_hand(single, logits, row, hops):
    """Slower and simpler: token by token, from the last one to the first."""
    found, lost = row.clone(), []
    for _ in range(hops):
        handed, arrived = found.clone(), torch.zeros_like(found)
        for step in range(STEPS):
            mass = found[PROMPT + step]
            if logits[step] > 0:
                handed[PROMPT + step] = 0
                arrived += mass / logits[step] * single[step]
        lost.append((found.sum() - handed.sum()) - arrived.sum())
        found = handed + arrived
    return found, lost


@pytest.mark.parametrize("hops", [0, 1, 2, 5])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_hop_explains_each_token_with_its_relevance_as_the_weight(family, method, hops):
    model, (prompt, continuation) = tiny(family), some_ids()
    text = torch.cat([prompt, continuation])
    logits = model(text[None]).logits[0, PROMPT - 1 : -1].gather(1, continuation[:, None])[:, 0]
    single = single_calls(method, TokenLogits(model), prompt, continuation)
    llm = LLMRelevance(method(model), words(), "logit")
    spans = [(0, None), (2, 4), (3, 4)]
    result = llm.attribute(prompt, continuation, spans=spans, hops=hops)
    losses = []
    for row, (first, stop) in enumerate(spans):
        expected, lost = by_hand(single, logits.detach(), single[first:stop].sum(0), hops)
        torch.testing.assert_close(result.context_attr[row], expected, rtol=1e-5, atol=1e-8)
        losses.append(lost)
    if hops:
        assert result.record.options["hops"] == hops
        total = torch.tensor(losses).sum(0).tolist()
        assert result.record.options["lost"] == pytest.approx(total, rel=1e-4, abs=1e-7)
    else:
        assert "hops" not in result.record.options
    assert LLMRelevanceResult.from_json(result.to_json()) == result


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_both_ways_to_the_rules_follow_alike(method):
    model, (prompt, continuation) = tiny("llama"), some_ids()
    fast, graph = (
        LLMRelevance(method(model, fast=fast), words(), "logit").attribute(
            prompt, continuation, spans=[(0, None)], hops=2
        )
        for fast in (True, False)
    )
    scale = fast.context_attr.abs().max()
    assert (fast.context_attr - graph.context_attr).abs().max() <= 1e-6 * scale


def test_what_is_lost_is_in_the_delta():
    model, (prompt, continuation) = tiny("gpt2"), some_ids()
    llm = LLMRelevance(AttnLRPx(model), words(), "logit")
    plain = llm.attribute(prompt, continuation, spans=[(0, None)])
    found = llm.attribute(prompt, continuation, spans=[(0, None)], hops=3)
    assert found.values.equal(plain.values)
    lost = sum(found.record.options["lost"])
    assert float(found.delta - plain.delta) == pytest.approx(lost, abs=1e-9)


def test_a_method_that_conserves_loses_nothing_and_ends_in_the_prompt():
    logits = torch.tensor([2.0, 4.0, 1.0])
    rows = torch.tensor([[1.0, 1.0, 0.0, 0, 0], [1.0, 0.0, 3.0, 0, 0], [0.0, 0.25, 0.25, 0.5, 0]])
    found, lost = followed(rows[2:], lambda weights: weights @ rows, logits, 3)
    assert lost.abs().max() == 0
    assert found[0, 2:].abs().max() == 0
    assert found.sum() == 1
    assert found.shape == (1, 5)


def test_a_token_whose_logit_is_not_positive_keeps_its_relevance():
    rows = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 3.0, 0.0]])
    for logit in (0.0, -2.0):
        logits = torch.tensor([logit, 4.0])
        found, lost = followed(rows[1:], lambda weights: weights @ rows, logits, 2)
        assert found.equal(rows[1:])
        assert lost.equal(torch.zeros(1, 2))


def test_alti_logit_explains_a_continuation_and_foils():
    model, (prompt, continuation) = tiny("gpt2"), some_ids()
    foils = some_ids(seed=1)[1]
    llm = LLMRelevance(ALTILogit(model), words(), "logit")
    single = single_calls(ALTILogit, TokenLogits(model), prompt, continuation)
    result = llm.attribute(prompt, continuation)
    torch.testing.assert_close(result.context_attr, single, rtol=1e-5, atol=1e-8)
    assert result.record.method == "altilogit"
    other = single_calls(ALTILogit, TokenLogits(model), prompt, foils)
    contrast = llm.attribute(prompt, continuation[:1], foil=foils[:1])
    torch.testing.assert_close(
        contrast.context_attr[0, :PROMPT], (single - other)[0, :PROMPT], rtol=1e-5, atol=1e-8
    )


def test_what_cannot_be_followed_is_refused():
    model, (prompt, continuation) = tiny("gpt2"), some_ids()
    llm = LLMRelevance(LRPx(model), words())
    with pytest.raises(ValueError, match="hops must be 0 or more"):
        llm.attribute(prompt, continuation, hops=-1)
    layer = LLMRelevance(LayerLRPx(model, model.transformer.h[0]), words())
    with pytest.raises(ValueError, match="Hops follow relevance of tokens"):
        layer.attribute(prompt, continuation, hops=1)
    with pytest.raises(ValueError, match="ALTI-Logit decomposes logits"):
        LLMRelevance(ALTILogit(model), words())
