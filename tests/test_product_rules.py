"""Rules of products against slow replicas in explicit relevance form (see rule_cases)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from rule_cases import assert_same, attentions, pairs, relevance, ruled
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx import ATTN_LRP, LRP, propagation
from captum_lrpx.recipes import LRP_MIRRORED_GATE
from captum_lrpx.rules import ProductGradient, SignalTakeAll, Uniform


@pytest.mark.proof("2.7")
@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@given(pairs())
def test_uniform_element_wise(recipe, pair):
    """Of two inputs neither of which is a gate."""
    a, b, grad = pair
    _, (of_a, of_b) = ruled(torch.mul, [a, b], grad, recipe)
    assert_same(of_a, a * b * grad / 2)
    assert_same(of_b, a * b * grad / 2)


GATED = {
    "silu": lambda gate, signal: F.silu(gate) * signal,
    "behind": lambda gate, signal: signal * F.gelu(gate),
    "relu": lambda gate, signal: F.relu(gate) * signal,
    "written out": lambda gate, signal: gate * torch.sigmoid(gate) * signal,
}
GATES = [
    lambda z, x: torch.sigmoid(z) * x,
    lambda z, x: x * F.softplus(z),
    lambda z, x: (1 + torch.tanh(z)) * x,
]


@pytest.mark.proof("2.7")
@given(pairs())
def test_uniform_gate(pair):
    signal, gate, grad = pair
    for product in GATED.values():
        value, (of_gate, of_signal) = ruled(product, [gate, signal], grad, ATTN_LRP)
        assert_same(of_gate, value * grad / 2)
        assert_same(of_signal, value * grad / 2)


@pytest.mark.proof("D.4")
@given(pairs())
def test_signal_take_all(pair):
    signal, gate, grad = pair
    for product in GATED.values():
        value, (of_gate, of_signal) = ruled(product, [gate, signal], grad)
        assert_same(of_signal, value * grad)
        assert not of_gate.any()


@given(pairs())
def test_the_mirror_choice(pair):
    signal, gate, grad = pair
    for product in GATED.values():
        value, (of_gate, of_signal) = ruled(product, [gate, signal], grad, LRP_MIRRORED_GATE)
        assert_same(of_gate, value * grad)
        assert not of_signal.any()


@pytest.mark.proof("D.4")
@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@given(pair=pairs())
def test_what_is_not_zero_at_zero_is_a_gate_in_every_recipe(recipe, pair):
    signal, z, grad = pair
    for product in GATES:
        value, (of_gate, of_signal) = ruled(product, [z, signal], grad, recipe)
        assert_same(of_signal, value * grad)
        assert not of_gate.any()


@pytest.mark.proof("2.7")
@given(attentions())
def test_uniform_matrix_product(case):
    a, b, grad = case[0].transpose(-1, -2), case[2], case[3]
    grad = grad[:, : a.shape[-2]].new_ones(a.shape[0], a.shape[-2], b.shape[-1]) * grad[:, :1]
    _, (of_a, of_b) = ruled(torch.matmul, [a, b], grad, ATTN_LRP)
    replica_a, replica_b = torch.zeros_like(a), torch.zeros_like(b)
    for n, i, k, j in itertools.product(*map(range, (*a.shape, b.shape[-1]))):
        share = a[n, i, k] * b[n, k, j] * grad[n, i, j] / 2
        replica_a[n, i, k] += share
        replica_b[n, k, j] += share
    assert_same(of_a, replica_a)
    assert_same(of_b, replica_b)
    assert_same(of_a.sum() + of_b.sum(), ((a @ b) * grad).sum())


class Mlp(nn.Module):
    """A gated MLP."""

    def __init__(self, act, *, bias):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(4, 4, bias=bias).double() for _ in range(3))
        self.act = act

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("rule", [SignalTakeAll(), SignalTakeAll("activation"), Uniform()], ids=str)
def test_gate_rules_conserve(rule):
    torch.manual_seed(0)
    mlp = Mlp(nn.SiLU(), bias=False)
    x, grad = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    value, (found,) = ruled(mlp, [x], grad, replace(LRP, gate=rule))
    of_product = mlp.act(mlp.gate(x)) * mlp.up(x) * (grad @ mlp.down.weight)
    of_up = x * ((of_product / mlp.up(x)) @ mlp.up.weight)
    of_gate = x * ((of_product / mlp.gate(x)) @ mlp.gate.weight)
    share = {"up": 1.0, "activation": 0.0}.get(getattr(rule, "signal", ""), 0.5)
    assert_same(found, share * of_up + (1 - share) * of_gate)
    assert_same(found.sum(-1), (value * grad).sum(-1))


@pytest.mark.parametrize("kind", [nn.SiLU, nn.GELU, nn.Mish])
def test_a_gate_at_zero_has_the_limit_of_its_slope(kind):
    torch.manual_seed(0)
    mlp = Mlp(kind(), bias=True)
    x, grad = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    x[0, 0] = 0
    with torch.no_grad():
        mlp.gate.bias[1] = 0  # a pre-activation of exactly zero
    _, (found,) = ruled(mlp, [x], grad, ATTN_LRP)
    z, of_product = mlp.gate(x), grad @ mlp.down.weight
    limit = {nn.Mish: 0.6}.get(kind, 0.5)
    slope = torch.where(z == 0, limit, mlp.act(z) / torch.where(z == 0, 1.0, z))
    assert (z == 0).any()
    of_gate = (of_product * mlp.up(x) * slope) @ mlp.gate.weight
    of_up = (of_product * mlp.act(z)) @ mlp.up.weight
    assert_same(found, 0.5 * x * (of_gate + of_up))


@pytest.mark.parametrize(
    "glu", [lambda z: F.glu(z, -1), lambda z: z[..., :3] * torch.sigmoid(z[..., 3:])]
)
@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
def test_the_gate_of_a_glu_is_constant(recipe, glu):
    torch.manual_seed(0)
    z, grad = torch.randn(2, 6).double(), torch.randn(2, 3).double()
    _, (found,) = ruled(glu, [z], grad, recipe)
    assert_same(found[:, :3], F.glu(z, -1) * grad)
    assert not found[:, 3:].any()


def test_a_branch_that_is_constant_gets_no_gradient():
    mlp, seen = Mlp(nn.SiLU(), bias=True), []
    x = torch.randn(3, 4).double().requires_grad_()

    def note(_module, _args, output):
        output.register_hook(lambda gradient: seen.append(gradient is not None))

    mlp.gate.register_forward_hook(note)
    mlp.up.register_forward_hook(note)
    with propagation(mlp, LRP):
        torch.autograd.grad(mlp(x).sum(), x)
    assert seen == [True, False]
    with propagation(mlp, ATTN_LRP):
        torch.autograd.grad(mlp(x).sum(), x)
    assert seen[2:] == [True, True]


def test_a_hook_between_the_factors_of_a_gated_product_sees_a_graph():
    torch.manual_seed(0)
    mlp, seen = Mlp(nn.SiLU(), bias=True), []
    x = torch.randn(3, 4).double().requires_grad_()
    with propagation(mlp, ATTN_LRP):
        mlp(x)
        mlp.act.register_forward_hook(lambda *call: seen.append(call[2]))
        (grad,) = torch.autograd.grad(mlp(x).sum(), seen[0], retain_graph=True)
    assert_same(grad, 0.5 * mlp.up(x) * mlp.down.weight.sum(0))


def test_the_ordinary_gradient_is_a_rule():
    torch.manual_seed(0)
    mlp = Mlp(nn.ReLU(), bias=True)
    x, grad = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    _, (found,) = ruled(mlp, [x], grad, replace(LRP, gate=ProductGradient()))
    _, (expected,) = relevance(mlp, [x], grad)
    assert_same(found, expected)


def test_signals_have_names():
    with pytest.raises(ValueError, match="'up' or 'activation'"):
        SignalTakeAll("gate")
