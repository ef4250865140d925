"""What no rule covers is found, named and refused; what is declared is covered."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from models import FAMILIES, HEADS, MORE_FAMILIES, tiny, token_ids
from modifications import (
    MODIFICATIONS,
    extra_gate,
    inline_gelu,
    inline_squared_relu,
    relu_by_comparison,
    rewritten,
    soft_cap_on_logits,
)
from state import snapshot
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx import ALTILogit, AttnLRPx, LayerLRPx, LRPx, NeuronLRPx, ledger, propagation
from captum_lrpx.architectures import GatedMLP, Inline, register
from captum_lrpx.architectures.bert import BERT
from captum_lrpx.architectures.gpt2 import GPT2
from captum_lrpx.architectures.llama import LLAMA
from captum_lrpx.architectures.registry import unregister
from captum_lrpx.models import bind
from captum_lrpx.coverage.judge import judge
from captum_lrpx.propagation import sites_of
from captum_lrpx.recipes import ATTN_LRP, LRP, NAMED_RECIPES
from captum_lrpx.rules import ActivationGradient

TARGET = (-1, 7)


@pytest.mark.parametrize("modify", MODIFICATIONS, ids=lambda modify: modify.__name__)
def test_what_no_rule_covers_is_refused_by_name(modify):
    model, module, path, function = modify()
    before = snapshot(model)
    with pytest.raises(ValueError, match="that no rule of 'attnlrp' covers") as error:
        AttnLRPx(model).attribute(token_ids(), TARGET)
    assert snapshot(model) == before
    assert path in str(error.value)
    assert type(module).__name__ in str(error.value)
    assert function in str(error.value)
    with pytest.warns(UserWarning, match="that no rule of 'attnlrp' covers"):
        found = AttnLRPx(model, strict=False).attribute(token_ids(), TARGET)
    assert found.isfinite().all()


# With a declaration -----------------------------------------------------------------------------


@contextmanager
def declared(model, architecture):
    """An architecture of this model alone."""
    model.config.model_type = "modified"
    architecture = register(replace(architecture, model_types=("modified",)))
    try:
        yield
    finally:
        unregister(architecture)


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


def assert_ledgers_close(model, within=1e-12):
    """The public account, which has a line for the softmax of AttnLRP too."""
    for method in (LRPx, AttnLRPx):
        book = ledger(method(model), token_ids(), TARGET)
        assert book.closes(within), str(book)
        assert book.by_kind()["tokens"].abs().min() > 0


def with_inline(architecture, *inlines):
    head = architecture.head
    return replace(architecture, head=replace(head, inline=(*head.inline, *inlines)))


H0 = "transformer.h.0.mlp"
DECLARATIONS = {
    inline_gelu: with_inline(GPT2, Inline(f"{H0}.c_fc", f"{H0}.c_proj", "gelu")),
    inline_squared_relu: with_inline(GPT2, Inline(f"{H0}.c_fc", f"{H0}.c_proj", "relu2")),
    relu_by_comparison: with_inline(
        BERT,
        Inline(
            "bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense", "relu"
        ),
    ),
    extra_gate: replace(GPT2, mlp=GatedMLP("mlp", "mlp.c_fc", "mlp.act", "mlp.gate", "mlp.c_proj")),
}


@pytest.mark.parametrize("modify", DECLARATIONS, ids=lambda modify: modify.__name__)
def test_with_a_declaration_it_is_explained_and_the_account_closes(modify):
    model, *_ = modify()
    with declared(model, DECLARATIONS[modify]):
        for method in (LRPx, AttnLRPx):
            assert method(model).coverage(token_ids()).complete
            assert method(model).attribute(token_ids(), TARGET).isfinite().all()
        assert_account_closes(model, LRP)
        assert_ledgers_close(model)


def test_renamed_projections_take_a_declaration_and_need_none():
    model = tiny("llama", layers=1)
    attention = model.model.layers[0].self_attn
    attention.query = attention.q_proj
    del attention.q_proj
    rotary = model.model.rotary_emb

    def forward(self, hidden_states, **_):
        q, k, v = self.query(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        return self.o_proj(torch.softmax(q @ k.mT, -1) @ v), None

    rewritten(attention, forward)
    with pytest.raises(ValueError, match=r"has no module 'model.layers.0.self_attn.q_proj'"):
        bind(model)
    assert AttnLRPx(model).coverage(token_ids()).complete  # from the graph
    renamed = replace(LLAMA, attention=replace(LLAMA.attention, query="self_attn.query"))
    with declared(model, renamed):
        assert AttnLRPx(model).coverage(token_ids()).complete
        assert_account_closes(model, LRP)
        assert_ledgers_close(model, within=1e-6)  # the norms of Llama are in float32
    assert rotary is model.model.rotary_emb


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
    text = str(AttnLRPx(tiny("llama", layers=3)).coverage(token_ids()))
    for part in ("model.layers.*.self_attn", "UniformAttention", "FrozenScale", "Identity"):
        assert part in text
    assert "model.layers.1" not in text
    assert text.splitlines()[-1].startswith("complete: each of")


def test_what_does_not_reach_the_output_does_not_matter():
    model, *_ = inline_gelu()
    block = model.transformer.h[0]
    assert LayerLRPx(model, block).coverage(token_ids()).complete  # behind the gelu
    assert not LayerLRPx(model, block.ln_2).coverage(token_ids()).complete
    assert NeuronLRPx(model, block.ln_2).coverage(token_ids()).complete  # before it
    assert not NeuronLRPx(model, block).coverage(token_ids()).complete


def test_what_follows_the_model_is_what_is_explained_and_what_precedes_it_is_not():
    model = tiny("gpt2")

    def behind(ids):
        return torch.softmax(model(ids).logits, -1)

    coverage = AttnLRPx(behind, model).coverage(token_ids())
    (function,) = [each for each in coverage.operations if each.kind == "explained function"]
    assert "softmax" in function.function
    assert function.module_type == "behind"

    def before(embeds):
        return model(inputs_embeds=torch.tanh(embeds)).logits

    embeds = model.get_input_embeddings()(token_ids()).detach()
    with pytest.raises(ValueError, match="tanh in before"):
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
    inside_of_a_branch, *_ = inline_gelu()
    ALTILogit(inside_of_a_branch).attribute(token_ids(), TARGET)


def test_a_rule_that_is_chosen_counts_even_if_it_is_the_gradient():
    recipe = replace(ATTN_LRP, activation=ActivationGradient())
    coverage = AttnLRPx(tiny("gpt2"), recipe=recipe).coverage(token_ids())
    assert coverage.complete
    assert "ActivationGradient" in {each.rule for each in coverage.operations}


def test_without_fast_forms_each_operation_is_listed():
    model = tiny("llama", layers=1)
    coverage = AttnLRPx(model, fast=False).coverage(token_ids())
    found = {(each.module, each.rule) for each in coverage.operations if each.kind == "ruled"}
    assert ("model.layers.0.mlp", "Uniform") in found
    assert ("model.layers.0.self_attn", "UniformAttention") in found
    assert any(module == "model.norm" for module, _ in found)


# Cost and traces ----------------------------------------------------------------------------------


def test_the_model_is_judged_once_and_runs_as_often_as_it_is_explained(monkeypatch):
    from captum_lrpx.coverage import strict

    model, calls, judged = tiny("gpt2"), [], []
    monkeypatch.setattr(strict, "judge", lambda *args: judged.append(args) or judge(*args))
    model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        AttnLRPx(model).attribute(token_ids(), TARGET)
    assert (len(calls), len(judged)) == (3, 1)
    LRPx(model).attribute(token_ids(), TARGET)
    assert (len(calls), len(judged)) == (4, 2)


def test_a_change_of_the_model_is_noticed():
    model = tiny("gpt2", layers=1)
    attribution = AttnLRPx(model)
    attribution.attribute(token_ids(), TARGET)
    mlp = model.transformer.h[0].mlp
    rewritten(mlp, lambda self, x: self.c_proj(F.gelu(self.c_fc(x))))
    with pytest.raises(ValueError, match="gelu"):
        attribution.attribute(token_ids(), TARGET)
    del mlp.forward
    attribution.attribute(token_ids(), TARGET)
    mlp.act.register_forward_hook(lambda _module, _args, output: output.tanh())
    with pytest.raises(ValueError, match="tanh"):
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
    for site in sites_of(model).norms:
        site.module.register_full_backward_hook(lambda *_: None)
    assert LRPx(model).coverage(token_ids()).complete
