"""Attention rollout against its equation, and random numbers as a baseline."""

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids

from captum_lrpx import (
    AnswerLogits,
    AttentionRollout,
    ClassLogits,
    LogitDifference,
    RandomAttribution,
    TokenLogits,
)

# Attention rollout ------------------------------------------------------------------------------


def rolled_out(model, ids, mask=None):
    """Abnar & Zuidema's equation, from the weights that transformers returns: ``[B, T, T]``."""
    attentions = model(ids, attention_mask=mask, output_attentions=True).attentions
    product = torch.eye(ids.shape[1], dtype=torch.float64)
    for weights in attentions:
        product = (0.5 * weights.double().mean(1) + 0.5 * torch.eye(ids.shape[1])) @ product
    return product


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_rollout_is_the_equation(family, attn):
    ids = token_ids()
    expected = rolled_out(tiny(family, heads=3, layers=3), ids)
    model = tiny(family, heads=3, layers=3, attn=attn)
    positions = torch.tensor([1, 4])
    args = (None, torch.tensor([5, 6]), torch.tensor([7, 8]), positions)
    found = AttentionRollout(LogitDifference(model)).attribute(ids, additional_forward_args=args)
    # Some families compute eager softmax in float32, whatever the model is in.
    torch.testing.assert_close(found, expected[torch.arange(2), positions], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, dtype=found.dtype))
    direct = AttentionRollout(model).attribute(ids, target=[(1, 5), (4, 6)])
    torch.testing.assert_close(direct, found)


@pytest.mark.parametrize("family", FAMILIES)
def test_rollout_of_embeddings_is_spread_over_them(family):
    model, ids = tiny(family), token_ids()
    embeds = model.get_input_embeddings()(ids)
    method = AttentionRollout(TokenLogits(model))
    args = {"target": 5, "additional_forward_args": (None, 3)}
    of_ids = method.attribute(ids, **args)
    (of_embeds,) = method.attribute((embeds,), **args)
    assert of_embeds.shape == embeds.shape
    torch.testing.assert_close(of_embeds.sum(-1), of_ids)


def test_rollout_finds_the_position_that_a_head_reads():
    ids = token_ids()
    bert = tiny("bert", head="sequence")
    found = AttentionRollout(ClassLogits(bert)).attribute(ids, target=1)
    torch.testing.assert_close(found, rolled_out(bert, ids)[:, 0])
    gpt = tiny("gpt2", head="sequence")
    found = AttentionRollout(ClassLogits(gpt)).attribute(ids[:1], target=1)
    torch.testing.assert_close(found, rolled_out(gpt, ids)[:1, -1])
    answer = tiny("bert", head="qa")
    found = AttentionRollout(AnswerLogits(answer)).attribute(ids, target=2)
    torch.testing.assert_close(found, rolled_out(answer, ids)[:, 2])


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_rollout_of_a_padded_row_is_that_of_the_row_alone(family, side, attn):
    model = tiny(family, dtype=torch.float32, attn=attn)
    ids, mask = token_ids(length=6), torch.ones(2, 6, dtype=torch.long)
    mask[1, slice(0, 2) if side == "left" else slice(4, 6)] = 0
    method = AttentionRollout(LogitDifference(model))
    last = torch.tensor([5, 5 if side == "left" else 3])
    batch = method.attribute(ids, additional_forward_args=(mask, 5, 6, last))
    real = mask[1].bool()
    alone = method.attribute(ids[1:, real], additional_forward_args=(None, 5, 6, 3))
    torch.testing.assert_close(batch[1, real], alone[0])
    assert batch[1, ~real].eq(0).all()


def test_what_rollout_refuses():
    model, ids = tiny("gpt2"), token_ids()
    method = AttentionRollout(model)
    with pytest.raises(ValueError, match="one input"):
        method.attribute((ids, ids), target=(1, 5))
    with pytest.raises(AssertionError, match="Target not provided when necessary"):
        method.attribute(ids, target=1)
    with pytest.raises(ValueError, match="give it as `model=`"):
        AttentionRollout(lambda x: model(x).logits)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        method.attribute(ids, target=(1, 5))
    assert not method.has_convergence_delta()
    assert not method.multiplies_by_inputs
    with pytest.raises(NotImplementedError):
        method.attribute_future()


# Random -----------------------------------------------------------------------------------------


def test_random_numbers_belong_to_the_seed_and_the_example():
    ids = torch.tensor([[1, 2, 3], [4, 5, 6], [1, 2, 3]])
    found = RandomAttribution(None).attribute(ids)
    assert found.shape == ids.shape
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert torch.equal(RandomAttribution(None).attribute(ids[1:2])[0], found[1])
    assert not torch.equal(RandomAttribution(None, seed=1).attribute(ids), found)


def test_random_numbers_are_uniform():
    ids = torch.arange(20_000).view(200, 100)
    found = RandomAttribution(None).attribute(ids).sort(-1)
    assert found.values.min() >= -1
    assert found.values.max() < 1
    quarters = torch.histc(found.values, bins=4, min=-1, max=1) / found.values.numel()
    assert (quarters - 0.25).abs().max() < 0.01
    first = torch.bincount(found.indices[:, -1], minlength=100)
    assert first.max() < 12, "no position is the highest in every text"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_random_numbers_never_round_to_one(dtype):
    found = RandomAttribution(None).attribute(torch.ones(200, 1000, dtype=dtype))
    assert found.min() >= -1
    assert found.max() < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_random_numbers_for_embeddings(dtype):
    embeds = torch.ones(2, 3, 4, dtype=dtype)
    (found, other) = RandomAttribution(None).attribute((embeds, embeds))
    assert found.shape == embeds.shape
    assert found.dtype == dtype
    assert not torch.equal(found, other)
