"""Published methods by their names are the recipes of one family, and equal their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from captum.attr import InputXGradient
from models import tiny, token_ids
from replica_ledger import Exact
from replica_published import (
    bert_with_constants,
    gpt2_with_constants,
    information_flow,
    llama_with_constants,
    relevances,
    target_vectors,
)
from tiny_models import build
from torch import nn
from torch.nn import functional as F  # noqa: N812

from captum_lrpx import ATTN_LRP, GRADIENT, LRP, ALTILogit, InformationFlow, LayerLRPx, LRPx, ledger
from captum_lrpx.recipes import LRP_MIRRORED_GATE, LRP_UNIFORM_GATE, PUBLISHED, Recipe
from captum_lrpx.rules import AttentionShares, GateShares, Identity

TOKEN = 7
EQUALS = {
    "cp-lrp": LRP,
    "mambalrp": LRP_UNIFORM_GATE,
    "libragrad": LRP_UNIFORM_GATE,
    "relp": LRP_UNIFORM_GATE,
    "attnlrp": ATTN_LRP,
    "dpa": ATTN_LRP,
    "gradient-x-input": GRADIENT,
}
both_attentions = pytest.mark.parametrize("attn", ["eager", "sdpa"])


def shares(values, up):
    return Recipe("shares", attention=AttentionShares(values), gate=GateShares(up))


def explained(model, recipe, ids):
    with Exact():
        return LRPx(model, recipe=recipe).attribute(ids, target=(-1, TOKEN))


def close(found, expected):
    assert found.abs().max() > 1e-3
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def coefficients(model, forward, ids):
    """Gradient and embeddings ``[T, D]`` of a forward pass with constants."""
    embeddings = model.get_input_embeddings().weight[ids].detach().requires_grad_()
    logits = forward(model, embeddings)
    assert torch.allclose(logits, model(ids[None]).logits[0, -1], atol=1e-5)
    (gradient,) = torch.autograd.grad(logits[TOKEN], embeddings)
    return gradient, embeddings.detach()


# Equal under other names --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_each_name_is_the_recipe_that_the_page_says(family):
    assert EQUALS.keys() == PUBLISHED.keys()
    model = tiny(family)
    for name, recipe in EQUALS.items():
        assert PUBLISHED[name].name == name
        assert torch.equal(
            explained(model, PUBLISHED[name], token_ids()), explained(model, recipe, token_ids())
        )


@both_attentions
def test_the_ends_of_the_family(attn):
    model = tiny("llama", attn=attn, key_value_heads=1)
    ids = token_ids()
    mirrored = explained(model, LRP_MIRRORED_GATE, ids)
    assert torch.equal(explained(model, shares(1, 0), ids), mirrored)
    only_weights = explained(model, shares(0, 1), ids)
    assert not torch.allclose(only_weights, explained(model, LRP, ids), rtol=1e-2)


# Against the formulas -----------------------------------------------------------------------------


@both_attentions
@pytest.mark.parametrize(
    ("name", "values_only", "up_only"),
    [
        ("cp-lrp", True, True),
        ("mambalrp", True, False),
        ("attnlrp", False, False),
    ],
)
@torch.no_grad()
def test_relevance_that_is_shared_out(name, values_only, up_only, attn):
    model = tiny("llama", biases="zero", attn=attn, key_value_heads=1)
    ids = token_ids(1)
    expected = relevances(model, ids[0], TOKEN, values_only=values_only, up_only=up_only)
    close(explained(model, PUBLISHED[name], ids)[0], expected)


@both_attentions
@pytest.mark.parametrize("content", [0.5, 0.2, 0.0, 1.0])
@torch.no_grad()
def test_dual_path_attribution(content, attn):
    model = tiny("llama", attn=attn, key_value_heads=1)
    ids = token_ids(1)
    target = target_vectors(model, ids[0], TOKEN, content=content)
    expected = (target * model.model.embed_tokens.weight[ids[0]]).sum(-1)
    recipe = PUBLISHED["dpa"] if content == 0.5 else shares(content, content)
    close(explained(model, recipe, ids)[0], expected)


FORWARDS = {
    "llama": ("libragrad", llama_with_constants),
    "gpt2": ("relp", gpt2_with_constants),
    "bert": ("libragrad", bert_with_constants),
}


@both_attentions
@pytest.mark.parametrize("family", FORWARDS)
def test_gradients_with_factors_held_constant(family, attn):
    name, forward = FORWARDS[family]
    model = tiny(family, attn=attn)
    ids = token_ids(1)
    gradient, embeddings = coefficients(model, forward, ids[0])
    close(explained(model, PUBLISHED[name], ids)[0], (gradient * embeddings).sum(-1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_relp_are_the_coefficients(family):
    model = tiny(family)
    ids = token_ids(1)
    gradient, _ = coefficients(model, FORWARDS[family][1], ids[0])
    layer = LayerLRPx(
        model,
        model.get_input_embeddings(),
        recipe=PUBLISHED["relp"],
        multiply_by_inputs=False,
    )
    with Exact():
        close(layer.attribute(ids, target=(-1, TOKEN))[0], gradient)


# Without rules -----------------------------------------------------------------------------------

FUNCTIONS = {
    "gate": lambda x, w: (x @ w) * torch.sigmoid(x),
    "F.glu": lambda x, w: F.glu(torch.cat([x, x @ w], -1)),
    "pooling": lambda x, w: (x @ w) * torch.softmax(x, -1),
    "quotient": lambda x, w: (x @ w) / (1 + x.exp()),
    "norm": lambda x, w: x / (x @ w).norm(dim=-1, keepdim=True),
    "log_softmax": lambda x, w: torch.log_softmax(x @ w, -1),
    "product": lambda x, w: x * (x @ w),
    "detached": lambda x, w: x @ w + x.detach(),
    "batch_norm": lambda x, w: F.batch_norm(x @ w, w[0], w[1].exp(), x[0], x[1]),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_without_rules_it_is_gradient_times_input(function):
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)

    class Module(nn.Module):
        def forward(self, x):
            return function(x, w)

    expected = InputXGradient(Module()).attribute(x.clone().requires_grad_(), 1)
    found = LRPx(Module(), recipe=GRADIENT).attribute(x, 1)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("family", ["mamba", "mamba2", "mixtral", "qwen3_next", "deepseek_v3"])
def test_without_rules_it_is_gradient_times_input_in_any_model(family):
    model, ids = build(family, "CAUSAL_LM"), token_ids(1)
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    logit = model(inputs_embeds=embeddings).logits[0, -1, TOKEN]
    (gradient,) = torch.autograd.grad(logit, embeddings)
    method = LRPx(model, recipe=PUBLISHED["gradient-x-input"])
    close(method.attribute(ids, (-1, TOKEN)), (gradient * embeddings).sum(-1).detach())
    book = ledger(method, ids, (-1, TOKEN))
    assert book.closes(1e-4), str(book)
    rules = {each.rule for each in method.coverage(ids).operations if each.kind == "ruled"}
    assert "its own gradient" in rules
    assert all(each.endswith(("Gradient", "gradient")) for each in rules)


def test_a_rule_for_one_place_leaves_the_gradient_elsewhere():
    model, ids = build("mamba", "CAUSAL_LM"), token_ids(1)
    found = [
        explained(model, recipe, ids)
        for recipe in (GRADIENT, GRADIENT.override("no.such.module", Identity()))
    ]
    assert torch.equal(*found)


# ALTI without the logit --------------------------------------------------------------------------


@both_attentions
@torch.no_grad()
def test_information_flow(attn):
    ids = token_ids(2)
    options = {"layers": 3, "heads": 4, "key_value_heads": 2}
    judge, model = tiny("llama", **options), tiny("llama", attn=attn, **options)
    with torch.enable_grad(), Exact():
        found = InformationFlow(model).attribute(ids, target=(-1, TOKEN))
    for row, expected in zip(found, ids, strict=True):
        close(row, information_flow(judge, expected))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_without_heads_it_is_alti(family):
    model, ids = tiny(family, heads=3, layers=3), token_ids(2)
    matrices = ALTILogit(model).decompose(ids, (2, TOKEN), return_alti=True).alti
    expected = torch.eye(ids.shape[1], dtype=matrices.dtype)
    for layer in matrices.unbind(1):
        expected = layer @ expected
    found = InformationFlow(model, by_head=False).attribute(ids, target=(2, TOKEN))
    assert torch.allclose(found, expected[:, 2], atol=1e-12)
    by_head = InformationFlow(model).attribute(ids, target=(2, TOKEN))
    assert torch.allclose(by_head.sum(-1), torch.ones(2, dtype=by_head.dtype))
    assert by_head.min() >= 0
    assert not torch.allclose(by_head, found, rtol=1e-2)


# What the rules say of themselves -----------------------------------------------------------------


@both_attentions
@pytest.mark.parametrize(("values", "up"), [(1, 0.3), (0.3, 1), (0.7, 0.2), (0, 0)])
def test_the_ledger_closes_for_all_shares(values, up, attn):
    model = tiny("llama", attn=attn)
    with Exact():
        book = ledger(LRPx(model, recipe=shares(values, up)), token_ids(), (-1, TOKEN))
    assert book.relative_residual("value").max() <= 1e-10
    leaks = any(each.kind == "softmax" and each.amount.abs().max() > 1e-6 for each in book.entries)
    assert leaks == (values != 1)
    assert AttentionShares(values).conserves == (values == 1)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("rule", [AttentionShares, GateShares])
def test_what_is_no_share_is_refused(rule, share):
    with pytest.raises(ValueError, match="from 0 to 1"):
        rule(share)


def test_the_other_rules_of_a_published_recipe_can_be_replaced():
    recipe = replace(PUBLISHED["dpa"], gate=GateShares(0.2))
    assert recipe.gate == GateShares(0.2)
    assert recipe != PUBLISHED["dpa"]
