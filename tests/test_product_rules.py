"""Rules of products against slow replicas in explicit relevance form (see rule_cases)."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from rule_cases import (
    assert_same,
    attached,
    attached_patches,
    attentions,
    identity_product,
    pairs,
    relevance,
)
from torch import nn

from captum_lrpx.rules import (
    Identity,
    SignalTakeAll,
    Uniform,
)
from captum_lrpx.rules.gated import fused_product
from captum_lrpx.rules.linear_patches import ScaleInputGradient, ScaleOutputGradient
from captum_lrpx.rules.patches import Constant
from captum_lrpx.sites import (
    ActivationSite,
    GatedProductSite,
)


@pytest.mark.proof("2.7")
@given(pairs())
def test_uniform_element_wise(pair):
    a, b, grad = pair
    with attached(Uniform(), site := identity_product()):
        value, (of_a, of_b) = relevance(lambda a, b: site.output(a * b), [a, b], grad)
    assert torch.equal(value, a * b)
    assert_same(of_a, a * b * grad / 2)
    assert_same(of_b, a * b * grad / 2)


@pytest.mark.proof("D.4")
@given(pairs())
def test_signal_take_all(pair):
    signal, gate, grad = pair
    with attached(SignalTakeAll(), site := identity_product()):
        value, (of_signal, of_gate) = relevance(
            lambda signal, gate: site.up(signal) * site.activation(site.gate(gate)),
            [signal, gate],
            grad,
        )
    assert torch.equal(value, signal * gate)
    assert_same(of_signal, signal * gate * grad)
    assert not of_gate.any()


@pytest.mark.proof("2.7")
@given(attentions())
def test_uniform_matrix_product(case):
    a, b, grad = case[0].transpose(-1, -2), case[2], case[3]
    grad = grad[:, : a.shape[-2]].new_ones(a.shape[0], a.shape[-2], b.shape[-1]) * grad[:, :1]
    with attached(Uniform(), site := identity_product()):
        _, (of_a, of_b) = relevance(lambda a, b: site.output(a @ b), [a, b], grad)
    replica_a, replica_b = torch.zeros_like(a), torch.zeros_like(b)
    for n, i, k, j in itertools.product(*map(range, (*a.shape, b.shape[-1]))):
        share = a[n, i, k] * b[n, k, j] * grad[n, i, j] / 2
        replica_a[n, i, k] += share
        replica_b[n, k, j] += share
    assert_same(of_a, replica_a)
    assert_same(of_b, replica_b)
    assert_same(of_a.sum() + of_b.sum(), ((a @ b) * grad).sum())


@pytest.mark.parametrize("rule", [SignalTakeAll(), SignalTakeAll("activation"), Uniform()], ids=str)
def test_gate_rules_conserve(rule):
    torch.manual_seed(0)
    gate, up, down = (nn.Linear(4, 4, bias=False).double() for _ in range(3))
    act = nn.SiLU()
    x, grad = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()

    def mlp(x):
        return down(act(gate(x)) * up(x))

    plain = mlp(x).detach()
    site = GatedProductSite("mlp", gate, act, up, down)
    with attached(Identity(), ActivationSite("act", act)), attached(rule, site):
        value, (found,) = relevance(mlp, [x], grad)
    of_product = act(gate(x)) * up(x) * (grad @ down.weight)
    of_up = x * ((of_product / up(x)) @ up.weight)
    of_gate = x * ((of_product / gate(x)) @ gate.weight)
    share = {"up": 1.0, "activation": 0.0}.get(getattr(rule, "signal", ""), 0.5)
    assert torch.equal(value, plain)
    assert_same(found, share * of_up + (1 - share) * of_gate)
    assert_same(found.sum(-1), (plain * grad).sum(-1))


@pytest.mark.parametrize(
    ("build", "factor"),
    [
        (lambda _: Constant(), None),
        (partial(ScaleInputGradient, 0.5), 0.5),
        (partial(ScaleOutputGradient, 0.25), 0.25),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_patches_scale_or_cut(build, factor, frozen):
    layer = nn.Linear(3, 2).requires_grad_(not frozen)
    patch = build(layer)
    x = torch.randn(4, 3, requires_grad=True)
    output = patch(layer.forward, x)
    assert torch.equal(output, layer(x))
    if factor is None:
        assert output.grad_fn is None
    else:
        (grad,) = torch.autograd.grad(output.sum(), x)
        assert torch.equal(grad, factor * layer.weight.sum(0).expand(4, 3))


def test_signals_have_names():
    with pytest.raises(ValueError, match="'up' or 'activation'"):
        SignalTakeAll("gate")


@pytest.mark.parametrize("kind", [nn.SiLU, nn.GELU, nn.Mish])
def test_both_rules_of_a_gated_product_in_one_operation(kind):
    torch.manual_seed(0)
    gate, up, down = (nn.Linear(4, 4).double().requires_grad_(False) for _ in range(3))
    act = kind().eval()
    x, grad = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    x[0, 0] = 0
    gate.bias[1] = 0  # a pre-activation of exactly zero
    site = GatedProductSite("mlp", gate, act, up, down)

    def mlp(x):
        return down(act(gate(x)) * up(x))

    def another(x):
        return down(act(gate(x)) * (up(x) + 1))

    for function in (mlp, another):
        with attached(Identity(), ActivationSite("act", act)), attached(Uniform(), site):
            value, (expected,) = relevance(function, [x], grad)
        patches = fused_product(site)
        for _ in range(2):  # the first call finds out whether the product is the declared one
            with attached_patches(patches):
                fused, (found,) = relevance(function, [x], grad)
            assert torch.equal(fused, value)
            assert_same(found, expected)


def test_a_hook_between_the_factors_of_a_gated_product_sees_a_graph():
    torch.manual_seed(0)
    gate, up, down = (nn.Linear(4, 4).double().requires_grad_(False) for _ in range(3))
    act = nn.SiLU().eval()
    patches = fused_product(GatedProductSite("mlp", gate, act, up, down))
    x = torch.randn(3, 4).double().requires_grad_()
    seen = []
    with attached_patches(patches):
        down(act(gate(x)) * up(x))
        handle = act.register_forward_hook(lambda *call: seen.append(call[2]))
        output = down(act(gate(x)) * up(x))
        (grad,) = torch.autograd.grad(output.sum(), seen[0], retain_graph=True)
        handle.remove()
    assert_same(grad, 0.5 * up(x) * down.weight.sum(0))
