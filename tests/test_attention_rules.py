"""Rules of attention against slow replicas in explicit relevance form (see rule_cases)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import sqrt

import pytest
import torch
from hypothesis import given
from rule_cases import (
    Function,
    assert_same,
    attend_manually,
    attention_weights,
    attentions,
    relevance,
    ruled,
)
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx import ATTN_LRP, GRADIENT, LRP, propagation
from captum_lrpx.rules import Epsilon
from captum_lrpx.trace.graph import Graph
from captum_lrpx.trace.operations import is_kernel


def attend_fused(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_by_heads(q, k, v, mask):
    """As a kernel does it, which knows heads only."""
    q, k, v = (each.unsqueeze(1) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).squeeze(1)


def attend_by_bmm(q, k, v, mask):
    """Scaled before the product, with an additive mask."""
    added = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    scores = torch.baddbmm(added.expand(len(q), *mask.shape), q / sqrt(q.shape[-1]), k.mT)
    return torch.bmm(F.softmax(scores, -1), v)


def attend_by_einsum(q, k, v, mask):
    scores = torch.einsum("nqd,nkd->nqk", q, k) * q.shape[-1] ** -0.5
    weights = torch.where(mask, scores, -torch.inf).softmax(-1)
    return torch.einsum("nqk,nkd->nqd", weights, v)


def attend_one_by_one(q, k, v, mask):
    """Each weight times its value, then a sum."""
    weights = attention_weights(q, k, mask)
    return (weights.unsqueeze(-1) * v.unsqueeze(1)).sum(2)


WAYS = [
    attend_manually,
    attend_fused,
    attend_by_heads,
    attend_by_bmm,
    attend_by_einsum,
    attend_one_by_one,
]
every_way = pytest.mark.parametrize("attend", WAYS)


def constant_replica(q, k, v, grad, mask):
    """``R_v = A v R / (A v)`` in loops."""
    weights, found = attention_weights(q, k, mask), torch.zeros_like(v)
    for n, t, s, d in itertools.product(*map(range, (*weights.shape, v.shape[-1]))):
        found[n, s, d] += weights[n, t, s] * v[n, s, d] * grad[n, t, d]
    return found


@pytest.mark.proof("D.4")
@given(attentions())
def test_constant_weights_attention(case):
    q, k, v, grad, mask = case
    replica = constant_replica(*case)
    for attend in WAYS:
        value, (of_q, of_k, of_v) = ruled(lambda *x, a=attend: a(*x, mask), [q, k, v], grad, LRP)
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


@given(attentions())
def test_uniform_attention(case):
    q, k, v, grad, mask = case
    replica, leak = attnlrp_replica(*case)
    for attend in WAYS:
        value, found = ruled(lambda *x, a=attend: a(*x, mask), [q, k, v], grad, ATTN_LRP)
        for one, other in zip(found, replica, strict=True):
            assert_same(one, other)
        assert_same(sum(part.sum() for part in found) + leak, (value * grad).sum())


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@every_way
def test_masked_positions_have_no_relevance(attend, recipe):
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(4))
    mask = torch.tensor([True, True, False, True]).expand(4, 4)
    _, (_, of_k, of_v) = ruled(lambda *x: attend(*x, mask), [q, k, v], grad, recipe)
    for found in (of_k, of_v):
        assert torch.isfinite(found).all()
        assert torch.equal(found[:, 2], torch.zeros(2, 3, dtype=torch.float64))
    assert of_v[:, [0, 1, 3]].all()


# Kernels ------------------------------------------------------------------------------------------

BATCH, LENGTH, SIZE = 2, 7, 3


def padding():
    mask = torch.ones(BATCH, 1, 1, LENGTH, dtype=torch.bool)
    mask[0, ..., -2:] = False
    return mask


CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
MASKS = {
    "none": (None, None),
    "causal": (None, CAUSAL),
    "of all": (CAUSAL, CAUSAL),
    "of each": (padding().expand(BATCH, 1, LENGTH, LENGTH), padding()),
    "of keys": (padding(), padding()),
    "added": (torch.zeros(BATCH, 1, 1, LENGTH).double().masked_fill(~padding(), -torch.inf),
              padding()),
}  # fmt: skip
"""What a kernel is given, None and a triangle for ``is_causal``; and what it means."""


def heads_of(heads, groups):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(BATCH, count, LENGTH, SIZE, dtype=torch.float64, generator=generator)
        for count in (heads, groups, groups, heads)
    ]


def written_out(query, key, value, visible):
    """With the weights written out, and keys and values of groups repeated."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    scores = query @ key.mT / SIZE**0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1), value


def attention_replica(query, key, value, grad, visible, recipe):
    """Relevances: gradients of attention with the factors of the recipe."""
    leaves = [each.clone().requires_grad_() for each in (query, key, value)]
    weights, values = written_out(*leaves, visible)
    if recipe == LRP:
        (of_values,) = torch.autograd.grad(weights.detach() @ values, leaves[2], grad)
        return [torch.zeros_like(query), torch.zeros_like(key), value * of_values]
    found = torch.autograd.grad(weights @ values, leaves, grad)
    factors = (0.25, 0.25, 0.5)
    return [
        each.detach() * factor * slope
        for each, factor, slope in zip(leaves, factors, found, strict=True)
    ]


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2), (3, 1)])
def test_kernels(name, heads, groups, recipe):
    *inputs, grad = heads_of(heads, groups)
    given_mask, visible = MASKS[name]
    causal = given_mask is None and visible is not None

    def attend(q, k, v):
        return F.scaled_dot_product_attention(
            q, k, v, given_mask, is_causal=causal, enable_gqa=heads != groups
        )

    _, found = ruled(attend, inputs, grad, recipe)
    expected = attention_replica(*inputs, grad, visible, recipe)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_the_kernel_is_one_node():
    q, k, v, _ = (each.requires_grad_() for each in heads_of(2, 2))
    graph = Graph([F.scaled_dot_product_attention(q, k, v, is_causal=True)])
    assert any(map(is_kernel, graph.names))


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
def test_several_gradients_at_once(recipe):
    *inputs, grad = heads_of(4, 2)
    grads = torch.stack([grad, 2 * grad, grad.flip(0)])
    leaves = [each.requires_grad_() for each in inputs]
    attention = Function(
        lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)
    )
    with propagation(attention, recipe):
        output = attention(*leaves)
        found = torch.autograd.grad(output, leaves, grads, is_grads_batched=True, allow_unused=True)
    assert [each is None for each in found] == [*[recipe == LRP] * 2, False]
    for number, each in enumerate(grads):
        expected = attention_replica(*inputs, each, CAUSAL, recipe)
        for leaf, one, other in zip(leaves, found, expected, strict=True):
            assert_same(0 * leaf.detach() if one is None else leaf.detach() * one[number], other)


# Projections --------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Queries, keys and values by three projections, or by one with any layout."""

    def __init__(self, *, fused):
        super().__init__()
        layers = 1 if fused else 3
        self.layers = nn.ModuleList(nn.Linear(2, 6 // layers).double() for _ in range(layers))
        self.order = torch.tensor([4, 1, 0, 3, 2, 5]).view(3, 2)

    def weights(self):
        if len(self.layers) == 1:
            return [self.layers[0].weight[features] for features in self.order]
        return [layer.weight for layer in self.layers]

    def parts(self, x):
        if len(self.layers) == 1:
            fused = self.layers[0](x)
            return [fused[..., features] for features in self.order]
        return [layer(x) for layer in self.layers]

    def forward(self, x):
        return attend_manually(*self.parts(x), torch.tensor(True))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("recipe", "factors"),
    [(LRP, (0.0, 0.0, 1.0)), (ATTN_LRP, (0.25, 0.25, 0.5)), (GRADIENT, (1.0, 1.0, 1.0))],
    ids=lambda each: getattr(each, "name", None),
)
def test_attention_rules_scale_the_gradients_of_the_projections(recipe, factors, fused):
    torch.manual_seed(0)
    attention = SelfAttention(fused=fused)
    x, grad = (torch.randn(2, 3, 2, dtype=torch.float64) for _ in range(2))
    _, (found,) = ruled(attention, [x], grad, recipe)
    parts = [part.detach() for part in attention.parts(x)]
    _, of_parts = relevance(lambda *qkv: attend_manually(*qkv, torch.tensor(True)), parts, grad)
    shares = zip(factors, of_parts, parts, attention.weights(), strict=True)
    assert_same(found, x * sum(factor * (r / part) @ weight for factor, r, part, weight in shares))


def test_a_fused_projection_keeps_a_rule_of_its_own():
    torch.manual_seed(0)
    attention = SelfAttention(fused=True)
    layer, values = attention.layers[0], attention.order[2]
    x, grad = torch.randn(1, 3, 2).double(), torch.randn(1, 3, 2).double()
    _, (found,) = ruled(attention, [x], grad, replace(LRP, linear=Epsilon(0.25)))
    z = attention.parts(x)
    damped = z[2] / (z[2] + 0.25 * z[2].sign())
    of_values = constant_replica(*z, grad, torch.ones(3, 3, dtype=torch.bool)) / z[2]
    assert_same(found, x * ((of_values * damped) @ layer.weight[values]))


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@every_way
def test_weights_of_a_pool_are_constant(attend, recipe):
    """Queries that depend on nothing: what is chosen among is all that there is to explain."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(4))
    mask = torch.ones(4, 4, dtype=torch.bool)
    value, (of_k, of_v) = ruled(lambda k, v: attend(q, k, v, mask), [k, v], grad, recipe)
    assert not of_k.any()
    assert_same(of_v, constant_replica(q, k, v, grad, mask))
    assert_same(of_v.sum(), (value * grad).sum())
