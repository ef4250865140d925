"""The rule of norms against a slow replica in explicit relevance form (see rule_cases)."""

from __future__ import annotations

import itertools
from math import sqrt

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from rule_cases import ACCURACY, HALF, assert_same, attached, norm_rows, relevance
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from captum_lrpx.rules import (
    FrozenScale,
    functional,
)
from captum_lrpx.sites import (
    NormSite,
)


def frozen_replica(x, weight, grad, eps, *, centered):
    """``R_i = sum_j x_i m_ij g_j`` with the matrix ``m`` of the norm whose scale is a number."""
    found = torch.zeros_like(x)
    width = x.shape[1]
    for n in range(len(x)):
        row = [float(value) for value in x[n]]
        mean = sum(row) / width if centered else 0.0
        scale = 1 / sqrt(sum((value - mean) ** 2 for value in row) / width + eps)
        for i, j in itertools.product(range(width), repeat=2):
            entry = (1.0 if i == j else 0.0) - (1 / width if centered else 0.0)
            factor = 1.0 if weight is None else float(weight[j])
            found[n, i] += row[i] * entry * factor * scale * float(grad[n, j])
    return found


@pytest.mark.proof("D.5")
@pytest.mark.parametrize("eps", [1e-5, 0.25])
@given(rows=norm_rows())
def test_frozen_layer_norm(eps, rows):
    x, weight, bias, grad = rows
    width = x.shape[1:]

    def rule(x, bias):
        value = F.layer_norm(x, width, weight, bias, eps)
        return functional.frozen_norm(x, value, weight=weight, bias=bias, eps=eps, center=1)

    value, (of_x, of_bias) = relevance(rule, [x, bias], grad)
    assert torch.equal(value, F.layer_norm(x, width, weight, bias, eps))
    assert_same(of_x, frozen_replica(x, weight, grad, eps, centered=True))
    assert_same(of_bias, bias * grad.sum(0))
    assert_same(of_x.sum() + of_bias.sum(), (value * grad).sum())


@pytest.mark.proof("D.5")
@pytest.mark.parametrize("eps", [1e-6, 0.25])
@given(rows=norm_rows())
def test_frozen_rms_norm(eps, rows):
    x, weight, _, grad = rows
    width = x.shape[1:]

    def rule(x):
        value = F.rms_norm(x, width, weight, eps)
        return functional.frozen_norm(x, value, weight=weight, eps=eps, center=0)

    value, (found,) = relevance(rule, [x], grad)
    assert torch.equal(value, F.rms_norm(x, width, weight, eps))
    assert_same(found, frozen_replica(x, weight, grad, eps, centered=False))
    assert_same(found.sum(1), (value * grad).sum(1))


@pytest.mark.parametrize("centered", [True, False])
@given(rows=norm_rows(), factor=st.sampled_from([0.5, 2.0, -4.0]))
def test_the_frozen_scale_is_the_only_thing_that_the_gradient_knows_of_the_input(
    centered, rows, factor
):
    x, weight, _, grad = rows
    assume((x.var(1, unbiased=False) if centered else x.square().sum(1)).min() > 0)

    def gradient(x, grad):
        x = x.detach().requires_grad_()
        frozen = functional.frozen_norm(x, x * 0, weight=weight, eps=0, center=int(centered))
        return torch.autograd.grad(frozen, x, grad)[0]

    plain = gradient(x, grad)
    assert_same(gradient(x, factor * grad), factor * plain)  # linear in the upstream gradient
    assert_same(gradient(factor * x, grad), plain / abs(factor))  # scale 1 / |factor|
    assert_same(gradient(x.flip(1).flip(1), grad), plain)
    if centered:
        assert_same(gradient(x + 8, grad), plain)
    elif weight is None:
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=x.dtype)[: x.shape[1]]
        assert_same(gradient(x * signs, grad), plain)


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_rows_without_variance_have_the_scale_of_epsilon(eps):
    x = torch.full((2, 4), 3.0, dtype=torch.float64)
    grad = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2, dtype=torch.float64)
    value, (found,) = relevance(
        lambda x: functional.frozen_norm(x, x * 0, weight=None, eps=eps, center=1), [x], grad
    )
    assert not value.any()
    assert_same(found, 3 * (grad - 2.5) / sqrt(eps))


def test_norms_over_several_dimensions():
    torch.manual_seed(0)
    norm = nn.LayerNorm((3, 4), eps=0.1, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    x, grad = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(2))
    with attached(FrozenScale(), NormSite("norm", norm, centered=True, weight_offset=0.0)):
        value, (found,) = relevance(norm, [x], grad)
    weight = norm.weight.detach().flatten()
    flat = frozen_replica(x.flatten(1), weight, grad.flatten(1), 0.1, centered=True)
    assert torch.equal(value, norm(x))
    assert_same(found, flat.view_as(x))


NORMS = {
    "LayerNorm": (lambda: nn.LayerNorm(6), True, 0.0),
    "LayerNorm without weights": (lambda: nn.LayerNorm(6, elementwise_affine=False), True, 0.0),
    "LayerNorm without bias": (lambda: nn.LayerNorm(6, bias=False), True, 0.0),
    "RMSNorm": (lambda: nn.RMSNorm(6), False, 0.0),
    "RMSNorm with epsilon": (lambda: nn.RMSNorm(6, eps=1e-2), False, 0.0),
    "LlamaRMSNorm": (lambda: LlamaRMSNorm(6), False, 0.0),
}


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("name", NORMS)
def test_norm_modules_conserve_in_every_precision(name, dtype, size):
    build, centered, offset = NORMS[name]
    torch.manual_seed(0)
    norm = build()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm = norm.to(dtype)
    x, grad = ((size * torch.randn(5, 6)).to(dtype), torch.randn(5, 6).to(dtype))
    plain = norm(x).detach()
    with attached(FrozenScale(), NormSite("norm", norm, centered, offset)):
        value, (found,) = relevance(norm, [x], grad)
    assert torch.equal(value, plain)
    bias = getattr(norm, "bias", None)
    without_bias = value.double() - (0 if bias is None else bias.detach().double())
    expected = (without_bias * grad.double()).sum(1)
    mass = (value.double() * grad.double()).abs().sum(1) + found.double().abs().sum(1)
    allowed = ACCURACY.get(dtype, 1e-6) * mass
    assert ((found.double().sum(1) - expected).abs() <= allowed).all()


class OffsetRMSNorm(nn.RMSNorm):
    """As that of Gemma."""

    def forward(self, x):
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight + 1, self.eps)


def test_the_weight_offset_of_a_family_is_part_of_the_weight():
    norm = OffsetRMSNorm(4, eps=1e-3, dtype=torch.float64)
    torch.manual_seed(0)
    nn.init.normal_(norm.weight)
    x, grad = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    with attached(FrozenScale(), NormSite("norm", norm, centered=False, weight_offset=1.0)):
        _, (found,) = relevance(norm, [x], grad)
    assert_same(found, frozen_replica(x, norm.weight.detach() + 1, grad, 1e-3, centered=False))
