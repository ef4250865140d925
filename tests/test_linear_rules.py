"""Rules of linear layers against slow replicas in explicit relevance form (see rule_cases)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from rule_cases import assert_same, linear_layers, pairs, ruled, strengths
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know
from transformers.pytorch_utils import Conv1D

from captum_lrpx import LRP, LRPx, propagation
from captum_lrpx.rules import Alpha1Beta0, Epsilon, Gamma, functional


def distribute(x, weight, bias, relevance, contribution, denominator):
    """``R_i = sum_j contribution_ij / denominator_j R_j``: relevances of inputs and biases.

    ``contribution(c, z)`` is what counts of the contribution ``c`` to an output ``z``;
    ``denominator(parts, z)`` is formed of all that counts. Nothing is distributed where it is zero.
    """
    of_inputs, of_biases = torch.zeros_like(x), torch.zeros_like(relevance)
    rows, inputs, outs = len(x), x.shape[1], len(weight)
    for n, j in itertools.product(range(rows), range(outs)):
        parts = [float(x[n, i] * weight[j, i]) for i in range(inputs)]
        parts.append(0.0 if bias is None else float(bias[j]))
        z = sum(parts)
        counted = [contribution(part, z) for part in parts]
        whole = denominator(counted, z)
        if whole == 0:
            continue
        for i in range(inputs):
            of_inputs[n, i] += counted[i] / whole * float(relevance[n, j])
        of_biases[n, j] += counted[-1] / whole * float(relevance[n, j])
    return of_inputs, of_biases


def epsilon_replica(x, weight, bias, relevance, strength):
    return distribute(
        x,
        weight,
        bias,
        relevance,
        lambda c, _: c,
        lambda _, z: z + (strength if z >= 0 else -strength),
    )


def alpha1_beta0_replica(x, weight, bias, relevance):
    return distribute(
        x, weight, bias, relevance, lambda c, _: max(c, 0.0), lambda counted, _: sum(counted)
    )


def gamma_replica(x, weight, bias, relevance, strength):
    def favoured(c, z):
        return (1 + strength) * c if (c > 0 if z >= 0 else c < 0) else c

    return distribute(x, weight, bias, relevance, favoured, lambda counted, _: sum(counted))


def linear(weight, bias):
    """A layer with these parameters."""
    layer = nn.Linear(*weight.T.shape, bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone())
    layer.bias = None if bias is None else nn.Parameter(bias.clone())
    return layer


def through(layer, x, grad, rule):
    """Value, relevance of the input, and relevance of the bias, whose parameters are not frozen."""
    recipe = replace(LRP, linear=rule)
    value, (of_x,) = ruled(layer, [x], grad, recipe)
    with propagation(layer, recipe, freeze_parameters=False):
        (of_bias,) = torch.autograd.grad(layer(x.clone().requires_grad_()), [layer.bias], grad)
    return value, of_x, (layer.bias * of_bias).detach()


@pytest.mark.proof("D.1")
@given(linear_layers(), strengths)
def test_epsilon(layer, strength):
    x, weight, bias, grad = layer
    z = F.linear(x, weight, bias)
    assume(strength or (z != 0).all())  # without epsilon there is no share of a zero
    recipe = replace(LRP, linear=Epsilon(strength))
    _, (found,) = ruled(linear(weight, bias), [x], grad, recipe)
    assert_same(found, epsilon_replica(x, weight, bias, z * grad, strength)[0])


@pytest.mark.proof("D.1")
@given(linear_layers())
def test_epsilon_zero_is_gradient_times_input_also_where_the_output_is_zero(layer):
    x, weight, bias, grad = layer
    _, (found,) = ruled(linear(weight, bias), [x], grad, LRP)
    assert_same(found, x * (grad @ weight))


@given(linear_layers(), strengths)
def test_epsilon_damps_the_bias_as_it_does_the_input(layer, strength):
    x, weight, bias, grad = layer
    bias = torch.ones_like(weight[:, 0]) if bias is None else bias
    z = F.linear(x, weight, bias)
    assume(strength or (z != 0).all())
    _, of_x, of_bias = through(linear(weight, bias), x, grad, Epsilon(strength))
    of_inputs, of_biases = epsilon_replica(x, weight, bias, z * grad, strength)
    assert_same(of_x, of_inputs)
    assert_same(of_bias, of_biases.sum(0))


@pytest.mark.proof("D.2")
@given(linear_layers())
def test_alpha1_beta0(layer):
    x, weight, bias, grad = layer
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    z, of_x, of_bias = through(linear(weight, bias), x, grad, Alpha1Beta0())
    of_inputs, of_biases = alpha1_beta0_replica(x, weight, bias, z * grad)
    positive = (x[:, None] * weight).clamp(min=0).sum(-1) + bias.clamp(min=0)
    assert_same(of_x, of_inputs)
    assert_same(of_bias, of_biases.sum(0))
    assert_same(of_x.sum() + of_bias.sum(), (z * grad)[positive > 0].sum())


@given(linear_layers(), strengths)
def test_gamma(layer, strength):
    x, weight, bias, grad = layer
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    z, of_x, of_bias = through(linear(weight, bias), x, grad, Gamma(strength))
    of_inputs, of_biases = gamma_replica(x, weight, bias, z * grad, strength)
    assert_same(of_x, of_inputs)
    assert_same(of_bias, of_biases.sum(0))
    assert_same(of_x.sum() + of_bias.sum(), (z * grad).sum())


@given(linear_layers(), strengths)
def test_no_bias_is_a_bias_of_zero(layer, strength):
    x, weight, _, grad = layer
    for rule in (Alpha1Beta0(), Gamma(strength)):
        recipe = replace(LRP, linear=rule)
        found = [
            ruled(linear(weight, bias), [x], grad, recipe)[1][0]
            for bias in (None, torch.zeros_like(weight[:, 0]))
        ]
        assert torch.equal(*found)


@given(linear_layers())
def test_gamma_of_a_positive_output_tends_to_alpha1_beta0(layer):
    x, weight, bias, grad = layer
    grad = grad * (F.linear(x, weight, bias) > 0)
    gamma, alpha1_beta0 = (
        ruled(linear(weight, bias), [x], grad, replace(LRP, linear=rule))[1][0]
        for rule in (Gamma(1e12), Alpha1Beta0())
    )
    torch.testing.assert_close(gamma, alpha1_beta0, rtol=1e-8, atol=1e-8)


@given(pairs(), strengths)
def test_signed_ratio(pair, strength):
    numerator, denominator, _ = pair
    found = functional.signed_ratio(numerator, denominator, strength)
    for a, b, ratio in zip(
        numerator.flatten(), denominator.flatten(), found.flatten(), strict=True
    ):
        whole = float(b) + (strength if b >= 0 else -strength)
        assert ratio == (float(a) / whole if whole else 0)


# Modules ------------------------------------------------------------------------------------------

LINEAR_RULES = [Epsilon(0.25), Alpha1Beta0(), Gamma(0.5)]
LINEAR_REPLICAS = {
    Epsilon: lambda *layer: epsilon_replica(*layer, 0.25),
    Alpha1Beta0: alpha1_beta0_replica,
    Gamma: lambda *layer: gamma_replica(*layer, 0.5),
}
every_rule = pytest.mark.parametrize("rule", LINEAR_RULES, ids=str)


def randomized(module, seed=0):
    torch.manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double()


@every_rule
@pytest.mark.parametrize("kind", ["Linear", "Linear without bias", "Conv1D"])
def test_linear_rules_on_modules(kind, rule):
    module = Conv1D(3, 4) if kind == "Conv1D" else nn.Linear(4, 3, bias=kind == "Linear")
    module = randomized(module)
    x, grad = torch.randn(2, 5, 4).double(), torch.randn(2, 5, 3).double()
    value, (found,) = ruled(module, [x], grad, replace(LRP, linear=rule))
    weight = module.weight.T if kind == "Conv1D" else module.weight
    replica = LINEAR_REPLICAS[type(rule)]
    bias = None if module.bias is None else module.bias.detach()
    relevance = (value * grad).flatten(0, 1)
    expected, _ = replica(x.flatten(0, 1), weight.detach(), bias, relevance)
    assert_same(found, expected.view_as(found))


CONVOLUTIONS = {
    "Conv1d": (nn.Conv1d(2, 3, 2), (2, 5)),
    "Conv1d without bias": (nn.Conv1d(2, 3, 3, padding="same", bias=False), (2, 5)),
    "Conv2d": (nn.Conv2d(2, 3, (2, 3)), (2, 4, 4)),
    "padded": (nn.Conv2d(2, 2, 3, padding=1), (2, 3, 3)),
    "strided and dilated": (nn.Conv2d(1, 3, 2, stride=2, dilation=2), (1, 5, 5)),
    "of groups": (nn.Conv2d(4, 4, 2, groups=2), (4, 3, 3)),
    "around": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    "Conv3d": (nn.Conv3d(1, 2, 2), (1, 3, 2, 3)),
}


def matrix_of(layer, shape):
    """The matrix ``[out, in]`` that a layer is, for inputs unfolded to rows, and its bias."""
    size = torch.Size(shape).numel()
    with torch.no_grad():
        bias = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        columns = layer(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1) - bias
    return columns.T, bias


def whole_layer(replica, layer, x, relevance):
    """A replica on a layer of any shape."""
    weight, bias = matrix_of(layer, x.shape[1:])
    found, of_bias = replica(x.flatten(1), weight, bias, relevance.flatten(1))
    return found.view_as(x), of_bias.view_as(relevance)


@every_rule
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_linear_rules_on_convolutions(name, rule):
    layer, shape = CONVOLUTIONS[name]
    layer = randomized(layer)
    x = torch.randn(2, *shape).double()
    x[0, 0, 0] = 0
    grad = torch.randn_like(layer(x))
    value, (found,) = ruled(layer, [x], grad, replace(LRP, linear=rule))
    expected, of_bias = whole_layer(LINEAR_REPLICAS[type(rule)], layer, x, value * grad)
    assert_same(found, expected)
    if isinstance(rule, Gamma):  # of which none of what comes in is lost
        assert_same(found.sum() + of_bias.sum(), (value * grad).sum())


@every_rule
def test_biases_of_convolutions_have_their_relevance(rule):
    layer = randomized(nn.Conv2d(2, 3, 2))
    x = torch.randn(2, 2, 3, 3).double()
    grad = torch.randn_like(layer(x))
    value, _, of_bias = through(layer, x, grad, rule)
    _, expected = whole_layer(LINEAR_REPLICAS[type(rule)], layer, x, value * grad)
    assert_same(of_bias, expected.sum((0, 2, 3)))


# A classifier -------------------------------------------------------------------------------------

POOLS = {"mean": nn.AdaptiveAvgPool2d(1), "maximum": nn.AdaptiveMaxPool2d(1)}


def classifier(pool):
    return randomized(
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(3, 4, 2, stride=2, bias=False),
            nn.ReLU(),
            POOLS[pool],
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        seed=1,  # something positive comes to each output
    ).eval()


def classifier_replica(network, x, target, replica):
    """Relevances handed down from layer to layer."""
    values = [x]
    with torch.no_grad():
        for layer in network:
            values.append(layer(values[-1]))
    relevance = torch.zeros_like(values[-1])
    relevance[:, target] = values[-1][:, target]
    for layer, value in zip(reversed(network), reversed(values[:-1]), strict=True):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            relevance, _ = whole_layer(replica, layer, value, relevance)
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            mean = nn.AdaptiveAvgPool2d(1)
            relevance, _ = whole_layer(lambda *a: epsilon_replica(*a, 0), mean, value, relevance)
        elif isinstance(layer, nn.AdaptiveMaxPool2d):
            relevance = (value == value.amax((2, 3), keepdim=True)) * relevance
        else:
            relevance = relevance.view_as(value)
    return relevance


@every_rule
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("fast", [False, True])
def test_a_convolutional_classifier(fast, pool, rule):
    network, recipe = classifier(pool), replace(LRP, linear=rule)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    replica = LINEAR_REPLICAS[type(rule)]
    attribution = LRPx(network, recipe=recipe, fast=fast)
    for target in (0, 2, 0):
        expected = classifier_replica(network, x, target, replica)
        assert expected.any()
        assert_same(attribution.attribute(x, target=target), expected)


def test_an_override_is_for_the_convolution_that_it_names():
    network, x = classifier("mean"), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    plain, first, second = (
        LRPx(network, recipe=recipe).attribute(x, target=1)
        for recipe in (LRP, LRP.override("0", Gamma(0.5)), LRP.override("2", Gamma(0.5)))
    )
    assert not torch.allclose(plain, first)
    assert not torch.allclose(plain, second)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("rule", [Alpha1Beta0(), Gamma(0.5)], ids=str)
def test_rules_that_split_weights_refuse_transposed_convolutions(rule):
    network = nn.Sequential(nn.ConvTranspose1d(2, 3, 2)).double()
    with (
        pytest.raises(TypeError, match=r"'0', but ConvTranspose1d has no plain"),
        propagation(network, replace(LRP, linear=rule)),
    ):
        pass


@pytest.mark.parametrize("build", [Epsilon, Gamma])
@pytest.mark.parametrize("value", [-1e-9, float("nan")])
def test_strengths_are_not_negative(build, value):
    with pytest.raises(ValueError, match=">= 0"):
        build(value)
