"""Epsilon, alpha1-beta0 and gamma on the linear layers of whole models."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import torch
from captum.attr._utils.lrp_rules import GammaRule
from models import FAMILIES, HEADS, outputs, tiny, token_ids
from torch import nn
from transformers.pytorch_utils import Conv1D

from captum_lrpx import ATTN_LRP, LRP, LRPx, propagation
from captum_lrpx.recipes import LRP_UNIFORM_GATE
from captum_lrpx.rules import Alpha1Beta0, AttentionGradient, Epsilon, Gamma, ProductGradient
from captum_lrpx.rules.captum_rules import CaptumRule

RULES = [Epsilon(1e-3), Epsilon(1.0), Alpha1Beta0(), Gamma(0.25), Gamma(100.0)]
TARGET = (3, 5)
every_family = pytest.mark.parametrize("family", FAMILIES)
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def linear_layers(model):
    named = model.named_modules()
    return {path: layer for path, layer in named if isinstance(layer, (nn.Linear, Conv1D))}


def relevance(model, recipe):
    embeds = model.get_input_embeddings()(token_ids()).detach()
    return LRPx(model, recipe=recipe).attribute(embeds, target=TARGET)


def slopes(model, recipe):
    """For each linear layer whether its input gets another gradient than the layer's own."""
    found = {}

    def probe(path):
        def hook(module, inputs, output):
            if not output.requires_grad:
                return
            (x,) = inputs
            ones = torch.linspace(1, 2, output.shape[-1], dtype=output.dtype).expand_as(output)
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(module.forward(leaf), leaf, ones)
            weight = module.weight if isinstance(module, Conv1D) else module.weight.T
            found[path] = not torch.allclose(gradient, ones @ weight.T)

        return hook

    layers = linear_layers(model)
    hooks = [layer.register_forward_hook(probe(path)) for path, layer in layers.items()]
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    with propagation(model, recipe):
        outputs(model, inputs_embeds=embeds)
    for hook in hooks:
        hook.remove()
    return found


# As the rule of a recipe --------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@every_family
def test_finite_and_different(family, recipe, rule):
    model = tiny(family)
    found = relevance(model, replace(recipe, linear=rule))
    assert found.isfinite().all()
    assert found[:, : TARGET[0] + 1].any()
    assert not torch.allclose(found, relevance(model, recipe))


@every_rule
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@every_family
def test_the_forward_pass_is_bit_identical(family, attn, dtype, rule):
    model, ids = tiny(family, dtype=dtype, attn=attn), token_ids()
    plain = outputs(model, input_ids=ids).detach()
    with propagation(model, replace(ATTN_LRP, linear=rule), freeze_parameters=False):
        assert torch.equal(outputs(model, input_ids=ids), plain)


@every_rule
@pytest.mark.parametrize("head", HEADS)
@every_family
def test_every_head(family, head, rule):
    model = tiny(family, head)
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    with propagation(model, replace(LRP, linear=rule)):
        # All outputs: alpha1-beta0 may leave a single one without any positive contribution.
        (gradient,) = torch.autograd.grad(outputs(model, inputs_embeds=embeds)[1].sum(), embeds)
    assert gradient.isfinite().all()
    assert not gradient[0].any()
    assert gradient[1].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_rule
@every_family
def test_half_precision_is_finite(family, rule, dtype):
    model = tiny(family, dtype=dtype)
    assert relevance(model, replace(LRP, linear=rule)).isfinite().all()


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@every_family
def test_small_rules_converge_to_the_recipe(family, recipe):
    model = tiny(family)
    plain = relevance(model, recipe)
    for build in (Epsilon, Gamma):
        distances = [
            (relevance(model, replace(recipe, linear=build(strength))) - plain).abs().max()
            for strength in (1e-4, 1e-6, 1e-8)
        ]
        # First order: a hundredth of the strength is a hundredth of the distance.
        assert 0 < distances[1] < distances[0] / 30
        assert 0 < distances[2] < distances[1] / 30
    assert torch.equal(relevance(model, replace(recipe, linear=Epsilon(0.0))), plain)


@every_family
def test_gamma_conserves_like_the_recipe(family):
    """Without biases; the relevance of each output is distributed in full, only otherwise."""
    model, ids = tiny(family, biases="zero", dtype=torch.float64), token_ids()
    leaves = []

    def hook(_module, _inputs, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    hooks = [module.register_forward_hook(hook) for module in embeddings]
    for recipe in (LRP, LRP_UNIFORM_GATE):
        leaves.clear()
        with propagation(model, replace(recipe, linear=Gamma(0.5))):
            explained = outputs(model, input_ids=ids)[0, 3, 5]
            gradients = torch.autograd.grad(explained, leaves)
        total = sum((leaf * grad).sum() for leaf, grad in zip(leaves, gradients, strict=True))
        # Llama and its relatives round to float32 in their norms.
        accuracy = 1e-5 if FAMILIES[family].rotary else 1e-10
        torch.testing.assert_close(total, explained, rtol=accuracy, atol=accuracy)
    for handle in hooks:
        handle.remove()


# As an override -----------------------------------------------------------------------------------

PATTERNS = {
    "bert": ["*.layer.0.*", "*.layer.1.attention.self.value", "cls.predictions.decoder"],
    "roberta": ["*.layer.1.output.dense", "lm_head.dense"],
    "distilbert": ["*.ffn.lin1", "vocab_*"],
    "gpt2": ["*.c_attn", "transformer.h.1.*", "lm_head"],
    "llama": ["*.v_proj", "model.layers.0.mlp.*", "lm_head", "*"],
    "qwen3": ["*.self_attn.*"],
}


@pytest.mark.parametrize("rule", [Epsilon(0.5), Alpha1Beta0(), Gamma(0.5)], ids=str)
@pytest.mark.parametrize(
    ("family", "pattern"),
    [(family, pattern) for family, patterns in PATTERNS.items() for pattern in patterns],
)
def test_an_override_touches_the_paths_that_it_matches_and_no_others(family, pattern, rule):
    model = tiny(family)
    # Without the rules that scale what goes into or comes out of a linear layer.
    plain = replace(LRP, attention=AttentionGradient(), gate=ProductGradient())
    assert not any(slopes(model, plain).values())
    recipe = plain.override(pattern, rule)
    touched = slopes(model, recipe)
    assert touched.keys() == linear_layers(model).keys()
    assert touched == {path: fnmatchcase(path, pattern) for path in touched}
    assert any(touched.values())


def test_an_override_of_all_layers_is_the_rule_of_the_recipe():
    for family in FAMILIES:
        model = tiny(family)
        for rule in RULES:
            expected = relevance(model, replace(LRP, linear=rule))
            assert torch.equal(relevance(model, LRP.override("*", rule)), expected)


def test_the_last_override_wins():
    model = tiny("bert")
    recipe = LRP.override("*", Gamma(0.5)).override("*.layer.1.*", Epsilon(0.0))
    touched = slopes(model, recipe)
    assert touched.pop("cls.predictions.decoder")
    values = {path: changed for path, changed in touched.items() if "layer.1" in path}
    assert not any(values.values())
    assert all(touched[path] for path in touched.keys() - values.keys())


def test_rules_of_other_roles_are_not_overridden_by_a_linear_rule():
    model = tiny("llama")
    recipe = ATTN_LRP.override("*norm*", Gamma(0.5)).override("*act_fn*", Epsilon(1.0))
    assert torch.equal(relevance(model, recipe), relevance(model, ATTN_LRP))


def test_a_pattern_of_an_override_may_match_nothing():
    model = tiny("gpt2")
    recipe = LRP.override("*.no_such_layer", Alpha1Beta0())
    assert torch.equal(relevance(model, recipe), relevance(model, LRP))


# Layers without a plain weight --------------------------------------------------------------------


class LowRank(nn.Module):
    """What a LoRA layer looks like: the old layer inside, a low-rank one beside it."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, 2, bias=False, dtype=base.weight.dtype)
        self.up = nn.Linear(2, base.out_features, bias=False, dtype=base.weight.dtype)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Quantized(nn.Linear):
    """What a quantised layer looks like: a linear layer whose weight is integers."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
        self.scale = layer.weight.detach().abs().max() / 127
        del self.weight
        self.register_buffer("weight", (layer.weight.detach() / self.scale).to(torch.int8))
        self.bias = layer.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("rule", [Gamma(0.25), Alpha1Beta0()], ids=str)
def test_rules_that_split_weights_refuse_quantised_layers(rule):
    model = tiny("bert")
    output = model.bert.encoder.layer[0].output
    output.dense = Quantized(output.dense).eval()
    plain = relevance(model, LRP)
    recipe = LRP.override("*.layer.0.output.dense", rule)
    message = r"'bert\.encoder\.layer\.0\.output\.dense', but Quantized has no plain.*Epsilon"
    with pytest.raises(TypeError, match=message), propagation(model, recipe):
        pass
    assert torch.equal(relevance(model, LRP), plain)
    assert relevance(model, LRP.override("*.layer.0.output.dense", Epsilon(0.1))).isfinite().all()


@pytest.mark.parametrize(
    "rule",
    [Gamma(0.25), Alpha1Beta0(), CaptumRule(GammaRule())],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_that_split_weights_refuse_an_adapter(rule):
    with pytest.raises(TypeError, match=r"'a\.layer', but LowRank has no plain.*merge the adapter"):
        rule.patch(LowRank(nn.Linear(2, 2)), "a.layer")


def test_epsilon_takes_adapters():
    model = tiny("llama")
    mlp = model.model.layers[1].mlp
    mlp.down_proj = LowRank(mlp.down_proj).eval()
    plain = relevance(model, LRP)
    found = relevance(model, LRP.override("*.down_proj*", Epsilon(0.1)))
    assert found.isfinite().all()
    assert not torch.allclose(found, plain)


@pytest.mark.parametrize("rule", [Gamma(0.25), Alpha1Beta0()], ids=str)
def test_rules_that_split_weights_refuse_adapters_in_a_model(rule):
    """The parts of an adapter have weights, but the rule is about the weight that they sum to."""
    model = tiny("llama")
    mlp = model.model.layers[1].mlp
    mlp.down_proj = LowRank(mlp.down_proj).eval()
    with pytest.raises(TypeError, match=r"'model\.layers\.1\.mlp\.down_proj'"):
        relevance(model, replace(LRP, linear=rule))
