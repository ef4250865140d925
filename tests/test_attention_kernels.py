"""The backward pass of attention with constant weights is ``A^T dO``, in whatever parts."""

import pytest
import torch
from models import tiny, token_ids
from torch.nn import functional as F  # noqa: N812

from captum_lrpx import LRPx
from captum_lrpx.rules import kernels, patches
from captum_lrpx.rules.kernels import ConstantWeightsMode

BATCH, LENGTH, SIZE = 2, 7, 3
MASKS = {
    "none": dict,
    "causal": lambda: {"is_causal": True},
    "of all": lambda: {"attn_mask": torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()},
    "of each": lambda: {"attn_mask": padding().expand(BATCH, 1, LENGTH, LENGTH)},
    "of keys": lambda: {"attn_mask": padding()},
    "added": lambda: {
        "attn_mask": torch.zeros(BATCH, 1, LENGTH, LENGTH, dtype=torch.float64).masked_fill(
            ~padding(), -torch.inf
        )
    },
}


def padding():
    mask = torch.ones(BATCH, 1, 1, LENGTH, dtype=torch.bool)
    mask[0, ..., -2:] = False
    return mask


def tensors(heads, groups, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randn(BATCH, count, LENGTH, SIZE, dtype=torch.float64, generator=generator)

    return draw(heads), draw(groups), draw(groups).requires_grad_(), draw(heads)


def replica(query, key, value, grad, options):
    """With the weights written out."""
    groups = query.shape[1] // key.shape[1]
    query, key = query.detach(), key.detach().repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) / SIZE**0.5
    mask = options.get("attn_mask")
    if options.get("is_causal"):
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    weights = scores.softmax(-1)
    output = weights @ value.repeat_interleave(groups, 1)
    return torch.autograd.grad(output, value, grad)[0]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize(("budget", "causal_rows"), [(2**24, 128), (2**24, 3), (40, 2), (1, 1)])
def test_any_part_at_once(monkeypatch, name, heads, groups, budget, causal_rows):
    monkeypatch.setattr(kernels, "_BUDGET", budget)
    monkeypatch.setattr(kernels, "_CAUSAL_ROWS", causal_rows)
    query, key, value, grad = tensors(heads, groups)
    options = MASKS[name]()
    with ConstantWeightsMode():
        output = F.scaled_dot_product_attention(
            query, key, value, enable_gqa=heads != groups, **options
        )
    (found,) = torch.autograd.grad(output, value, grad)
    expected = replica(query, key, value, grad, options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_several_gradients_at_once(monkeypatch):
    monkeypatch.setattr(kernels, "_CAUSAL_ROWS", 2)
    query, key, value, grad = tensors(4, 2)
    with ConstantWeightsMode():
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    grads = torch.stack([grad, 2 * grad, grad.flip(0)])
    (found,) = torch.autograd.grad(output, value, grads, is_grads_batched=True)
    expected = [replica(query, key, value, each, {"is_causal": True}) for each in grads]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_few_tokens_and_many_take_kernels_that_give_the_same(monkeypatch, family):
    model = tiny(family, attn="sdpa")
    ours, calls = kernels._of_examples, []
    monkeypatch.setattr(kernels, "_of_examples", lambda *args: calls.append(1) or ours(*args))

    few = LRPx(model).attribute(token_ids(), target=(-1, 5))
    assert bool(calls) == (family == "gpt2")  # a fused projection always takes our own kernel
    calls.clear()
    monkeypatch.setattr(patches, "_FEW_TOKENS", 0)
    many = LRPx(model).attribute(token_ids(), target=(-1, 5))
    assert calls
    # Norms of Llama compute in float32.
    torch.testing.assert_close(few, many, rtol=0, atol=1e-6 if family == "llama" else 1e-12)
