"""What is left out for memory and time changes no relevance, layer, neuron or ledger."""

import itertools

import pytest
import torch
from models import FAMILIES, HEADS, MORE_FAMILIES, outputs, tiny, token_ids
from replica_ledger import Exact
from state import snapshot
from torch import nn

from captum_lrpx import AttnLRPx, LayerAttnLRPx, LRPx, NeuronAttnLRPx, ledger
from captum_lrpx.recipes import NAMED_RECIPES

pytestmark = pytest.mark.usefixtures("everything_fast")

CAST = {"llama", "mistral", "qwen2", "qwen3", "bloom"}
"""Families that compute norms or softmax in float32, whatever the model is in."""

TARGETS = {"lm": (-1, 3), "sequence": 1, "token": (2, 1), "qa": (-1, 1)}
EVERY = FAMILIES | MORE_FAMILIES
ATTENTION = [
    (family, attn)
    for family, attn in itertools.product(EVERY, ["eager", "sdpa"])
    if attn == "eager" or EVERY[family].interface
]


def assert_equal(found, expected, rtol=1e-12):
    largest = expected.abs().max().item()
    assert largest > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * largest)


@pytest.fixture
def exact():
    """Nothing is computed in less than float64, whatever a model casts."""
    with Exact():
        yield


def forward_of(model):
    return lambda ids, mask=None: outputs(model, input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("recipe", NAMED_RECIPES)
@pytest.mark.parametrize(("family", "attn"), ATTENTION)
def test_every_recipe_and_attention(family, attn, recipe):
    model, ids = tiny(family, attn=attn), token_ids()
    before = snapshot(model)
    fast, whole = (
        LRPx(model, recipe=NAMED_RECIPES[recipe], fast=fast).attribute(ids, (-1, 3))
        for fast in (True, False)
    )
    assert_equal(whole, fast, 2e-7 if family in CAST else 1e-12)
    assert snapshot(model) == before


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("head", HEADS[1:])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_head(family, head, method):
    model = tiny(family, head)
    fast, whole = (
        method(forward_of(model), model, fast=fast).attribute(token_ids(), TARGETS[head])
        for fast in (True, False)
    )
    assert_equal(whole, fast)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("family", "attn"), ATTENTION)
def test_padded_batches(family, attn):
    model, ids = tiny(family, attn=attn), token_ids(length=6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    fast, whole = (
        AttnLRPx(forward_of(model), model, fast=fast).attribute(ids, (-1, 3), (mask,))
        for fast in (True, False)
    )
    assert_equal(whole, fast)
    assert (whole[1, :2] == 0).all()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", EVERY)
def test_ids_and_embeddings(family, method):
    model, ids = tiny(family), token_ids()
    embedded = model.get_input_embeddings()(ids).detach()
    of_ids = method(model, fast=False).attribute(ids, (-1, 3))
    fast, whole = (method(model, fast=fast).attribute(embedded, (-1, 3)) for fast in (True, False))
    assert_equal(whole, fast)
    assert_equal(whole.sum(-1), of_ids)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", EVERY)
def test_layers(family):
    model = tiny(family)
    blocks = next(each for each in model.modules() if isinstance(each, nn.ModuleList))
    for at_input in (True, False):
        fast, whole = (
            LayerAttnLRPx(model, list(blocks), fast=fast).attribute(
                token_ids(), (-1, 3), attribute_to_layer_input=at_input
            )
            for fast in (True, False)
        )
        for one, other in zip(whole, fast, strict=True):
            assert_equal(one, other)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", EVERY)
def test_ledgers(family, method):
    model, ids = tiny(family), token_ids()
    fast, whole = (ledger(method(model, fast=fast), ids, (-1, 3)) for fast in (True, False))
    assert fast.closes(1e-10)
    assert whole.closes(1e-10)
    largest = max(entry.amount.abs().max().item() for entry in fast.entries)
    torch.testing.assert_close(whole.delta, fast.delta, rtol=0, atol=1e-12 * largest)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", EVERY)
def test_many_targets(family):
    model, ids = tiny(family), token_ids()
    targets = [(-1, 3), (-2, 4), (-1, 5)]
    fast, whole = (
        AttnLRPx(model, fast=fast).attribute_targets(ids, targets) for fast in (True, False)
    )
    assert_equal(whole, fast)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", EVERY)
def test_neurons(family):
    model = tiny(family)
    blocks = next(each for each in model.modules() if isinstance(each, nn.ModuleList))
    fast, whole = (
        NeuronAttnLRPx(model, blocks[-1], fast=fast).attribute(token_ids(), (2, 3))
        for fast in (True, False)
    )
    assert_equal(whole, fast)
