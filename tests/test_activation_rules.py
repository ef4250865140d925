"""Rules of activations."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rule_cases import assert_same, attached, pairs, relevance
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx.rules import (
    Identity,
    functional,
)
from captum_lrpx.sites import (
    ActivationSite,
    InlineActivationSite,
)


@pytest.mark.proof("D.3")
@given(pairs(), st.sampled_from([torch.tanh, F.relu, F.gelu, F.silu, torch.sin, torch.square]))
def test_identity(pair, activation):
    z, _, grad = pair
    slope = torch.where(z == 0, 7.0, activation(z) / torch.where(z == 0, 1.0, z))
    value, (found,) = relevance(lambda z: functional.identity(z, activation(z), slope), [z], grad)
    assert torch.equal(value, activation(z))
    assert_same(found, activation(z) * grad)


def test_an_inline_activation_is_one_between_two_modules():
    torch.manual_seed(0)
    before, after = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    x, grad = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    with torch.no_grad():  # a unit whose inputs cancel: its pre-activation is exactly zero
        before.bias[1], before.weight[1] = 0.0, torch.tensor([1.0, 1.0, 0.0])
        x[:, 1] = -x[:, 0]

    def network(x):
        return after(torch.tanh(before(x)))

    plain = network(x)
    with attached(Identity(), InlineActivationSite("head", before, after, "tanh")):
        value, (found,) = relevance(network, [x], grad)
    z = before(x)
    assert torch.equal(z == 0, torch.tensor([False, True, False, False]).expand(5, 4))
    slope = torch.where(z == 0, 1.0, torch.tanh(z) / z)
    assert torch.equal(value, plain)
    assert_same(found, x * ((grad @ after.weight * slope) @ before.weight))


def test_an_inline_activation_is_that_of_the_calling_thread():
    torch.manual_seed(0)
    before, after = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    with attached(Identity(), InlineActivationSite("head", before, after, "tanh")):
        (expected,) = torch.autograd.grad(after(torch.tanh(before(x))).sum(), x)
        z = before(x)
        other = threading.Thread(target=lambda: after(torch.tanh(before(x[:2]))))
        other.start()
        other.join()
        (found,) = torch.autograd.grad(after(torch.tanh(z)).sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [nn.SiLU, nn.ReLU, nn.Mish, nn.Hardswish])
def test_activations_may_overwrite_their_input(kind, inplace):
    torch.manual_seed(0)
    z, grad = (torch.randn(20, dtype=torch.float64) for _ in range(2))
    module = kind(inplace=inplace)
    with attached(Identity(), ActivationSite("act", module)):
        value, (found,) = relevance(lambda z: module(z * 1), [z], grad)
    assert torch.equal(value, kind()(z))
    assert_same(found, value * grad)
