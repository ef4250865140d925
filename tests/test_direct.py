"""Gradients that rules want, computed in the place of those that they would replace."""

import pytest
import torch
from models import tiny, token_ids
from rule_cases import Function
from torch.nn import functional as F  # noqa: N812

from captum_lrpx import AttnLRPx, LRPx
from captum_lrpx.fast import direct
from captum_lrpx.fast.least import Least
from captum_lrpx.rules.answering import Answering

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
    "of nothing": lambda: {
        "attn_mask": padding() & padding().new_tensor([[[[True]]], [[[False]]]])
    },
}


def padding():
    mask = torch.ones(BATCH, 1, 1, LENGTH, dtype=torch.bool)
    mask[0, ..., -2:] = False
    return mask


@pytest.fixture
def answers(monkeypatch):
    """The functions that a gradient has answered, however small it was."""
    found = []

    def noting(whole, answers, *, ruled):
        ((function, answer),) = answers.items()

        def noted(*args, **kwargs):
            found.append(str(function))
            return answer(*args, **kwargs)

        return Answering(whole, {function: noted}, ruled=ruled)

    monkeypatch.setattr(direct, "Answering", noting)
    monkeypatch.setattr(direct, "_WORTH_IT", Least(0, 0))
    return found


def tensors(heads, groups, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randn(BATCH, count, LENGTH, SIZE, dtype=torch.float64, generator=generator)

    return draw(heads), draw(groups), draw(groups), draw(heads)


def of_values(query, key, value, grad, options):
    """Relevances of the values of an attention."""
    attention = Function(
        lambda *qkv: F.scaled_dot_product_attention(
            *qkv, enable_gqa=query.shape[1] != key.shape[1], **options
        )
    )
    forward = lambda *qkv: (attention(*qkv) * grad).flatten(1).sum(1)  # noqa: E731
    return LRPx(forward, attention).attribute((query, key, value))[2]


def replica(query, key, value, grad, options):
    """With the weights written out."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.clone().requires_grad_()
    scores = query @ key.transpose(-1, -2) / SIZE**0.5
    mask = options.get("attn_mask")
    if options.get("is_causal"):
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    weights = scores.softmax(-1).nan_to_num(0.0)
    output = weights @ value.repeat_interleave(groups, 1)
    return value.detach() * torch.autograd.grad(output, value, grad)[0]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize(("budget", "rows"), [(2**24, 128), (2**24, 3), (40, 2), (1, 1)])
def test_constant_weights_in_whatever_parts(
    monkeypatch, answers, name, heads, groups, budget, rows
):
    monkeypatch.setattr(direct, "_BUDGET", budget)
    monkeypatch.setattr(direct, "_ROWS", rows)
    case = *tensors(heads, groups), MASKS[name]()
    torch.testing.assert_close(of_values(*case), replica(*case), rtol=1e-12, atol=1e-12)
    assert len(answers) == 1


@pytest.mark.parametrize("size", [1, 10**9])
def test_small_gradients_take_the_way_of_pytorch(monkeypatch, answers, size):
    monkeypatch.setattr(direct, "_WORTH_IT", Least(size, size))
    case = *tensors(2, 2), {"is_causal": True}
    torch.testing.assert_close(of_values(*case), replica(*case), rtol=1e-12, atol=1e-12)
    assert bool(answers) == (size == 1)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_models_have_the_same_relevances(answers, family, method):
    model, ids = tiny(family, attn="sdpa"), token_ids()
    expected = method(model, fast=False).attribute(ids, target=(-1, 5))
    assert not answers
    for _ in range(2):
        found = method(model).attribute(ids, target=(-1, 5))
        # Norms of Llama compute in float32.
        tolerance = 1e-6 if family == "llama" else 1e-12
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    attentions = 2 * model.config.num_hidden_layers if method is LRPx else 0
    # The activations of GPT-2 are written out, those of Llama are gates, constant under LRP.
    activations = {"bert": 6, "llama": 4 * (method is AttnLRPx)}.get(family, 0)
    assert sum("attention" in each for each in answers) == attentions
    assert sum("attention" not in each for each in answers) == activations


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [F.gelu, F.silu, lambda z: F.gelu(z, approximate="tanh")])
def test_activations_have_the_slope_of_their_rule(answers, function, dtype):
    z = torch.linspace(-4, 4, 21).to(dtype).expand(2, 21)
    module = Function(function)
    slow, fast = (
        LRPx(lambda z: module(z).sum(1), module, fast=fast).attribute(z) for fast in (False, True)
    )
    assert torch.equal(slow, fast)
    assert len(answers) == 1
