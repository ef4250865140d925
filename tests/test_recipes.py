"""Recipes are values: role -> rule, with overrides."""

from dataclasses import replace

import pytest
import torch
from models import tiny, token_ids

from captum_lrpx import ATTN_LRP, LRP, LRPx, Recipe
from captum_lrpx.recipes import ATTN_LRP_SIGNAL_GATE, LRP_UNIFORM_GATE, NAMED_RECIPES
from captum_lrpx.rules import (
    ConstantWeights,
    Epsilon,
    Gamma,
    Identity,
    SignalTakeAll,
    Uniform,
    UniformAttention,
)

TARGET = (-1, 7)


def relevance(model, recipe):
    return LRPx(model, recipe=recipe).attribute(token_ids(), target=TARGET)


def test_equal_recipes_are_interchangeable():
    assert Recipe("lrp") == LRP
    assert hash(Recipe("lrp")) == hash(LRP)
    assert replace(LRP, linear=Epsilon(0.1)) != LRP


def test_the_four_combinations_of_attention_and_gate():
    assert {(type(each.attention), type(each.gate)) for each in NAMED_RECIPES.values()} == {
        (attention, gate)
        for attention in (ConstantWeights, UniformAttention)
        for gate in (SignalTakeAll, Uniform)
    }


def test_the_combinations_differ_where_there_is_a_gate_and_only_there():
    gated, plain = tiny("llama"), tiny("gpt2")
    results = [relevance(gated, recipe) for recipe in NAMED_RECIPES.values()]
    assert all(
        not torch.allclose(one, other, rtol=1e-2)
        for index, one in enumerate(results)
        for other in results[:index]
    )
    assert torch.equal(relevance(plain, LRP), relevance(plain, LRP_UNIFORM_GATE))
    assert torch.equal(relevance(plain, ATTN_LRP), relevance(plain, ATTN_LRP_SIGNAL_GATE))


def test_an_override_holds_for_its_role_at_its_paths():
    recipe = LRP.override("model.layers.1.*", Uniform())
    assert recipe.rule_for("gate", "model.layers.1.mlp") == Uniform()
    assert recipe.rule_for("gate", "model.layers.0.mlp") == SignalTakeAll()
    assert recipe.rule_for("activation", "model.layers.1.mlp.act_fn") == Identity()
    assert recipe.name == "lrp*"


def test_the_last_override_wins():
    recipe = LRP.override("*", Gamma(0.1)).override("lm_head", Epsilon(0.2))
    assert recipe.rule_for("linear", "lm_head") == Epsilon(0.2)
    assert recipe.rule_for("linear", "model.layers.0.mlp.up_proj") == Gamma(0.1)


def test_overriding_everything_is_the_other_recipe():
    model = tiny("llama")
    recipe = LRP.override("*", Uniform()).override("*", UniformAttention())
    assert torch.equal(relevance(model, recipe), relevance(model, ATTN_LRP))


def test_overriding_one_block_changes_the_result():
    model = tiny("llama")
    recipe = LRP.override("model.layers.1.self_attn", UniformAttention())
    assert not torch.allclose(relevance(model, recipe), relevance(model, LRP))


@pytest.mark.parametrize("role", ["norm", "activation", "attention", "gate", "linear"])
def test_a_rule_of_another_role_is_refused(role):
    wrong = Uniform() if role != "gate" else Identity()
    with pytest.raises(TypeError, match=role):
        replace(LRP, **{role: wrong})


@pytest.mark.parametrize("rule", [Epsilon, Gamma])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_negative_parameters_are_refused(rule, value):
    with pytest.raises(ValueError, match="number >= 0"):
        rule(value)


def test_a_signal_that_does_not_exist():
    with pytest.raises(ValueError, match="'up' or 'activation'"):
        SignalTakeAll(signal="gate")
