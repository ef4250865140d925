"""Meta-attributions: Shapley values of games whose worth is an attribution."""

import math
import sys
from importlib.util import find_spec
from itertools import combinations

import pytest
import torch
from captum.attr import InputXGradient
from models import tiny, token_ids

from captum_lrpx import AttnLRPx, LRPx, meta_attributions

shapiq = pytest.mark.skipif(not find_spec("shapiq"), reason="needs shapiq")
TARGET, GONE = (-1, 7), 2


def brute_force(worth, players, tokens):
    """Every coalition, by the formula with factorials: ``[T, T]``."""
    n = len(players)
    values = torch.zeros(tokens, tokens, dtype=torch.float64)
    for player in players:
        others = [each for each in players if each != player]
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for coalition in combinations(others, size):
                values[:, player] += weight * (worth({*coalition, player}) - worth({*coalition}))
    return values


def worth_of(method, ids, stays=()):
    known = {}

    def worth(coalition):
        key = frozenset(coalition)
        if key not in known:
            text = ids.clone()
            for place in range(ids.shape[1]):
                if place not in key and place not in stays:
                    text[0, place] = GONE
            known[key] = method.attribute(text, target=TARGET)[0]
        return known[key]

    return worth


@shapiq
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_eight_tokens_are_brute_force(method):
    explained, ids = method(tiny("gpt2")), token_ids(1, 8)
    found = meta_attributions(explained, ids, GONE, TARGET)
    expected = brute_force(worth_of(explained, ids), range(8), 8)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-10)
    assert found.exact
    assert found.explanations == 2**8
    assert found.values.abs().max() > 1e-3


@shapiq
@pytest.mark.parametrize("approximator", ["kernel", "permutation"])
def test_rows_sum_to_what_the_text_has_more_than_the_baseline(approximator):
    """Thirty tokens cost as many explanations as the budget says, for all rows together."""
    model = tiny("gpt2", max_position_embeddings=32)
    explained, ids = AttnLRPx(model), token_ids(1, 30)
    found = meta_attributions(
        explained, ids, GONE, TARGET, budget=200, approximator=approximator, examples_per_eval=64
    )
    whole = explained.attribute(ids, target=TARGET)[0]
    empty = explained.attribute(torch.full_like(ids, GONE), target=TARGET)[0]
    torch.testing.assert_close(found.values.sum(1), whole - empty, rtol=0, atol=1e-8)
    assert found.error.abs().max() < 1e-8
    assert not found.exact
    assert 30 < found.explanations <= 200


@shapiq
@pytest.mark.parametrize("approximator", ["kernel", "permutation"])
def test_estimates_come_close(approximator):
    explained, ids = AttnLRPx(tiny("bert")), token_ids(1, 7)
    target = (3, 7)
    exact = meta_attributions(explained, ids, GONE, target)
    rough = meta_attributions(explained, ids, GONE, target, budget=100, approximator=approximator)
    assert rough.explanations <= 100
    relative = (rough.values - exact.values).norm() / exact.values.norm()
    assert 0 < relative < (0.2 if approximator == "kernel" else 0.8)


@shapiq
def test_tokens_that_stay_are_no_players():
    explained, ids = AttnLRPx(tiny("llama")), token_ids(1, 5)
    mask = torch.tensor([[False, True, True, False, True]])
    found = meta_attributions(explained, ids, GONE, TARGET, mask=mask)
    expected = brute_force(worth_of(explained, ids, stays=(0, 3)), [1, 2, 4], 5)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-10)
    assert found.values[:, [0, 3]].eq(0).all()
    assert found.explanations == 2**3


@shapiq
def test_a_model_without_interactions_has_a_diagonal():
    weight = torch.randn(4, 3, dtype=torch.float64)
    embeddings = torch.randn(1, 4, 3, dtype=torch.float64)
    method = InputXGradient(lambda x: (x * weight).sum((1, 2)))
    found = meta_attributions(method, embeddings)
    expected = (weight * embeddings[0]).sum(-1).diag()
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-12)


@shapiq
def test_a_product_of_two_tokens_is_influence_of_one_on_the_other():
    """Each attribution of f = x0 * x1 is x0 x1; it needs both tokens, and is shared by them."""
    method = InputXGradient(lambda x: x[:, 0, 0] * x[:, 1, 0])
    found = meta_attributions(method, torch.tensor([[[2.0], [3.0], [5.0]]]))
    expected = torch.tensor([[3.0, 3.0, 0.0], [3.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(found.values, expected.double())


@shapiq
def test_what_cannot_be_asked_is_refused():
    explained, ids = AttnLRPx(tiny("gpt2")), token_ids(1, 12)
    for message, options in [
        ("no natural baseline", {"baselines": None}),
        ("`approximator` is", {"approximator": "exact"}),
        ("need 14 coalitions", {"budget": 13}),
        ("budget", {"budget": 0}),
        ("examples_per_eval", {"examples_per_eval": 0}),
        ("of one text", {"inputs": token_ids(2, 12)}),
    ]:
        given = {"inputs": ids, "baselines": GONE, "target": TARGET, **options}
        with pytest.raises(ValueError, match=message):
            meta_attributions(explained, **given)


def test_without_shapiq_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "shapiq", None)
    with pytest.raises(ImportError, match=r"captum-lrpx\[shapiq\]"):
        meta_attributions(AttnLRPx(tiny("gpt2")), token_ids(1, 5), GONE, TARGET)
