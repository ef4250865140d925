"""Rules of attention against slow replicas in explicit relevance form (see rule_cases)."""

from __future__ import annotations

import itertools
from math import sqrt

import pytest
import torch
from hypothesis import given
from rule_cases import (
    assert_same,
    attached,
    attend_manually,
    attention_site,
    attention_weights,
    attentions,
    identity_projections,
    relevance,
)
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx.rules import (
    Epsilon,
    UniformAttention,
    functional,
)
from captum_lrpx.rules.attention import ConstantWeights
from captum_lrpx.sites import (
    LinearSite,
    Projection,
)


@pytest.mark.proof("D.4")
@given(attentions())
def test_constant_weights_attention(case):
    q, k, v, grad, mask = case

    query, key, of_value = projections = identity_projections()

    def attend(q, k, v):
        weights = attention_weights(query.module(q), key.module(k), mask)
        return weights @ of_value.module(v)

    with attached(ConstantWeights(), attention_site(*projections)):
        value, (of_q, of_k, of_v) = relevance(attend, [q, k, v], grad)
    weights = attention_weights(q, k, mask)
    replica = torch.zeros_like(v)
    for n, t, s, d in itertools.product(*map(range, (*weights.shape, v.shape[-1]))):
        replica[n, s, d] += weights[n, t, s] * v[n, s, d] * grad[n, t, d]
    assert torch.equal(value, weights @ v)
    assert not of_q.any()
    assert not of_k.any()
    assert_same(of_v, replica)
    assert_same(of_v.sum(), (value * grad).sum())


def attnlrp_replica(q, k, v, grad, mask):
    """Uniform at ``A V``, softmax ``R_s = s (R_A - A sum R_A)``, uniform at ``Q K``, in loops."""
    relevances = [torch.zeros_like(tensor) for tensor in (q, k, v)]
    of_q, of_k, of_v = relevances
    weights = attention_weights(q, k, mask)
    batch, length, width = v.shape
    leak = torch.zeros((), dtype=v.dtype)
    for n, t in itertools.product(range(batch), range(length)):
        visible = [s for s in range(length) if mask[t, s]]
        of_weights = {}
        for s in visible:
            shares = weights[n, t, s] * v[n, s] * grad[n, t] / 2
            of_v[n, s] += shares
            of_weights[s] = shares.sum()
        total = sum(of_weights.values())
        leak += total
        for s in visible:
            products = q[n, t] * k[n, s] / sqrt(width)
            score = products.sum()
            of_score = score * (of_weights[s] - weights[n, t, s] * total)
            leak -= of_score
            for d in range(width):
                share = products[d] * (of_weights[s] - weights[n, t, s] * total) / 2
                of_q[n, t, d] += share
                of_k[n, s, d] += share
    return relevances, leak


def attend_fused(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("attend", [attend_manually, attend_fused])
@given(case=attentions())
def test_uniform_attention(attend, case):
    q, k, v, grad, mask = case

    projections = identity_projections()

    def rule(*inputs):
        parts = zip(projections, inputs, strict=True)
        return attend(*(part.module(x) for part, x in parts), mask)

    with attached(UniformAttention(), attention_site(*projections)):
        value, found = relevance(rule, [q, k, v], grad)
    replica, leak = attnlrp_replica(q, k, v, grad, mask)
    assert torch.equal(value, attend(q, k, v, mask))
    for one, other in zip(found, replica, strict=True):
        assert_same(one, other)
    assert_same(sum(part.sum() for part in found) + leak, (value * grad).sum())


@pytest.mark.parametrize("attend", [attend_manually, attend_fused])
@pytest.mark.parametrize("factors", [(0.25, 0.25, 0.5), (0.0, 0.0, 1.0)])
def test_masked_positions_have_no_relevance(attend, factors):
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(4))
    mask = torch.tensor([True, True, False, True]).expand(4, 4)

    def rule(*tensors):
        scaled = map(functional.scale_gradient, tensors, factors)
        return attend(*scaled, mask)

    _, (_, of_k, of_v) = relevance(rule, [q, k, v], grad)
    for found in (of_k, of_v):
        assert torch.isfinite(found).all()
        assert torch.equal(found[:, 2], torch.zeros(2, 3, dtype=torch.float64))
    assert of_v[:, [0, 1, 3]].all()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("rule", "factors"),
    [(ConstantWeights(), (0.0, 0.0, 1.0)), (UniformAttention(), (0.25, 0.25, 0.5))],
)
def test_attention_rules_scale_the_gradients_of_the_projections(rule, factors, fused):
    torch.manual_seed(0)
    x = torch.randn(3, 2, dtype=torch.float64)
    grads = torch.randn(3, 3, 2, dtype=torch.float64)  # part, row, feature
    if fused:
        layer = nn.Linear(2, 6).double()
        order = torch.tensor([4, 1, 0, 3, 2, 5]).view(3, 2)  # any layout
        projections = [Projection(layer, features) for features in order]
        weights = [layer.weight[features] for features in order]
    else:
        projections = [Projection(nn.Linear(2, 2).double()) for _ in range(3)]
        weights = [projection.module.weight for projection in projections]

    def project(x):
        return torch.stack(
            [
                part.module(x) if part.features is None else part.module(x)[:, part.features]
                for part in projections
            ]
        )

    with attached(rule, attention_site(*projections)):
        _, (found,) = relevance(project, [x], grads)
    parts = zip(factors, grads, weights, strict=True)
    assert_same(found, x * sum(factor * grad @ weight for factor, grad, weight in parts))


def test_a_fused_projection_keeps_a_rule_of_its_own():
    torch.manual_seed(0)
    layer = nn.Linear(2, 6).double().requires_grad_(False)
    x, grad = torch.randn(3, 2).double(), torch.randn(3, 6).double()
    projections = [Projection(layer, features) for features in torch.arange(6).view(3, 2)]
    with (
        attached(Epsilon(0.25), LinearSite("linear", layer)),
        attached(ConstantWeights(), attention_site(*projections)),
    ):
        _, (found,) = relevance(layer, [x], grad)
    z = layer(x)
    damped = grad * z / (z + 0.25 * z.sign())
    assert_same(found, x * (damped[:, 4:] @ layer.weight[4:]))
