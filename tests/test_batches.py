"""Padding costs nothing: a padded row has the relevances of the row without padding."""

import pytest
import torch
from models import FAMILIES, tiny, token_ids

from captum_lrpx import AttnLRPx, LogitDifference, LRPx, TokenLogits, last_token

LENGTH, PADDED = 4, 7


def padded(side):
    ids = token_ids(batch=2, length=PADDED)
    mask = torch.ones_like(ids)
    pads = slice(0, PADDED - LENGTH) if side == "left" else slice(LENGTH, PADDED)
    ids[1, pads], mask[1, pads] = 0, 0
    return ids, mask


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_row_equals_the_row_alone(family, side, method, attn):
    model = tiny(family, dtype=torch.float32, attn=attn)
    ids, mask = padded(side)
    position = last_token(mask)
    args = (mask, 5, 6, position)
    attribution = method(LogitDifference(model))
    batch, deltas = attribution.attribute(
        ids, additional_forward_args=args, return_convergence_delta=True
    )

    alone, delta = attribution.attribute(
        ids[1:, mask[1].bool()],
        additional_forward_args=(None, 5, 6, LENGTH - 1),
        return_convergence_delta=True,
    )

    scale = alone.abs().max().item()
    real = mask[1].bool()
    torch.testing.assert_close(batch[1:, real], alone, rtol=0, atol=2e-5 * scale)
    assert batch[1, ~real].eq(0).all(), "padding has relevance"
    torch.testing.assert_close(deltas[1:], delta, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_embeddings_too(family, side):
    model = tiny(family, dtype=torch.float32)
    ids, mask = padded(side)
    embeds = model.get_input_embeddings()(ids).detach()
    forward = TokenLogits(model)
    args = (mask, last_token(mask))
    of_embeds = AttnLRPx(forward).attribute(embeds, 5, additional_forward_args=args)
    of_ids = AttnLRPx(forward).attribute(ids, 5, additional_forward_args=args)
    torch.testing.assert_close(of_embeds.sum(-1), of_ids)


def test_last_token_on_both_sides():
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0]])
    assert last_token(mask).tolist() == [2, 3, 2]


def test_a_row_of_padding_has_no_last_token():
    with pytest.raises(ValueError, match="no real token"):
        last_token(torch.tensor([[1, 0], [0, 0]]))
