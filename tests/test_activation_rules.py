"""Rules of activations."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rule_cases import assert_same, pairs, ruled
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx import LRPx, propagation


def gelu_by_hand(z):
    return 0.5 * z * (1.0 + torch.erf(z / math.sqrt(2.0)))


def silu_by_hand(z):
    return z * torch.sigmoid(z)


def squared_relu(z):
    return F.relu(z).square()


ACTIVATIONS = [
    *(torch.tanh, F.relu, F.gelu, F.silu, torch.square, F.mish, F.hardswish, F.elu, torch.erf),
    *(gelu_by_hand, silu_by_hand, squared_relu),
]
"""Zero at zero, in one operator and written out."""


@pytest.mark.proof("D.3")
@given(pairs(), st.sampled_from(ACTIVATIONS))
def test_identity(pair, activation):
    z, _, grad = pair
    value, (found,) = ruled(activation, [z], grad)
    assert_same(found, value * grad)


@given(pairs(), st.sampled_from([torch.sigmoid, F.softplus, torch.exp, F.hardsigmoid]))
def test_what_a_function_is_at_zero_is_a_constant(pair, function):
    """It belongs to no input, as a bias does."""
    z, _, grad = pair
    value, (found,) = ruled(function, [z], grad)
    assert_same(found, (value - function(torch.zeros_like(z))) * grad)


@pytest.fixture
def network():
    """A unit whose inputs cancel for :func:`examples`: its pre-activation is exactly zero."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        layers[0].bias[1], layers[0].weight[1] = 0.0, torch.tensor([1.0, 1.0, 0.0])
    return layers


def examples():
    x = torch.randn(5, 3, dtype=torch.float64)
    x[:, 1] = -x[:, 0]
    return x


def test_an_activation_between_two_layers(network):
    x, grad = examples(), torch.randn(5, 2, dtype=torch.float64)
    before, _, after = network
    _, (found,) = ruled(network, [x], grad)
    z = before(x)
    assert torch.equal(z == 0, torch.tensor([False, True, False, False]).expand(5, 4))
    slope = torch.where(z == 0, 1.0, torch.tanh(z) / z)
    assert_same(found, x * ((grad @ after.weight * slope) @ before.weight))


def test_a_rule_is_that_of_the_calling_thread(network):
    x, found = examples().requires_grad_(), []

    def gradient():
        return torch.autograd.grad(network(x[:2]).sum(), x)[0]

    plain = gradient()
    with propagation(network):
        ours = gradient()
        other = threading.Thread(target=lambda: found.append(gradient()))
        value = network(x)
        other.start()
        other.join()
        assert torch.equal(torch.autograd.grad(value[:2].sum(), x)[0], ours)
    assert torch.equal(found[0], plain)
    assert not torch.allclose(ours, plain)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [nn.SiLU, nn.ReLU, nn.Mish, nn.Hardswish])
def test_activations_may_overwrite_their_input(kind, inplace):
    torch.manual_seed(0)
    z, grad = (torch.randn(20, dtype=torch.float64) for _ in range(2))
    module = kind(inplace=inplace)
    value, (found,) = ruled(lambda z: module(z * 1), [z], grad)
    assert torch.equal(value, kind()(z))
    assert_same(found, value * grad)


@pytest.mark.parametrize("kind", [nn.ELU, nn.Mish, nn.Softplus, nn.Sigmoid, nn.Tanh])
def test_several_gradients_at_once_also_at_zero(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4, bias=False), kind(), nn.Linear(4, 3)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    x[0] = 0
    found = LRPx(network).attribute_targets(x, targets_per_backward=3)
    expected = torch.stack([LRPx(network).attribute(x, target) for target in range(3)])
    assert_same(found, expected)
    assert found[:, 1].any()
