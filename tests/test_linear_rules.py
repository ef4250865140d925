"""Rules of linear layers against slow replicas in explicit relevance form (see rule_cases)."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from rule_cases import assert_same, attached, linear_layers, pairs, relevance, strengths
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know
from transformers.pytorch_utils import Conv1D

from captum_lrpx.rules import (
    Alpha1Beta0,
    Epsilon,
    Gamma,
    functional,
)
from captum_lrpx.sites import (
    LinearSite,
)


def distribute(x, weight, bias, grad, contribution, denominator):
    """``R_i = sum_j contribution_ij / denominator_j R_j``: relevances of inputs and biases.

    ``contribution(c, z)`` is what counts of the contribution ``c`` to an output ``z``;
    ``denominator(parts, z)`` is formed of all that counts. Nothing is distributed where it is zero.
    """
    of_inputs, of_biases = torch.zeros_like(x), torch.zeros_like(grad)
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
            of_inputs[n, i] += counted[i] / whole * z * float(grad[n, j])
        of_biases[n, j] += counted[-1] / whole * z * float(grad[n, j])
    return of_inputs, of_biases


def epsilon_replica(x, weight, bias, grad, strength):
    return distribute(
        x, weight, bias, grad, lambda c, _: c, lambda _, z: z + (strength if z >= 0 else -strength)
    )


def alpha1_beta0_replica(x, weight, bias, grad):
    return distribute(
        x, weight, bias, grad, lambda c, _: max(c, 0.0), lambda counted, _: sum(counted)
    )


def gamma_replica(x, weight, bias, grad, strength):
    def favoured(c, z):
        return (1 + strength) * c if (c > 0 if z >= 0 else c < 0) else c

    return distribute(x, weight, bias, grad, favoured, lambda counted, _: sum(counted))


@pytest.mark.proof("D.1")
@given(linear_layers(), strengths)
def test_epsilon(layer, strength):
    x, weight, bias, grad = layer
    z = F.linear(x, weight, bias)
    assume(strength or (z != 0).all())  # without epsilon there is no share of a zero
    value, (found,) = relevance(
        lambda x: functional.epsilon(F.linear(x, weight, bias), strength), [x], grad
    )
    assert torch.equal(value, z)
    assert_same(found, epsilon_replica(x, weight, bias, grad, strength)[0])


@pytest.mark.proof("D.1")
@given(linear_layers())
def test_epsilon_zero_is_gradient_times_input_also_where_the_output_is_zero(layer):
    x, weight, bias, grad = layer
    _, (found,) = relevance(lambda x: functional.epsilon(F.linear(x, weight, bias), 0), [x], grad)
    assert_same(found, x * (grad @ weight))


@pytest.mark.proof("D.2")
@given(linear_layers())
def test_alpha1_beta0(layer):
    x, weight, bias, grad = layer
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    z = F.linear(x, weight, bias)
    value, (of_x, of_bias) = relevance(
        lambda x, bias: functional.alpha1_beta0(x, F.linear(x, weight, bias), weight, bias),
        [x, bias],
        grad,
    )
    of_inputs, of_biases = alpha1_beta0_replica(x, weight, bias, grad)
    positive = (x[:, None] * weight).clamp(min=0).sum(-1) + bias.clamp(min=0)
    assert torch.equal(value, z)
    assert_same(of_x, of_inputs)
    assert_same(of_bias, of_biases.sum(0))
    assert_same(of_x.sum() + of_bias.sum(), (z * grad)[positive > 0].sum())


@given(linear_layers(), strengths)
def test_gamma(layer, strength):
    x, weight, bias, grad = layer
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    z = F.linear(x, weight, bias)
    value, (of_x, of_bias) = relevance(
        lambda x, bias: functional.gamma(x, F.linear(x, weight, bias), weight, bias, strength),
        [x, bias],
        grad,
    )
    of_inputs, of_biases = gamma_replica(x, weight, bias, grad, strength)
    assert torch.equal(value, z)
    assert_same(of_x, of_inputs)
    assert_same(of_bias, of_biases.sum(0))
    assert_same(of_x.sum() + of_bias.sum(), (z * grad).sum())


@given(linear_layers(), strengths)
def test_no_bias_is_a_bias_of_zero(layer, strength):
    x, weight, _, grad = layer
    z, zero = F.linear(x, weight), torch.zeros_like(weight[:, 0])
    for rule in (functional.alpha1_beta0, partial(functional.gamma, strength=strength)):
        found = [
            relevance(partial(rule, value=z, weight=weight, bias=bias), [x], grad)[1][0]
            for bias in (None, zero)
        ]
        assert torch.equal(*found)


@given(linear_layers())
def test_gamma_of_a_positive_output_tends_to_alpha1_beta0(layer):
    x, weight, bias, grad = layer
    z = F.linear(x, weight, bias)
    grad = grad * (z > 0)
    rules = (
        lambda x: functional.gamma(x, z, weight, bias, 1e12),
        lambda x: functional.alpha1_beta0(x, z, weight, bias),
    )
    (_, (gamma,)), (_, (alpha1_beta0,)) = (relevance(rule, [x], grad) for rule in rules)
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


LINEAR_RULES = [Epsilon(0.25), Alpha1Beta0(), Gamma(0.5)]
LINEAR_REPLICAS = {
    Epsilon: lambda *layer: epsilon_replica(*layer, 0.25),
    Alpha1Beta0: alpha1_beta0_replica,
    Gamma: lambda *layer: gamma_replica(*layer, 0.5),
}


@pytest.mark.parametrize("rule", LINEAR_RULES)
@pytest.mark.parametrize("kind", ["Linear", "Linear without bias", "Conv1D"])
def test_linear_rules_on_modules(kind, rule):
    torch.manual_seed(0)
    module = Conv1D(3, 4) if kind == "Conv1D" else nn.Linear(4, 3, bias=kind == "Linear")
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x, grad = torch.randn(2, 5, 4).double(), torch.randn(2, 5, 3).double()
    plain = module(x).detach()
    with attached(rule, LinearSite("linear", module)):
        value, (found,) = relevance(module, [x], grad)
    weight = module.weight.T if kind == "Conv1D" else module.weight
    replica = LINEAR_REPLICAS[type(rule)]
    bias = None if module.bias is None else module.bias.detach()
    expected, _ = replica(x.flatten(0, 1), weight.detach(), bias, grad.flatten(0, 1))
    assert torch.equal(value, plain)
    assert_same(found, expected.view_as(found))


@pytest.mark.parametrize("build", [Epsilon, Gamma])
@pytest.mark.parametrize("value", [-1e-9, float("nan")])
def test_strengths_are_not_negative(build, value):
    with pytest.raises(ValueError, match=">= 0"):
        build(value)
