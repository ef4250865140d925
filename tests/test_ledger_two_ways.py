"""The ledger of the graph has the entries that the ledger of declared architectures has."""

from dataclasses import replace

import pytest
import torch
from models import FAMILIES, HEADS, MORE_FAMILIES, tiny, token_ids
from replica_ledger import Exact

from captum_lrpx import AnswerLogits, AttnLRPx, LRPx, TokenLogits, TokenSum, ledger
from captum_lrpx.recipes import ATTN_LRP, LRP_UNIFORM_GATE, NAMED_RECIPES
from captum_lrpx.rules import (
    ActivationGradient,
    Alpha1Beta0,
    AttentionGradient,
    Epsilon,
    Gamma,
    NormGradient,
    ProductGradient,
)

EVERY = FAMILIES | MORE_FAMILIES
every_family = pytest.mark.parametrize("family", EVERY)
TARGETS = {"lm": [(3, 5), (1, 2)], "sequence": [1, 0], "token": [(3, 1), (0, 0)], "qa": [2, 0]}


def entries(book):
    found = {(entry.kind, entry.path, entry.layer): entry.amount for entry in book.entries}
    assert len(found) == len(book.entries)
    return found


def assert_same(kind, forward, *call, rtol=1e-11, **options):
    with Exact():
        books = [ledger(kind(forward, fast=fast, **options), *call) for fast in (True, False)]
    expected, found = map(entries, books)
    scale = max(amount.abs().max() for amount in expected.values())
    # Lines of layers that nothing explained depends on may be missing.
    nothing = torch.zeros_like(books[0].value)
    for line in expected.keys() | found.keys():
        pair = (found.get(line, nothing), expected.get(line, nothing))
        torch.testing.assert_close(*pair, rtol=0, atol=rtol * scale.item(), msg=str(line))


@every_family
@pytest.mark.parametrize("recipe", NAMED_RECIPES.values(), ids=NAMED_RECIPES)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_recipes(family, recipe, attn):
    model = tiny(family, attn=attn)
    assert_same(LRPx, model, token_ids(2), TARGETS["lm"], recipe=recipe)


CHANGES = [
    {"norm": NormGradient()},
    {"activation": ActivationGradient()},
    {"attention": AttentionGradient()},
    {"gate": ProductGradient()},
    {"linear": Epsilon(0.1)},
    {"linear": Gamma(0.3)},
    {"linear": Alpha1Beta0()},
]


@every_family
@pytest.mark.parametrize("recipe", [LRP_UNIFORM_GATE, ATTN_LRP], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("changed", CHANGES, ids=str)
def test_other_rules(family, recipe, changed):
    if (family, *changed) in {("roberta", "activation"), ("bloom", "attention")}:
        pytest.skip("the graph says more exactly where it is")
    model = tiny(family, activation="gelu")
    assert_same(LRPx, model, token_ids(2), TARGETS["lm"], recipe=replace(recipe, **changed))


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("head", HEADS[1:])
@every_family
def test_heads(family, head, method):
    if (family, head) == ("opt", "token"):
        pytest.skip("transformers has no such class")
    model = tiny(family, head)
    forward = AnswerLogits(model) if head == "qa" else model
    assert_same(method, forward, token_ids(2), TARGETS[head])


@pytest.mark.parametrize("side", ["left", "right"])
@every_family
def test_padded_batches(family, side):
    ids, mask = token_ids(3), torch.ones(3, 5, dtype=torch.long)
    empty = slice(0, 2) if side == "left" else slice(3, 5)
    ids[1, empty] = mask[1, empty] = 0
    at = torch.tensor([4, 3 if side == "left" else 1, 2])
    forward = TokenLogits(tiny(family, attn="sdpa"))
    assert_same(AttnLRPx, forward, ids, 5, (mask, at))


@every_family
def test_embeddings_and_masks_of_finite_numbers(family):
    model = tiny(family)
    embeds = model.get_input_embeddings()(token_ids(2)).detach()
    assert_same(AttnLRPx, model, embeds, (3, 5))
    if family not in ("bloom", "opt"):
        mask = torch.randn(2, 1, 5, 5, dtype=torch.float64)
        assert_same(AttnLRPx, TokenLogits(model), token_ids(2), 5, (mask, 3))


@every_family
def test_log_probabilities(family):
    assert_same(LRPx, TokenSum(tiny(family), "log_prob"), token_ids(2), None, (None, [5, 6], 3))


@every_family
def test_bfloat16(family):
    model = tiny(family, dtype=torch.bfloat16)
    books = [ledger(AttnLRPx(model, fast=fast), token_ids(2), (3, 5)) for fast in (True, False)]
    assert entries(books[0]).keys() == entries(books[1]).keys()
    for book in books:
        assert book.closes(2e-1)
