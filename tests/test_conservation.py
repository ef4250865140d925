"""Conservation: the relevance of everything additive sums to the explained value.

The inputs of the decomposition are the outputs of all embedding layers (tokens, positions, token
types), and each bias. What AttnLRP loses in a softmax is computed here from the scores and the
weights that the model's own softmax saw, without any code of the package.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from models import FAMILIES, HEADS, LABELS, VOCABULARY, built, tiny, token_ids
from replica_ledger import Ledger, ledger

from captum_lrpx.recipes import ATTN_LRP, ATTN_LRP_SIGNAL_GATE, LRP, LRP_UNIFORM_GATE
from captum_lrpx.rules import (
    ActivationGradient,
    AttentionGradient,
    NormGradient,
    ProductGradient,
    SignalTakeAll,
)

FLOAT32_RELATIVE = 1e-5
FLOAT32_MASS = 1e-6

LRP_SIGNAL_ACTIVATION = replace(LRP, name="mirror", gate=SignalTakeAll("activation"))
CONSERVING = [LRP, LRP_UNIFORM_GATE, LRP_SIGNAL_ACTIVATION]
LEAKING = [ATTN_LRP, ATTN_LRP_SIGNAL_GATE]
by_name = {"ids": lambda value: getattr(value, "name", None)}

ACTIVATIONS = ["gelu", "gelu_new", "relu", "silu", "tanh", "quick_gelu", "relu2", "mish", "relu6"]
"""All are zero at zero: the others have a bias at every unit."""


# What is drawn ------------------------------------------------------------------------------------


@st.composite
def cases(draw, family, *, heads=HEADS, attn=("eager", "sdpa"), biases="zero"):
    """A model of the family, ids, and the index of the explained output."""
    head = draw(st.sampled_from(heads))
    query_heads = draw(st.integers(1, 4))
    divisors = [number for number in range(1, query_heads + 1) if query_heads % number == 0]
    model = built(
        family,
        head,
        attn=draw(st.sampled_from(attn)),
        biases=biases,
        layers=draw(st.integers(1, 3)),
        heads=query_heads,
        key_value_heads=draw(st.sampled_from(divisors)),
        head_dim=2 * draw(st.integers(1, 3)),
        intermediate=draw(st.integers(1, 12)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        seed=draw(st.integers(0, 2**32)),
    )
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    ids = token_ids(batch, length, seed=draw(st.integers(0, 2**32)))
    classes = {"lm": VOCABULARY, "qa": 2}.get(head, LABELS)
    index = [draw(st.integers(0, batch - 1)), draw(st.integers(0, classes - 1))]
    if head != "sequence":
        index.insert(1, draw(st.integers(0, length - 1)))
    return model, ids, tuple(index)


def assert_closes(account: Ledger) -> None:
    assert account.closes(), (account.explained, account.total, account.mass)


def assert_tokens_and_positions_sum(model, recipe, ids, index) -> None:
    account = ledger(model, recipe, index, input_ids=ids)
    assert account.biases == 0
    assert account.softmax == 0
    assert_closes(account)


# LRP, zero biases: R(tokens) + R(positions) + R(token types) = f ----------------------------------


@examples(150)
@given(cases("bert"))
def test_lrp_of_bert_conserves(case):
    assert_tokens_and_positions_sum(case[0], LRP, *case[1:])


@examples(150)
@given(cases("gpt2"))
def test_lrp_of_gpt2_conserves(case):
    assert_tokens_and_positions_sum(case[0], LRP, *case[1:])


@examples(150)
@given(cases("llama"), st.sampled_from(CONSERVING))
def test_lrp_of_llama_conserves(case, recipe):
    assert_tokens_and_positions_sum(case[0], recipe, *case[1:])


@examples(20)
@given(cases("llama"), st.sampled_from(CONSERVING))
def test_lrp_of_llama_conserves_in_its_own_float32(case, recipe):
    model, ids, index = case
    account = ledger(model, recipe, index, exact=False, input_ids=ids)
    assert account.closes(FLOAT32_RELATIVE, FLOAT32_MASS)


@pytest.mark.parametrize("recipe", CONSERVING, **by_name)
@pytest.mark.parametrize("family", FAMILIES)
@examples(5)
@given(data=st.data())
def test_lrp_conserves(family, recipe, data):
    model, ids, index = data.draw(cases(family))
    assert_tokens_and_positions_sum(model, recipe, ids, index)


# AttnLRP: the softmax is the only leak ------------------------------------------------------------


@pytest.mark.parametrize("recipe", LEAKING, **by_name)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@examples(50)
@given(data=st.data())
def test_attnlrp_loses_what_the_softmax_keeps(family, recipe, data):
    model, ids, index = data.draw(cases(family, attn=["eager"]))
    account = ledger(model, recipe, index, input_ids=ids)
    assert account.biases == 0
    assert_closes(account)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_leak_is_not_nothing(family):
    account = ledger(tiny(family, biases="zero"), ATTN_LRP, (0, 3, 5), input_ids=token_ids())
    assert abs(account.softmax) > 1e-3 * abs(account.explained)


@pytest.mark.parametrize("recipe", LEAKING, **by_name)
@pytest.mark.parametrize("family", FAMILIES)
def test_attnlrp_is_the_same_with_every_attention_implementation(family, recipe):
    eager, sdpa = (
        ledger(tiny(family, attn=attn), recipe, (1, 3, 5), input_ids=token_ids())
        for attn in ("eager", "sdpa")
    )
    assert sdpa.softmax == 0  # not seen
    for one, other in zip(eager.embeddings, sdpa.embeddings, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# With biases as they are --------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [*CONSERVING, *LEAKING], **by_name)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ledger_closes(family, head, recipe):
    model = tiny(family, head)
    index = (1, 2) if head == "sequence" else (1, 3, 1)
    account = ledger(model, recipe, index, input_ids=token_ids())
    has_biases = any(name.endswith("bias") for name, _ in model.named_parameters())
    assert (account.biases != 0) == has_biases
    assert_closes(account)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@examples(60)
@given(data=st.data())
def test_the_ledger_of_drawn_models_closes(family, data):
    model, ids, index = data.draw(cases(family, attn=["eager"], biases="random"))
    recipe = data.draw(st.sampled_from([LRP, ATTN_LRP]))
    assert_closes(ledger(model, recipe, index, input_ids=ids))


@pytest.mark.parametrize(
    ("family", "forgotten"),
    [
        *((family, replace(LRP, norm=NormGradient())) for family in FAMILIES),
        *((family, replace(LRP, activation=ActivationGradient())) for family in FAMILIES),
        *((family, replace(LRP, attention=AttentionGradient())) for family in FAMILIES),
        *(
            (family, replace(LRP, gate=ProductGradient()))
            for family, known in FAMILIES.items()
            if known.gated
        ),
    ],
)
def test_the_ledger_does_not_close_without_a_rule(family, forgotten):
    if FAMILIES[family].gated:  # else the activation of the gate is constant anyway
        forgotten = replace(forgotten, gate=_uniform_unless_forgotten(forgotten))
    account = ledger(tiny(family), forgotten, (1, 3, 5), input_ids=token_ids())
    assert not account.closes(1e-4)


def _uniform_unless_forgotten(recipe):
    gate = recipe.gate
    return gate if isinstance(gate, ProductGradient) else LRP_UNIFORM_GATE.gate


# Batches and padding ------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], **by_name)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_examples_and_later_tokens_without_influence_have_no_relevance(family, attn, recipe):
    ids = token_ids(batch=3, length=5)
    account = ledger(tiny(family, attn=attn), recipe, (1, 2, 4), input_ids=ids)
    tokens = account.embeddings[0].sum(-1)
    last = 2 if FAMILIES[family].causal else 4
    used = torch.zeros_like(tokens, dtype=torch.bool)
    used[1, : last + 1] = True
    assert torch.equal(tokens != 0, used)


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], **by_name)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_has_no_relevance(family, attn, recipe):
    ids, mask = token_ids(batch=2, length=5), torch.ones(2, 5, dtype=torch.long)
    ids[0, 3:], mask[0, 3:] = 0, 0
    model = tiny(family, attn=attn)
    padded = ledger(model, recipe, (0, 2, 7), input_ids=ids, attention_mask=mask)
    alone = ledger(model, recipe, (0, 2, 7), input_ids=ids[:1, :3])
    relevance = padded.embeddings[0]
    assert not relevance[0, 3:].any()
    torch.testing.assert_close(relevance[:1, :3], alone.embeddings[0], rtol=1e-9, atol=1e-12)
    if attn == "eager" or recipe is LRP:
        assert_closes(padded)
