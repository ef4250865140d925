"""Captum's ``module.rule = ...``: the numbers of ``captum.attr.LRP``, also inside a transformer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from captum.attr import LRP as CaptumLRP  # noqa: N811 - ours has the name too
from captum.attr._utils.lrp_rules import (
    Alpha1_Beta0_Rule,
    EpsilonRule,
    GammaRule,
    IdentityRule,
    PropagationRule,
)
from models import FAMILIES, embeddings_of, outputs, tiny, token_ids
from rule_cases import assert_same, ruled
from torch import nn
from transformers.pytorch_utils import Conv1D

from captum_lrpx import LRP, LRPx, propagation
from captum_lrpx.rules import Epsilon
from captum_lrpx.rules.captum_rules import CaptumRule, captum_rule

RULES = {
    "epsilon": partial(EpsilonRule, 0.125),
    "tiny epsilon": EpsilonRule,
    "gamma": partial(GammaRule, 0.5),
    "gamma without bias": partial(GammaRule, 0.25, set_bias_to_zero=True),
    "alpha1-beta0": Alpha1_Beta0_Rule,
    "alpha1-beta0 without bias": partial(Alpha1_Beta0_Rule, set_bias_to_zero=True),
}


class OtherRule(PropagationRule):
    """A propagation rule that nobody knows."""

    def _manipulate_weights(self, module, inputs, outputs):
        pass


def mlp(activation, *, bias=True):
    """Layers wide and narrow, with large biases and negative inputs."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(4, 7, bias=bias),
        activation(),
        nn.Linear(7, 5, bias=bias),
        activation(),
        nn.Linear(5, 3, bias=bias),
    ]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight)
        if bias:
            nn.init.normal_(layer.bias, std=0.5)
    return nn.Sequential(*layers).double()


def set_rules(network, build):
    for layer in network:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.rule = build()


def relevance_of_captum(network, x, target):
    return CaptumLRP(network).attribute(x.clone().requires_grad_(), target=target).detach()


def relevance_here(network, x, target):
    output = network(x)
    grad = torch.zeros_like(output)
    grad[(slice(None), *target) if isinstance(target, tuple) else (slice(None), target)] = 1
    _, (found,) = ruled(network, [x], grad)
    assert_same(LRPx(network).attribute(x, target=target), found)
    return found


@pytest.fixture
def x():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("build", RULES.values(), ids=RULES)
def test_one_rule_everywhere(build, activation, bias, x):
    network = mlp(activation, bias=bias)
    for target in range(3):
        set_rules(network, build)
        assert_same(relevance_here(network, x, target), relevance_of_captum(network, x, target))


@pytest.mark.parametrize("upper", ["tiny epsilon", "gamma"])
@pytest.mark.parametrize("middle", ["epsilon", "gamma without bias", "alpha1-beta0"])
@pytest.mark.parametrize("lower", ["gamma", "alpha1-beta0 without bias"])
def test_another_rule_for_each_layer(lower, middle, upper, x):
    network = mlp(nn.ReLU)
    for layer, name in zip(network[::2], (lower, middle, upper), strict=True):
        layer.rule = RULES[name]()
    assert_same(relevance_here(network, x, 1), relevance_of_captum(network, x, 1))


@pytest.mark.parametrize("build", RULES.values(), ids=RULES)
def test_convolutions(build):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2, stride=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 3, 2),
    ).double()
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    for channel in range(3):
        set_rules(network, build)
        target = channel, 0, 0
        assert_same(relevance_here(network, x, target), relevance_of_captum(network, x, target))


IDENTITY_AT = {
    "first": [nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)],
    "behind a linear layer": [nn.Linear(4, 5), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)],
}


@pytest.mark.parametrize("place", IDENTITY_AT)
def test_identity_rule(place, x):
    network = nn.Sequential(*IDENTITY_AT[place]).double()
    set_rules(network, EpsilonRule)
    network[place != "first"].rule = IdentityRule()
    assert_same(relevance_here(network, x, 2), relevance_of_captum(network, x, 2))


def test_identity_rule_behind_an_activation(x):
    """Captum itself goes wrong here: its activation passes on what the layer had replaced."""
    lower, middle, upper = nn.Linear(4, 5).double(), nn.Linear(5, 5).double(), nn.Linear(5, 3)
    network = nn.Sequential(lower, nn.Tanh(), middle, nn.Tanh(), upper.double())
    middle.rule = IdentityRule()
    z = lower(x)
    of_middle = torch.tanh(middle(torch.tanh(z))) * upper.weight[1]  # is that of z
    assert_same(relevance_here(network, x, 1), (x * ((of_middle / z) @ lower.weight)).detach())


def test_identity_rule_needs_one_shape(x):
    network = mlp(nn.ReLU)
    network[0].rule = IdentityRule()
    with pytest.raises(ValueError, match=r"'0' needs inputs and outputs of one shape.*\(6, 4\)"):
        relevance_here(network, x, 0)


def test_conv1d_stores_its_weight_transposed(x):
    linear, conv = nn.Linear(4, 3).double(), Conv1D(3, 4).double()
    with torch.no_grad():
        conv.weight.copy_(linear.weight.T)
        conv.bias.copy_(linear.bias)
    for build in RULES.values():
        found = []
        for layer in (linear, conv):
            layer.rule = build()
            found.append(relevance_here(layer, x, 1))
        assert_same(*found)


# What is a rule -----------------------------------------------------------------------------------


def test_no_rule():
    layer = nn.Linear(2, 2)
    assert captum_rule(layer, "layer") is None
    layer.rule = None
    assert captum_rule(layer, "layer") is None


@pytest.mark.parametrize(
    "rule",
    ["epsilon", 0.1, EpsilonRule, Epsilon(0.1), object()],
    ids=lambda rule: type(rule).__name__,
)
def test_anything_else_is_no_rule(rule):
    layer = nn.Linear(2, 2)
    layer.rule = rule
    with pytest.raises(TypeError, match=r"module 'a\.layer' is a \w+\. .*PropagationRule"):
        captum_rule(layer, "a.layer")


def test_an_unknown_propagation_rule_is_refused():
    layer = nn.Linear(2, 2)
    layer.rule = OtherRule()
    rule = captum_rule(layer, "a.layer")
    with pytest.raises(TypeError, match=r"OtherRule on 'a\.layer' has no Gradient x Input form"):
        rule.patch(layer, "a.layer")


@pytest.mark.parametrize("build", [GammaRule, Alpha1_Beta0_Rule])
def test_rules_that_change_weights_need_weights(build):
    with pytest.raises(TypeError, match=r"needs the weight of 'layer', but Identity has no plain"):
        CaptumRule(build()).patch(nn.Identity(), "layer")


# Inside a transformer -----------------------------------------------------------------------------


def token_relevance(model, recipe=LRP):
    found = []
    token_embedding = model.get_input_embeddings()
    assert token_embedding in embeddings_of(model)
    hook = token_embedding.register_forward_hook(
        lambda _module, _inputs, output: found.append(output.detach().requires_grad_()) or found[-1]
    )
    with propagation(model, recipe):
        explained = outputs(model, input_ids=token_ids())[0, 3, 5]
        (gradient,) = torch.autograd.grad(explained, found[0])
    hook.remove()
    return found[0].detach() * gradient


def linear_layers(model):
    return [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))]


@pytest.mark.parametrize("family", FAMILIES)
def test_epsilon_on_every_layer_is_epsilon_in_the_recipe(family):
    model = tiny(family)
    expected = token_relevance(model, replace(LRP, linear=Epsilon(0.125)))
    plain = token_relevance(model)
    assert not torch.allclose(plain, expected)
    for layer in linear_layers(model):
        layer.rule = EpsilonRule(0.125)
    assert torch.equal(token_relevance(model), expected)
    # Epsilon = 0 of the recipe does not win over the layer's own rule, nor does any other.
    assert torch.equal(token_relevance(model, replace(LRP, linear=Epsilon(3.0))), expected)
    for layer in linear_layers(model):
        layer.rule = None
    assert torch.equal(token_relevance(model), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rule_stays_on_its_module(family):
    model = tiny(family)
    layer = linear_layers(model)[1]
    layer.rule = rule = GammaRule(0.3)
    before = dict(vars(layer)), {name: value.clone() for name, value in model.state_dict().items()}
    assert token_relevance(model).isfinite().all()
    assert layer.rule is rule
    assert dict(vars(layer)) == before[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[1][name])


def test_a_rule_may_change_between_two_calls():
    model = tiny("bert")
    layer = linear_layers(model)[-1]
    found = []
    for strength in (0.25, 8.0):
        layer.rule = EpsilonRule(strength)
        found.append(token_relevance(model))
    layer.rule.STABILITY_FACTOR = 0.25
    assert not torch.allclose(*found)
    assert torch.equal(token_relevance(model), found[0])


@pytest.mark.parametrize("rule", ["epsilon", OtherRule()], ids=["no rule", "unknown rule"])
def test_a_transformer_with_a_wrong_rule_is_refused_and_left_alone(rule):
    model = tiny("gpt2")
    plain = token_relevance(model)
    model.transformer.h[1].mlp.c_fc.rule = rule
    with (
        pytest.raises(TypeError, match=r"transformer\.h\.1\.mlp\.c_fc"),
        propagation(model),
    ):
        pass
    del model.transformer.h[1].mlp.c_fc.rule
    assert torch.equal(token_relevance(model), plain)


def test_rules_on_modules_that_are_not_linear_are_said_to_have_no_effect():
    model = tiny("gpt2")
    model.transformer.h[0].mlp.act.rule = EpsilonRule()
    with (
        pytest.warns(UserWarning, match=r"'transformer\.h\.0\.mlp\.act' has no effect"),
        propagation(model),
    ):
        pass
