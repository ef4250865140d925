"""Where the package knows an architecture in detail, the graph of its operations says the same."""

import itertools

import pytest
import torch
from models import FAMILIES, HEADS, MORE_FAMILIES, tiny, token_ids
from state import snapshot

from captum_lrpx import AttnLRPx, LayerAttnLRPx, LRPx, ledger
from captum_lrpx.recipes import NAMED_RECIPES

CAST = {"llama", "mistral", "qwen2", "qwen3", "bloom"}
"""Families that compute norms or softmax in float32, whatever the model is in."""

TARGETS = {"lm": (-1, 3), "sequence": 1, "token": (2, 1), "qa": None}
CASES = [
    (family, attn)
    for family, attn in itertools.product(FAMILIES | MORE_FAMILIES, ["eager", "sdpa"])
    if attn == "eager" or (FAMILIES | MORE_FAMILIES)[family].interface
]


def assert_equal(found, expected, family):
    largest = expected.abs().max().item()
    atol = largest * (2e-7 if family in CAST else 1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def both(model, recipe, inputs, target):
    return [
        LRPx(model, recipe=recipe, fast=fast).attribute(inputs, target) for fast in (True, False)
    ]


@pytest.mark.parametrize("recipe", NAMED_RECIPES)
@pytest.mark.parametrize(("family", "attn"), CASES)
def test_language_models(family, attn, recipe):
    model = tiny(family, attn=attn)
    before = snapshot(model)
    fast, traced = both(model, NAMED_RECIPES[recipe], token_ids(), (-1, 3))
    assert_equal(traced, fast, family)
    assert snapshot(model) == before
