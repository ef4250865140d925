"""Every operation has a rule, or is named and refused; what is computed is all that counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from anatomy import blocks_of
from models import FAMILIES, HEADS, MORE_FAMILIES, tiny, token_ids
from modifications import (
    EXPLAINED,
    REFUSED,
    rewritten,
    soft_cap_on_logits,
    softmax_elsewhere,
    unknown_function,
)
from state import snapshot
from torch import nn

from captum_lrpx import ALTILogit, AttnLRPx, LayerLRPx, LRPx, NeuronLRPx, ledger, propagation
from captum_lrpx.recipes import ATTN_LRP, LRP, NAMED_RECIPES
from captum_lrpx.rules import ActivationGradient, NormGradient

TARGET = (-1, 7)


@pytest.mark.parametrize("modify", REFUSED, ids=lambda modify: modify.__name__)
def test_what_no_rule_covers_is_refused_by_name_with_a_way_out(modify):
    model, module, path, function = modify()
    before = snapshot(model)
    with pytest.raises(ValueError, match="that no rule of 'attnlrp' covers") as error:
        AttnLRPx(model).attribute(token_ids(), TARGET)
    assert snapshot(model) == before
    (operation,) = AttnLRPx(model).coverage(token_ids()).unruled
    assert path in operation.module
    assert operation.module_type == type(module).__name__
    assert function in operation.function
    for part in (operation.place, operation.reason, operation.remedy, REFUSED[modify]):
        assert part in str(error.value)


@pytest.mark.parametrize("modify", REFUSED, ids=lambda modify: modify.__name__)
def test_where_strictness_is_not_asked_for_a_warning_says_the_same(modify):
    model, *_ = modify()
    with pytest.warns(UserWarning, match="that no rule of 'attnlrp' covers"):
        found = AttnLRPx(model, strict=False).attribute(token_ids(), TARGET)
    assert found.isfinite().all()
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    with pytest.raises(ValueError, match="covers"), propagation(model, LRP):
        model(inputs_embeds=embeds)
    with pytest.warns(UserWarning, match="covers"), propagation(model, LRP, strict=False):
        model(inputs_embeds=embeds)


# What the operations tell -------------------------------------------------------------------------


def assert_account_closes(model, recipe):
    """LRP: tokens, positions, token types and biases sum to the explained value."""
    embeddings = []

    def keep(_module, _args, output):
        embeddings.append(output.detach().requires_grad_())
        return embeddings[-1]

    kinds = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    handles = [module.register_forward_hook(keep) for module in kinds]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    try:
        with propagation(model, recipe, freeze_parameters=False):
            value = model(token_ids(batch=1)).logits[0, -1, 7]
            parts = [*embeddings, *biases]
            gradients = torch.autograd.grad(value, parts, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    total = sum((p * g).sum() for p, g in zip(parts, gradients, strict=True) if g is not None)
    torch.testing.assert_close(total, value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("modify", EXPLAINED, ids=lambda modify: modify.__name__)
def test_nothing_has_to_be_declared_and_the_account_closes(modify):
    model, *_ = modify()
    within = 1e-6 if model.config.model_type == "llama" else 1e-12  # norms in float32
    for method in (LRPx, AttnLRPx):
        assert method(model).coverage(token_ids()).complete
        book = ledger(method(model), token_ids(), TARGET)
        assert book.closes(within), str(book)
        assert book.by_kind()["tokens"].abs().min() > 0
    if modify is not softmax_elsewhere:  # a constant of its own
        assert_account_closes(model, LRP)


# What is covered --------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", NAMED_RECIPES.values(), ids=NAMED_RECIPES)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES | MORE_FAMILIES)
def test_every_family_is_covered(family, attn, recipe):
    model = tiny(family, attn=attn)
    for inputs in (token_ids(), model.get_input_embeddings()(token_ids()).detach()):
        coverage = LRPx(model, recipe=recipe).coverage(inputs)
        assert coverage.complete, str(coverage)
        assert {each.kind for each in coverage.operations} == {"linear", "ruled"}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_is_covered(family, head):
    model = tiny(family, head)

    def forward(ids):
        output = model(ids)
        return output.start_logits if head == "qa" else output.logits

    for method in (LRPx, AttnLRPx):
        assert method(forward, model).coverage(token_ids()).complete


def test_the_table_names_rules_and_folds_blocks():
    text = str(AttnLRPx(tiny("bert", layers=3)).coverage(token_ids()))
    for part in ("encoder.layer.*.output", "UniformAttention", "FrozenScale", "Identity"):
        assert part in text
    assert "encoder.layer.1" not in text
    assert text.splitlines()[-1].startswith("complete: each of")


def test_what_does_not_reach_the_output_does_not_matter():
    model, *_ = unknown_function()
    block = model.transformer.h[0]
    assert LayerLRPx(model, block).coverage(token_ids()).complete  # behind the function
    assert not LayerLRPx(model, block.ln_2).coverage(token_ids()).complete
    assert NeuronLRPx(model, block.ln_2).coverage(token_ids()).complete  # before it
    assert not NeuronLRPx(model, block).coverage(token_ids()).complete


def test_what_follows_the_model_is_what_is_explained_and_what_precedes_it_is_not():
    model = tiny("gpt2")

    def behind(ids):
        return torch.lgamma(model(ids).logits)

    coverage = AttnLRPx(behind, model).coverage(token_ids())
    assert coverage.complete
    (function,) = [each for each in coverage.operations if each.kind == "explained function"]
    assert "lgamma" in function.function
    assert function.place == "the forward function"

    def before(embeds):
        return model(inputs_embeds=torch.lgamma(embeds)).logits

    embeds = model.get_input_embeddings()(token_ids()).detach()
    with pytest.raises(ValueError, match="lgamma in the forward function"):
        AttnLRPx(before, model).attribute(embeds, TARGET)


def test_alti_logit_refuses_what_its_directions_would_miss():
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda _m, _args, output: torch.lgamma(output))
    with pytest.raises(ValueError, match="lgamma in LlamaForCausalLM"):
        ALTILogit(model).attribute(token_ids(), TARGET)
    with pytest.warns(UserWarning, match="lgamma"):
        ALTILogit(model, strict=False).attribute(token_ids(), TARGET)
    capped, *_ = soft_cap_on_logits()
    ALTILogit(capped).attribute(token_ids(), TARGET)
    inside_of_a_branch, *_ = unknown_function()
    ALTILogit(inside_of_a_branch).attribute(token_ids(), TARGET)


def test_a_rule_that_is_chosen_counts_even_if_it_is_the_gradient():
    recipe = replace(ATTN_LRP, activation=ActivationGradient())
    coverage = AttnLRPx(tiny("gpt2"), recipe=recipe).coverage(token_ids())
    assert coverage.complete
    assert "ActivationGradient" in {each.rule for each in coverage.operations}


@pytest.mark.parametrize("rule", [ActivationGradient(), NormGradient()], ids=repr)
def test_a_rule_for_a_path_is_that_of_the_operations_there(rule):
    model = tiny("bert")
    block = "bert.encoder.layer.1"
    recipe = LRP.override(f"{block}*", rule)
    rules = {}
    for each in LRPx(model, recipe=recipe).coverage(token_ids()).operations:
        rules.setdefault(each.rule, set()).add(each.module)
    name = repr(rule).removesuffix("()")
    other = {"ActivationGradient": "Identity", "NormGradient": "FrozenScale"}[name]
    assert all(path.startswith(block) for path in rules[name])
    assert not any(path.startswith(block) for path in rules[other])
    found = LRPx(model, recipe=recipe).attribute(token_ids(), TARGET)
    assert not torch.allclose(found, LRPx(model).attribute(token_ids(), TARGET))


def test_each_operation_is_listed_where_it_is_computed():
    model = tiny("llama", layers=1)
    coverage = AttnLRPx(model).coverage(token_ids())
    found = {(each.module, each.rule) for each in coverage.operations if each.kind == "ruled"}
    assert ("model.layers.0.mlp", "Uniform") in found
    assert ("model.layers.0.self_attn", "UniformAttention") in found
    assert any(module == "model.norm" for module, _ in found)


# Cost and traces ----------------------------------------------------------------------------------


def test_the_model_runs_as_often_as_it_is_explained():
    model, calls = tiny("gpt2"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        AttnLRPx(model).attribute(token_ids(), TARGET)
    assert len(calls) == 3
    LRPx(model).attribute(token_ids(), TARGET)
    assert len(calls) == 4


def test_a_change_of_the_model_is_noticed():
    model = tiny("gpt2", layers=1)
    attribution = AttnLRPx(model)
    expected = attribution.attribute(token_ids(), TARGET)
    mlp = model.transformer.h[0].mlp
    rewritten(mlp, lambda self, x: self.c_proj(torch.lgamma(self.c_fc(x))))
    with pytest.raises(ValueError, match="lgamma"):
        attribution.attribute(token_ids(), TARGET)
    del mlp.forward
    assert torch.equal(attribution.attribute(token_ids(), TARGET), expected)
    mlp.act.register_forward_hook(lambda _module, _args, output: torch.digamma(output))
    with pytest.raises(ValueError, match="digamma"):
        attribution.attribute(token_ids(), TARGET)


@pytest.mark.filterwarnings("ignore:.*training mode")
def test_the_trace_leaves_nothing_behind():
    model = tiny("bert", hidden_dropout_prob=0.5).train()
    before, state = snapshot(model), torch.get_rng_state()
    assert AttnLRPx(model).coverage(token_ids()).complete
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_left_after_an_error_in_the_traced_pass():
    from torch.nn.modules import module as hooks

    model = tiny("gpt2")
    before = snapshot(model)

    def forward(ids):
        model(ids)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AttnLRPx(forward, model).attribute(token_ids(), TARGET)
    assert snapshot(model) == before
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


def test_a_forward_function_without_gradients_has_no_coverage():
    model = tiny("gpt2")

    @torch.no_grad()
    def forward(ids):
        return model(ids).logits

    with pytest.raises(ValueError, match="nothing that has a gradient"):
        AttnLRPx(forward, model).coverage(token_ids())


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_backward_hooks_of_the_user_are_no_operation(family):
    model = tiny(family)
    for block in blocks_of(model):
        for norm in block.norms:
            norm.register_full_backward_hook(lambda *_: None)
    assert LRPx(model).coverage(token_ids()).complete
