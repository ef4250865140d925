"""ALTI-Logit where a model lines up its heads, examples or positions in an order of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx import ALTILogit
from captum_lrpx.alti import attention_parts
from captum_lrpx.alti.attention_weights import MaterializedWeights

HEADS, SIZE, TOKENS, LAYERS = 4, 3, 5, 2
WIDTH = HEADS * SIZE


def by_kernel(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def by_causal_kernel(q, k, v, mask):
    """The kernel makes the same mask from the order of positions."""
    expected = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
    assert torch.equal(mask.expand(*mask.shape[:-2], *expected.shape), expected.expand_as(mask))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_products(q, k, v, mask):
    scores = q @ k.mT * SIZE**-0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


MIXED = {"kernel": by_kernel, "causal kernel": by_causal_kernel, "products": by_products}


def plain(mix, q, k, v, mask):
    """Heads of a group stand side by side, after the examples."""
    shared = q.shape[1] // k.shape[1]
    return mix(q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), mask)


def grouped_kernel(mix, q, k, v, mask):
    """As :func:`plain`, with keys and values that are not repeated."""
    del mix
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def grouped_products(mix, q, k, v, mask):
    """The queries of a group are further rows of one product."""
    del mix
    shared = q.shape[1] // k.shape[1]
    folded = q.reshape(*k.shape[:2], -1, SIZE)
    mask = mask.expand(*q.shape[:3], k.shape[2]).reshape(*folded.shape[:3], k.shape[2])
    found = by_products(folded, k, v, mask)
    return found.reshape(len(q), shared * k.shape[1], -1, SIZE)


def heads_reversed(mix, q, k, v, mask):
    shared = q.shape[1] // k.shape[1]
    k, v = (each.repeat_interleave(shared, 1).flip(1) for each in (k, v))
    return mix(q.flip(1), k, v, mask).flip(1)


def heads_of_groups_apart(mix, q, k, v, mask):
    """The first heads of all groups, then the second ones."""
    shared = q.shape[1] // k.shape[1]
    k, v = (each.repeat(1, shared, 1, 1) for each in (k, v))
    q = q.unflatten(1, (-1, shared)).transpose(1, 2).flatten(1, 2)
    found = mix(q, k, v, mask)
    return found.unflatten(1, (shared, -1)).transpose(1, 2).flatten(1, 2)


def heads_before_examples(mix, q, k, v, mask):
    shared = q.shape[1] // k.shape[1]
    k, v = (each.repeat_interleave(shared, 1) for each in (k, v))
    q, k, v = (each.transpose(0, 1).flatten(0, 1).unsqueeze(0) for each in (q, k, v))
    return mix(q, k, v, mask).squeeze(0).unflatten(0, (HEADS, -1)).transpose(0, 1)


def queries_reversed(mix, q, k, v, mask):
    shared = q.shape[1] // k.shape[1]
    k, v = (each.repeat_interleave(shared, 1) for each in (k, v))
    return mix(q.flip(2), k, v, mask.flip(2)).flip(2)


ORDERS = [
    plain,
    grouped_kernel,
    grouped_products,
    heads_reversed,
    heads_of_groups_apart,
    heads_before_examples,
    queries_reversed,
]


class Block(nn.Module):
    """Attention and an MLP on a residual stream."""

    def __init__(self, groups, order, mix):
        super().__init__()
        self.order, self.mix = order, mix
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key, self.value = (nn.Linear(WIDTH, groups * SIZE) for _ in range(2))
        self.output = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x, mask):
        normed = self.norms[0](x)
        q, k, v = (
            each(normed).unflatten(-1, (-1, SIZE)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        found = self.order(self.mix, q, k, v, mask)
        x = x + self.output(found.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Model(nn.Module):
    """Blocks and a head; what a position attends to is given by ``mask``."""

    def __init__(self, groups, order, mix, mask):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(groups, order, mix) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 7)
        self.mask = mask

    def forward(self, x):
        for block in self.blocks:
            x = block(x, self.mask)
        return self.head(x)


CAUSAL = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
MIRRORED = CAUSAL.flip(2)
"""Each position sees as many as a causal one that is as far from the other end."""


def model(groups, order, mix, mask=CAUSAL):
    return Model(groups, order, MIXED[mix], mask).double().eval()


def inputs(tokens=TOKENS):
    return torch.randn(2, tokens, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def found_by(model, value_bias="tokens"):
    method = ALTILogit(model, value_bias=value_bias)
    return method.decompose(inputs(), (3, 2), return_alti=True)


@pytest.mark.parametrize("value_bias", ["tokens", "apart"])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("mix", MIXED)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
def test_the_order_does_not_matter(order, mix, groups, value_bias):
    mask = MIRRORED if order is queries_reversed and mix == "causal kernel" else CAUSAL
    odd, judge = model(groups, order, mix, mask), model(groups, plain, "products", mask)
    torch.testing.assert_close(odd(inputs()), judge(inputs()))
    found, expected = found_by(odd, value_bias), found_by(judge, value_bias)
    for name in ("heads", "alti", "start"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12
        )
    assert expected.heads.abs().amax((0, 3)).min() > 1e-3


def values_reversed(mix, q, k, v, mask):
    """Each position attends to others than its weights were computed for."""
    return mix(q, k, v.flip(2), mask)


@pytest.mark.parametrize("tokens", [4, 5])
@pytest.mark.parametrize("mix", ["kernel", "products"])
def test_values_at_other_positions_are_refused(mix, tokens):
    odd = model(4, values_reversed, mix, CAUSAL[..., :tokens, :tokens])
    with pytest.raises(ValueError, match="computes values from several positions"):
        ALTILogit(odd).attribute(inputs(tokens), (tokens - 1, 2))


@pytest.mark.parametrize("mix", ["kernel", "products"])
def test_weights_that_are_not_those_of_the_model_are_refused(mix, monkeypatch):
    """Every input is, although a few of them give nearly the same sums."""
    original = attention_parts.attention_of

    def flipped(node, name, order):
        found = original(node, name, order)
        examples = range(len(order.rows))
        weights = torch.stack([found.weights.of(each, slice(None)) for each in examples])
        return found._replace(weights=MaterializedWeights(weights.flip(-1)))

    monkeypatch.setattr(attention_parts, "attention_of", flipped)
    for seed in range(60):
        whole = torch.ones_like(CAUSAL)
        odd = model(4, plain, mix, whole)
        x = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
        with pytest.raises(ValueError, match="is not what its values, weights"):
            ALTILogit(odd).attribute(x, (3, 2))
