"""The ledger under other rules: gradients, linear rules, adapters, overrides."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, IdentityRule
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from replica_ledger import Exact, biases_by_hand
from torch import nn

from captum_lrpx import AttnLRPx, LRPx, propagation
from captum_lrpx.conservation import ledger
from captum_lrpx.recipes import ATTN_LRP, LRP, LRP_UNIFORM_GATE
from captum_lrpx.rules import (
    ActivationGradient,
    Alpha1Beta0,
    AttentionGradient,
    Epsilon,
    Gamma,
    NormGradient,
    ProductGradient,
)

pytestmark = pytest.mark.usefixtures("of_the_graph")

RELATIVE = 1e-10
EVERY = FAMILIES | MORE_FAMILIES
TARGET = [(3, 5), (1, 2), (4, 7)]
both = pytest.mark.parametrize("recipe", [LRP_UNIFORM_GATE, ATTN_LRP], ids=lambda r: r.name)
every_family = pytest.mark.parametrize("family", EVERY)


def account(model, recipe, target=TARGET, ids=None):
    ids = token_ids(3) if ids is None else ids
    with Exact():
        return ledger(LRPx(model, recipe=recipe), ids, target)


def assert_closes(book):
    assert book.relative_residual("value").max() <= RELATIVE, (book.value, book.residual)


# Plain gradients, which do not conserve -----------------------------------------------------------


@both
@every_family
@pytest.mark.parametrize(
    "changed",
    [
        {"norm": NormGradient()},
        {"activation": ActivationGradient()},
        {"attention": AttentionGradient()},
        {"gate": ProductGradient()},
        {"norm": NormGradient(), "activation": ActivationGradient()},
        {"norm": NormGradient(), "attention": AttentionGradient(), "gate": ProductGradient()},
    ],
    ids="+".join,
)
def test_what_a_gradient_does_not_conserve_has_a_line(family, recipe, changed):
    model = tiny(family, activation="gelu")
    book = account(model, replace(recipe, **changed))
    assert_closes(book)
    expected = set(changed) != {"gate"} or EVERY[family].gated
    assert ("rule" in book.by_kind()) == expected
    if expected:
        assert (book.by_kind()["rule"].abs() > 1e-6 * book.value.abs()).all()


@pytest.mark.parametrize("family", ["roberta", "distilbert", "bert", "gpt2"])
@pytest.mark.parametrize("head", ["lm", "sequence", "token"])
def test_activations_of_heads_inline_ones_too(family, head):
    index = {"lm": TARGET, "sequence": [1, 0, 2], "token": [(3, 1), (0, 0), (4, 2)]}[head]
    model = tiny(family, head, activation="gelu")
    book = account(model, replace(LRP, activation=ActivationGradient()), index)
    assert_closes(book)
    inside = {entry.layer for entry in book.of("rule")}
    has_activation = (family, head) not in {("gpt2", "lm"), ("gpt2", "sequence")}
    assert (None in inside) == (has_activation and head != "token" and family != "gpt2")


def test_norms_of_queries_and_keys():
    model = tiny("qwen3")
    recipe = ATTN_LRP.override("*.q_norm", NormGradient()).override("*.k_norm", NormGradient())
    book = account(model, recipe)
    assert_closes(book)
    assert {entry.path.rsplit(".", 1)[1] for entry in book.of("rule")} == {"q_norm", "k_norm"}
    with_gradient = replace(recipe, attention=AttentionGradient())
    book = account(model, with_gradient)
    assert_closes(book)
    paths = {entry.path.rsplit(".", 1)[1] for entry in book.of("rule")}
    assert paths == {"q_norm", "k_norm", "self_attn"}


def test_an_override_for_one_layer_has_a_line_there_alone():
    recipe = LRP.override("*.h.1.*", NormGradient())
    book = account(tiny("gpt2", layers=3), recipe)
    assert_closes(book)
    assert {entry.layer for entry in book.of("rule")} == {1}
    recipe = LRP.override("transformer.h.2.attn", ATTN_LRP.attention)
    book = account(tiny("gpt2", layers=3), recipe)
    assert_closes(book)
    assert {entry.layer for entry in book.of("softmax")} == {2}


def test_an_activation_that_is_not_zero_at_zero():
    """No slope at zero carries its value there."""
    model = tiny("gpt2", activation="sigmoid")
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_fc.weight[:, :3] = 0
            block.mlp.c_fc.bias[:3] = 0
    book = account(model, LRP)
    assert_closes(book)
    assert (book.by_kind()["rule"].abs() > 1e-6).all()


# Linear rules -------------------------------------------------------------------------------------

LINEAR = [Epsilon(0.1), Gamma(0.3), Alpha1Beta0()]


@both
@every_family
@pytest.mark.parametrize("rule", LINEAR, ids=lambda rule: type(rule).__name__)
def test_what_a_linear_rule_absorbs_has_a_line(family, rule, recipe):
    book = account(tiny(family), replace(recipe, linear=rule))
    assert book.closes(RELATIVE)
    lost = book.by_kind()["absorbed"].abs()
    if isinstance(rule, Gamma):  # conserves, biases counted
        assert (lost <= 1e-9 * sum(a.abs() for a in book.by_kind().values())).all()
    elif isinstance(rule, Epsilon):  # alpha1-beta0 loses only where nothing is positive
        assert (lost > 1e-6).all()


@pytest.mark.parametrize("head", ["lm", "sequence", "token"])
@pytest.mark.parametrize("family", ["roberta", "distilbert", "bert"])
def test_linear_rules_around_an_activation_that_is_a_function(family, head):
    index = {"lm": TARGET, "sequence": [1, 0, 2], "token": [(3, 1), (0, 0), (4, 2)]}[head]
    for rule in LINEAR:
        assert account(tiny(family, head), replace(LRP, linear=rule), index).closes(RELATIVE)


@both
@pytest.mark.parametrize("rule", LINEAR, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("family", [family for family in EVERY if family != "mistral"])
def test_each_bias_under_a_linear_rule_has_its_own_amount(family, rule, recipe):
    recipe = replace(recipe, linear=rule)
    model, ids = tiny(family), token_ids(3)
    book = account(model, recipe)
    found = {entry.path: entry.amount for entry in book.of("bias")}
    assert len(found) == sum(name.endswith("bias") for name, _ in model.named_parameters())
    for row, index in enumerate(TARGET):
        with Exact():
            expected = biases_by_hand(model, recipe, (0, *index), ids[row : row + 1])
        for name, amount in found.items():
            assert amount[row].item() == pytest.approx(expected[name], rel=1e-8, abs=1e-11), name


LAYERS = {
    "bert": [
        f"bert.encoder.layer.1.{path}"
        for path in ("attention.self.value", "attention.output.dense", "output.dense")
    ],
    "gpt2": [f"transformer.h.1.{path}" for path in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")],
    "llama": [
        f"model.layers.1.{path}"
        for path in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    ],
    "bloom": [
        f"transformer.h.1.{path}"
        for path in ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_4h_to_h")
    ],
}
"""Values, the output of attention and that of the MLP."""


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize(
    "rule", [EpsilonRule(0.05), GammaRule(), Alpha1_Beta0_Rule()], ids=lambda r: type(r).__name__
)
def test_captum_s_rules_on_modules(family, rule):
    model = tiny(family)
    modules = [model.get_submodule(path) for path in LAYERS[family]]
    for module in modules:
        module.rule = rule
    book = account(model, ATTN_LRP)
    assert book.closes(RELATIVE)
    assert {entry.layer for entry in book.of("absorbed")} == {1}
    assert len(book.of("absorbed")) == len(modules)


def test_captum_s_identity_rule():
    model = tiny("llama")
    model.model.layers[0].self_attn.o_proj.rule = IdentityRule()
    book = account(model, LRP)
    assert_closes(book)
    by_path = {entry.path: entry.amount for entry in book.entries}
    assert "model.layers.0.self_attn.o_proj.bias" not in by_path
    assert (by_path["model.layers.0.self_attn.o_proj"].abs() < 1e-9).all()


def test_a_linear_rule_on_a_fused_projection_is_not_lost():
    """The shortcut past queries and keys that LRP holds constant is not one past the layer."""
    model, ids = tiny("gpt2"), token_ids(1)
    recipe = replace(LRP, linear=Gamma(0.5))
    expected = []
    for frozen in (True, False):
        with propagation(model, recipe, freeze_parameters=frozen):
            embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
            value = model(inputs_embeds=embeds).logits[0, 3, 5]
            expected.append(torch.autograd.grad(value, embeds)[0])
    torch.testing.assert_close(expected[0], expected[1], rtol=1e-10, atol=1e-13)


# Adapters and modules that others have wrapped ------------------------------------------------


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP, replace(ATTN_LRP, linear=Epsilon(0.1))])
@pytest.mark.parametrize("bias", [False, True])
def test_lora(recipe, bias):
    model = tiny("bert")
    before = len(account(model, LRP).of("bias"))
    config = peft.LoraConfig(
        r=2,
        target_modules=["query", "value", "decoder", "output.dense"],
        lora_bias=bias,
        init_lora_weights=False,
    )
    model = peft.get_peft_model(model, config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B.default.bias"):
                nn.init.normal_(parameter)
    book = account(model, recipe)
    assert book.closes(RELATIVE)
    assert (len(book.of("bias")) > before) == bias
    paths = {entry.path for entry in book.of("bias")}
    assert any(path.endswith("base_layer.bias") for path in paths)


def test_a_norm_and_a_head_trained_beside_an_adapter():
    config = peft.LoraConfig(
        r=2,
        target_modules=["query"],
        modules_to_save=["classifier", "LayerNorm"],
        init_lora_weights=False,
    )
    model = peft.get_peft_model(tiny("bert", "sequence"), config).double().eval()
    for method in (LRPx, AttnLRPx):
        book = ledger(method(model), token_ids(3), [1, 0, 2])
        assert book.closes(RELATIVE)
        paths = [entry.path for entry in book.of("bias")]
        assert len(paths) == len(set(paths))
        amounts = {entry.path: entry.amount for entry in book.of("bias")}
        assert any("classifier" in path and amounts[path].any() for path in paths)


def test_weights_on_another_device_than_the_module_runs_on():
    """Offloaded by accelerate: parameters are there only while their module runs."""
    import accelerate

    model = tiny("gpt2")
    expected = {recipe.name: account(model, recipe).by_kind() for recipe in (LRP, ATTN_LRP)}
    accelerate.cpu_offload(model)
    for recipe in (LRP, ATTN_LRP, replace(LRP, linear=Gamma(0.3))):
        book = account(model, recipe)
        assert book.closes(RELATIVE)
        for kind, amount in expected.get(recipe.name, {}).items():
            if recipe.linear == Epsilon():
                torch.testing.assert_close(book.by_kind()[kind], amount, rtol=1e-9, atol=1e-12)
