"""The rule of norms against a slow replica in explicit relevance form (see rule_cases)."""

from __future__ import annotations

import itertools
from math import sqrt

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from rule_cases import ACCURACY, HALF, assert_same, norm_rows, ruled
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from captum_lrpx import LRP, propagation


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
    value, (of_x, of_bias) = ruled(
        lambda x, bias: F.layer_norm(x, width, weight, bias, eps), [x, bias], grad
    )
    assert_same(of_x, frozen_replica(x, weight, grad, eps, centered=True))
    assert_same(of_bias, bias * grad.sum(0))
    assert_same(of_x.sum() + of_bias.sum(), (value * grad).sum())


@pytest.mark.proof("D.5")
@pytest.mark.parametrize("eps", [1e-6, 0.25])
@given(rows=norm_rows())
def test_frozen_rms_norm(eps, rows):
    x, weight, _, grad = rows
    width = x.shape[1:]
    value, (found,) = ruled(lambda x: F.rms_norm(x, width, weight, eps), [x], grad)
    assert_same(found, frozen_replica(x, weight, grad, eps, centered=False))
    assert_same(found.sum(1), (value * grad).sum(1))


def layer_norm_by_hand(x, eps):
    centered = x - x.mean(-1, keepdim=True)
    return centered / torch.sqrt(centered.pow(2).mean(-1, keepdim=True) + eps)


def layer_norm_by_var(x, eps):
    variance, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
    return (x - mean) * (variance + eps).rsqrt()


def rms_norm_by_hand(x, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def rms_norm_by_product(x, eps):
    return x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.proof("D.5")
@pytest.mark.parametrize("eps", [1e-6, 0.25])
@pytest.mark.parametrize(
    ("norm", "centered"),
    [
        (layer_norm_by_hand, True),
        (layer_norm_by_var, True),
        (rms_norm_by_hand, False),
        (rms_norm_by_product, False),
    ],
)
@given(rows=norm_rows())
def test_frozen_norms_that_are_written_out(norm, centered, eps, rows):
    x, weight, bias, grad = rows
    factor = 1.0 if weight is None else weight
    _, (of_x, of_bias) = ruled(lambda x, bias: norm(x, eps) * factor + bias, [x, bias], grad)
    assert_same(of_x, frozen_replica(x, weight, grad, eps, centered=centered))
    assert_same(of_bias, bias * grad.sum(0))


@pytest.mark.parametrize("centered", [True, False])
@given(rows=norm_rows(), factor=st.sampled_from([0.5, 2.0, -4.0]))
def test_the_frozen_scale_is_the_only_thing_that_the_gradient_knows_of_the_input(
    centered, rows, factor
):
    x, weight, _, grad = rows
    assume((x.var(1, unbiased=False) if centered else x.square().sum(1)).min() > 0)
    norm = nn.LayerNorm(x.shape[1:], 0.0, bias=False) if centered else nn.RMSNorm(x.shape[1:], 0.0)
    norm.weight = nn.Parameter(torch.ones_like(x[0]) if weight is None else weight)

    def gradient(x, grad):
        x = x.detach().requires_grad_()
        with propagation(norm, LRP):
            return torch.autograd.grad(norm(x), x, grad)[0]

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
    for norm in (nn.LayerNorm(4, eps, dtype=torch.float64), lambda x: layer_norm_by_hand(x, eps)):
        value, (found,) = ruled(norm, [x], grad)
        assert not value.any()
        assert_same(found, 3 * (grad - 2.5) / sqrt(eps))


def test_norms_over_several_dimensions():
    torch.manual_seed(0)
    norm = nn.LayerNorm((3, 4), eps=0.1, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    x, grad = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(2))
    _, (found,) = ruled(norm, [x], grad)
    weight = norm.weight.detach().flatten()
    flat = frozen_replica(x.flatten(1), weight, grad.flatten(1), 0.1, centered=True)
    assert_same(found, flat.view_as(x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_norms_of_groups_of_channels(groups, affine):
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, 4, eps=0.1, affine=affine, dtype=torch.float64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, grad = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(2))
    _, (found,) = ruled(norm, [x], grad)
    weight = norm.weight.detach()[:, None] if affine else 1.0
    rows = [each.reshape(2 * groups, -1) for each in (x, grad * weight)]
    expected = frozen_replica(rows[0], None, rows[1], 0.1, centered=True)
    assert_same(found, expected.view_as(x))


NORMS = {
    "LayerNorm": lambda: nn.LayerNorm(6),
    "LayerNorm without weights": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "LayerNorm without bias": lambda: nn.LayerNorm(6, bias=False),
    "RMSNorm": lambda: nn.RMSNorm(6),
    "RMSNorm with epsilon": lambda: nn.RMSNorm(6, eps=1e-2),
    "LlamaRMSNorm": lambda: LlamaRMSNorm(6),
}


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("name", NORMS)
def test_norm_modules_conserve_in_every_precision(name, dtype, size):
    torch.manual_seed(0)
    norm = NORMS[name]()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm = norm.to(dtype)
    x, grad = ((size * torch.randn(5, 6)).to(dtype), torch.randn(5, 6).to(dtype))
    value, (found,) = ruled(norm, [x], grad)
    bias = getattr(norm, "bias", None)
    without_bias = value.double() - (0 if bias is None else bias.detach().double())
    expected = (without_bias * grad.double()).sum(1)
    mass = (value.double() * grad.double()).abs().sum(1) + found.double().abs().sum(1)
    allowed = ACCURACY.get(dtype, 1e-6) * mass
    assert ((found.double().sum(1) - expected).abs() <= allowed).all()


def test_the_weight_offset_of_a_family_is_part_of_the_weight():
    norm = GemmaRMSNorm(4, eps=1e-3).double()
    torch.manual_seed(0)
    nn.init.normal_(norm.weight)
    x, grad = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    _, (found,) = ruled(norm, [x], grad)
    expected = frozen_replica(x, norm.weight.detach() + 1, grad, 1e-3, centered=False)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # it computes in float32


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(3), nn.GroupNorm(2, 4), nn.BatchNorm1d(4).eval()], ids=str
)
def test_biases_that_need_a_gradient_get_their_own(norm):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Identity(), norm).double()
    x, grad = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(2))
    with propagation(module, LRP, freeze_parameters=False):
        module(x.requires_grad_()).backward(grad)
    expected = grad.sum((0, 1) if isinstance(norm, nn.LayerNorm) else (0, 2))
    assert_same(norm.bias.grad, expected)
