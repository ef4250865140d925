"""Every rule under every transformation of PyTorch, in every precision."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from rule_cases import ACCURACY, HALF, Function, assert_same, attend_manually
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx import ATTN_LRP, LRP, propagation
from captum_lrpx.recipes import LRP_MIRRORED_GATE
from captum_lrpx.rules import Alpha1Beta0, Epsilon, Gamma, functional, node_rules

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # of kernels

WEIGHT = torch.tensor([[1.0, -0.5, 0.25], [-1.0, 2.0, 0.5], [0.5, 0.5, -1.5]], dtype=torch.float64)
BIAS = torch.tensor([0.25, -0.5, 0.125], dtype=torch.float64)


def layer():
    """A linear layer with these parameters."""
    made = nn.Linear(3, 3)
    made.weight, made.bias = nn.Parameter(WEIGHT.clone()), nn.Parameter(BIAS.clone())
    return made


def linear(x):
    return F.linear(x, WEIGHT.to(x.dtype), BIAS.to(x.dtype))


def gated(x):
    return F.silu(x) * linear(x)


def attend(x):
    return attend_manually(x, linear(x), 2 * x, torch.tensor(True))


def attend_fused(x):
    q, k, v = (each.view(1, 1, *x.shape) for each in (x, linear(x), 2 * x))
    return F.scaled_dot_product_attention(q, k, v).view_as(x)


RULES = {
    "relay": (lambda x: functional.relay(x, torch.cos(x), WEIGHT[0].to(x.dtype)), LRP),
    "identity": (F.silu, LRP),
    "identity, input kept": (torch.tanh, LRP),
    "identity, written out": (lambda x: x * torch.sigmoid(x), LRP),
    "gate function": (torch.sigmoid, LRP),
    "uniform": (gated, ATTN_LRP),
    "signal take all": (gated, LRP),
    "signal take all, mirrored": (gated, LRP_MIRRORED_GATE),
    "glu": (lambda x: F.glu(torch.cat([x, linear(x)], -1), -1), LRP),
    "linear": (linear, LRP),
    "layer norm": (lambda x: F.layer_norm(x, (3,), WEIGHT[0].to(x.dtype)), LRP),
    "rms norm": (lambda x: F.rms_norm(x, (3,)), LRP),
    "rms norm, written out": (
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        LRP,
    ),
    "group norm": (lambda x: F.group_norm(x.unsqueeze(0), 2).squeeze(0), LRP),
    "epsilon": (layer(), replace(LRP, linear=Epsilon(0.25))),
    "alpha1-beta0": (layer(), replace(LRP, linear=Alpha1Beta0())),
    "gamma": (layer(), replace(LRP, linear=Gamma(0.25))),
    "constant weights": (attend, LRP),
    "constant weights, fused": (attend_fused, LRP),
    "uniform attention": (attend, ATTN_LRP),
    "uniform attention, fused": (attend_fused, ATTN_LRP),
}


@contextmanager
def opened(name, dtype=torch.float64):
    """A module with a rule on."""
    function, recipe = RULES[name]
    module = function.to(dtype) if isinstance(function, nn.Module) else Function(function)
    node_rules._limit_of_all.cache_clear()  # found out under a transformation as well
    with propagation(module, recipe):
        yield module


@pytest.fixture(params=RULES)
def rule(request):
    with opened(request.param) as module:
        yield module


@pytest.fixture
def x():
    return torch.tensor(
        [[0.5, -1.0, 2.0], [0.0, 1.5, -0.25], [-2.0, -0.5, 0.0], [1.0, 1.0, 1.0]],
        dtype=torch.float64,
    )


@pytest.fixture
def grads():
    return torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def vjps(rule, x, grads):
    """One forward and one backward pass after the other."""
    leaf = x.clone().requires_grad_()
    return torch.stack([torch.autograd.grad(rule(leaf), leaf, grad)[0] for grad in grads])


def test_linear_in_the_upstream_gradient(rule, x, grads):
    one, other, both = vjps(rule, x, torch.stack([grads[0], grads[1], 2 * grads[0] - grads[1]]))
    assert_same(both, 2 * one - other)


def test_several_backward_passes_through_one_graph(rule, x, grads):
    leaf = x.clone().requires_grad_()
    value, expected = rule(leaf), vjps(rule, x, grads)
    for grad, each in zip(grads, expected, strict=True):
        assert torch.equal(torch.autograd.grad(value, leaf, grad, retain_graph=True)[0], each)


def test_batched_backward(rule, x, grads):
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(rule(leaf), leaf, grads, is_grads_batched=True)
    assert_same(found, vjps(rule, x, grads))


def test_vmapped_backward(rule, x, grads):
    """As of several targets at once."""
    leaf = x.clone().requires_grad_()
    value = rule(leaf)
    found = torch.func.vmap(lambda grad: torch.autograd.grad(value, leaf, grad)[0])(grads)
    assert_same(found, vjps(rule, x, grads))


def test_batched_backward_to_the_bias_of_a_norm(x, grads):
    norm, bias = nn.LayerNorm(3).double(), BIAS.clone()
    norm.bias = nn.Parameter(bias)
    with propagation(norm, LRP, freeze_parameters=False):
        value = norm(x.clone().requires_grad_())
        (found,) = torch.autograd.grad(value, norm.bias, grads, is_grads_batched=True)
    assert_same(found, grads.sum(1))


@pytest.mark.parametrize("name", [name for name in RULES if "fused" not in name])
def test_a_backward_pass_that_has_a_graph_itself(name, x, grads):
    """Fused attention has none in PyTorch."""
    leaf, grad = x.clone().requires_grad_(), grads[0].clone().requires_grad_()
    with opened(name) as rule:
        (first,) = torch.autograd.grad(rule(leaf), leaf, grad, create_graph=True)
        assert_same(first.detach(), vjps(rule, x, grads[:1])[0])
        (second,) = torch.autograd.grad(first, grad, grads[1])
        # The gradient is linear in the upstream one, by the transposed Jacobian.
        basis = torch.eye(12, dtype=torch.float64).view(12, 4, 3)
        jacobian = vjps(rule, x, basis)
    assert_same(second, (jacobian * grads[1]).sum((1, 2)).view(4, 3))


def test_torch_func_vjp(rule, x, grads):
    value, vjp = torch.func.vjp(rule, x)
    assert torch.equal(value, rule(x))
    expected = vjps(rule, x, grads)
    assert_same(vjp(grads[0])[0], expected[0])
    assert_same(torch.func.vmap(vjp)(grads)[0], expected)


def test_torch_func_grad(rule, x, grads):
    found = torch.func.grad(lambda x: (rule(x) * grads[0]).sum())(x)
    assert_same(found, vjps(rule, x, grads)[0])


def test_torch_func_per_example_gradients(rule, x, grads):
    examples = torch.stack([x, x.flip(0)])  # [2, 4, 3]
    per_example = torch.func.vmap(torch.func.grad(lambda x, grad: (rule(x) * grad).sum()))
    expected = [vjps(rule, one, grad[None])[0] for one, grad in zip(examples, grads, strict=False)]
    assert_same(per_example(examples, grads[:2]), torch.stack(expected))
    of_sum = torch.func.vmap(torch.func.grad(lambda x: rule(x).sum()))  # one gradient for all
    expected = [vjps(rule, one, torch.ones_like(one)[None])[0] for one in examples]
    assert_same(of_sum(examples), torch.stack(expected))


def test_torch_func_jacobian(rule, x):
    jacobian = torch.func.jacrev(rule)(x)
    basis = torch.eye(12, dtype=torch.float64).view(12, 4, 3)
    assert_same(jacobian, vjps(rule, x, basis).view(4, 3, 4, 3))


def test_the_value_is_the_same_with_and_without_a_gradient(rule, x):
    with_gradient = rule(x.clone().requires_grad_())
    assert with_gradient.requires_grad
    assert torch.equal(with_gradient, rule(x))
    with torch.no_grad():
        without = rule(x.clone().requires_grad_())
        assert without.grad_fn is None
    assert torch.equal(without, with_gradient)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision(name, dtype, x, grads):
    with opened(name, dtype) as rule:
        half = rule(x.to(dtype).requires_grad_())
        found = vjps(rule, x.to(dtype), grads.to(dtype))
    with opened(name) as rule:
        expected = vjps(rule, x, grads)
    assert half.dtype == found.dtype == dtype
    assert torch.isfinite(found).all()
    close = ACCURACY[dtype] * expected.abs().max()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=close.item())
