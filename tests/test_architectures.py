"""Declarations of architectures: deprecated, accepted with a warning, and read for one thing."""

from contextlib import contextmanager
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from models import tiny, token_ids

from captum_lrpx import LRPx, TokenLogits
from captum_lrpx.architectures import (
    MLP,
    Architecture,
    Embeddings,
    FusedAttention,
    Norms,
    register,
    unregister,
)

ABSENT = Architecture(
    model_types=("gpt2",),
    embeddings=Embeddings(token="nowhere"),
    blocks="nowhere.*",
    norms=Norms(attention="nowhere", mlp="nowhere"),
    attention=FusedAttention("nowhere", "nowhere", "nowhere", "concatenated"),
    mlp=MLP("nowhere", "nowhere", "nowhere"),
    position_ids=False,
)
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@contextmanager
def registered(architecture):
    with pytest.warns(DeprecationWarning, match="need no declaration") as warned:
        assert register(architecture) is architecture
    assert warned[0].filename == __file__
    try:
        yield
    finally:
        unregister(architecture)


def test_no_path_of_it_is_read():
    plain = LRPx(tiny("gpt2")).attribute(token_ids(), (-1, 7))
    with registered(ABSENT):
        assert torch.equal(LRPx(tiny("gpt2")).attribute(token_ids(), (-1, 7)), plain)


def test_whether_position_ids_have_to_be_given_is():
    model = tiny("gpt2", dtype=torch.float32)
    with_positions, without = (
        model(token_ids(), attention_mask=MASK, position_ids=positions).logits[:, -1]
        for positions in ((MASK.cumsum(-1) - 1).clamp(min=0), None)
    )
    assert not torch.allclose(with_positions, without)
    torch.testing.assert_close(TokenLogits(model)(token_ids(), MASK), with_positions)
    with registered(ABSENT):
        torch.testing.assert_close(TokenLogits(model)(token_ids(), MASK), without)
    with registered(replace(ABSENT, position_ids=True)):
        torch.testing.assert_close(TokenLogits(model)(token_ids(), MASK), with_positions)


def test_a_declaration_is_a_value():
    with pytest.raises(FrozenInstanceError):
        ABSENT.blocks = "h.*"


def test_only_declarations_can_be_registered():
    with pytest.raises(TypeError, match="Architecture"):
        register("llama")


def test_what_was_not_registered_cannot_be_taken_back():
    with pytest.raises(ValueError, match="not registered"):
        unregister(ABSENT)
