"""Ground-truth metrics: each against its definition, with ties broken in all ways by hand."""

import itertools
import math
from functools import partial

import pytest
import torch
from captum.attr import InputXGradient, LayerGradientXActivation, Saliency
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from models import tiny, token_ids

from captum_lrpx import ATTN_LRP, AttnLRPx, LRPx, TokenLogits, propagation
from captum_lrpx.metrics import (
    ground_truth_metric,
    mean_reciprocal_rank,
    per_token_accuracy,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    token_relevances,
)

# The definitions, for one order of the tokens, most relevant first, and evidence as booleans.


def slow_pointing(order, evidence, k):
    return float(any(evidence[token] for token in order[:k]))


def slow_reciprocal_rank(order, evidence):
    for rank, token in enumerate(order, 1):
        if evidence[token]:
            return 1 / rank
    raise AssertionError


def slow_rank_accuracy(order, evidence):
    return sum(evidence[token] for token in order[: sum(evidence)]) / sum(evidence)


def slow_top_accuracy(order, evidence):
    named = set(order[: sum(evidence)])
    return sum((token in named) == evidence[token] for token in order) / len(order)


def over_all_orders(definition, values, evidence):
    """Mean over all orders of the tokens in which no token stands before a more relevant one."""
    orders = [
        order
        for order in itertools.permutations(range(len(values)))
        if all(values[a] >= values[b] for a, b in itertools.pairwise(order))
    ]
    return sum(definition(order, evidence) for order in orders) / len(orders)


def slow_mass(values, evidence):
    positive = [max(value, 0.0) for value in values]
    inside = sum(
        value for value, is_evidence in zip(positive, evidence, strict=True) if is_evidence
    )
    return inside / sum(positive) if sum(positive) > 0 else 0.0


def slow_sign_accuracy(values, evidence):
    return sum((v > 0) == e for v, e in zip(values, evidence, strict=True)) / len(values)


METRICS = {
    "PG-1": (pointing_game, partial(over_all_orders, partial(slow_pointing, k=1))),
    "PG-2": (partial(pointing_game, k=2), partial(over_all_orders, partial(slow_pointing, k=2))),
    "PG-9": (partial(pointing_game, k=9), partial(over_all_orders, partial(slow_pointing, k=9))),
    "MRR": (mean_reciprocal_rank, partial(over_all_orders, slow_reciprocal_rank)),
    "RMA": (relevance_mass_accuracy, slow_mass),
    "RRA": (relevance_rank_accuracy, partial(over_all_orders, slow_rank_accuracy)),
    "PTA": (per_token_accuracy, slow_sign_accuracy),
    "PTA-K": (
        partial(per_token_accuracy, selection="top"),
        partial(over_all_orders, slow_top_accuracy),
    ),
}
RANKED = [name for name in METRICS if name != "RMA"]
every_metric = pytest.mark.parametrize("name", METRICS)


def slow(name, attributions, evidence, mask):
    """One metric, row by row, on the tokens that count."""
    result = []
    for row, truth, counts in zip(
        attributions.tolist(), evidence.tolist(), mask.tolist(), strict=True
    ):
        values = [value for value, here in zip(row, counts, strict=True) if here]
        there = [value for value, here in zip(truth, counts, strict=True) if here]
        undefined = not any(there) or any(map(math.isnan, values))
        result.append(math.nan if undefined else METRICS[name][1](values, there))
    return torch.tensor(result, dtype=torch.float64)


# Few different values, so that ties are the rule.
tied = st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0])
special = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 2.0, math.nan])
real = st.floats(-1e3, 1e3)


@st.composite
def batches(draw, values=None):
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 5))

    def table(of):
        row = st.lists(of, min_size=length, max_size=length)
        return torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)))

    entries = draw(st.sampled_from([tied, real, special])) if values is None else values
    return table(entries).double(), table(st.booleans()), table(st.booleans())


@every_metric
@examples(100)
@given(batch=batches())
def test_a_metric_is_its_definition(name, batch):
    attributions, evidence, mask = batch
    found = METRICS[name][0](attributions, evidence, mask=mask)
    expected = slow(name, attributions, evidence, mask)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@every_metric
@examples(50)
@given(batch=batches(tied))
def test_rows_are_independent_and_the_mask_is_removal(name, batch):
    attributions, evidence, mask = batch
    metric = METRICS[name][0]
    together = metric(attributions, evidence, mask=mask)
    for row, (values, truth, counts) in enumerate(zip(attributions, evidence, mask, strict=True)):
        if counts.any():
            alone = metric(values[counts][None], truth[counts][None])
            torch.testing.assert_close(together[row : row + 1], alone, equal_nan=True)


@pytest.mark.parametrize("name", RANKED)
@examples(50)
@given(batch=batches(tied))
def test_only_order_and_sign_matter_to_ranks(name, batch):
    attributions, evidence, mask = batch
    metric = METRICS[name][0]
    found = metric(attributions.sinh() * 7, evidence, mask=mask)
    torch.testing.assert_close(
        found, metric(attributions, evidence, mask=mask), equal_nan=True, rtol=0, atol=0
    )


# By hand: these examples are those of docs/metrics.md.
RELEVANCES = torch.tensor([[0.2, 0.8, -0.4, 0.6, 0.4]], dtype=torch.float64)
EVIDENCE = torch.tensor([[False, False, False, True, True]])
BY_HAND = {
    "PG-1": 0.0,
    "PG-2": 1.0,
    "MRR": 1 / 2,
    "RMA": 0.5,
    "RRA": 1 / 2,
    "PTA": 3 / 5,
    "PTA-K": 3 / 5,
}
TIES = torch.tensor([[0.5, 0.5, 0.1, 0.5]], dtype=torch.float64)
TIES_EVIDENCE = torch.tensor([[True, False, False, False]])
TIES_BY_HAND = {
    "PG-1": 1 / 3,
    "PG-2": 2 / 3,
    "MRR": (1 + 1 / 2 + 1 / 3) / 3,
    "RMA": 0.5 / 1.6,
    "RRA": 1 / 3,
    "PTA": 1 / 4,
    "PTA-K": (1 + 1 / 2 + 1 / 2) / 3,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_examples_of_the_page(name):
    metric = METRICS[name][0]
    assert metric(RELEVANCES, EVIDENCE).item() == pytest.approx(BY_HAND[name], abs=1e-12)
    assert metric(TIES, TIES_EVIDENCE).item() == pytest.approx(TIES_BY_HAND[name], abs=1e-12)


@every_metric
def test_without_evidence_there_is_nothing_to_measure(name):
    metric = METRICS[name][0]
    values = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    evidence = torch.tensor([[False, False], [True, False], [True, False]])
    mask = torch.tensor([[True, True], [False, True], [False, False]])
    assert metric(values, evidence, mask=mask).isnan().all()


@every_metric
def test_nan_counts_only_where_the_mask_says_so(name):
    metric = METRICS[name][0]
    values = torch.tensor([[1.0, math.nan, 0.5]])
    evidence = torch.tensor([[True, False, False]])
    assert metric(values, evidence).isnan().all()
    mask = torch.tensor([[1, 0, 1]])  # as tokenizers give it
    without = metric(torch.tensor([[1.0, 0.5]]), torch.tensor([[True, False]]))
    torch.testing.assert_close(metric(values, evidence, mask=mask), without)


def test_an_infinite_relevance_is_first_but_has_no_share():
    values = torch.tensor([[math.inf, 1.0]])
    evidence = torch.tensor([[True, False]])
    assert pointing_game(values, evidence).item() == 1
    assert mean_reciprocal_rank(-values, evidence).item() == 0.5
    assert relevance_mass_accuracy(values, evidence).isnan().all()
    assert relevance_mass_accuracy(-values, evidence).item() == 0


def test_without_positive_relevance_none_is_on_evidence():
    values = torch.tensor([[-1.0, -2.0], [0.0, 0.0]])
    assert relevance_mass_accuracy(values, torch.ones(2, 2, dtype=bool)).tolist() == [0, 0]


@pytest.mark.parametrize("size", [1e38, 1e-44])
def test_mass_neither_overflows_nor_vanishes(size):
    values = torch.full((1, 4), size)
    evidence = torch.tensor([[True, False, False, False]])
    assert relevance_mass_accuracy(values, evidence).item() == 0.25


@pytest.mark.parametrize("name", [name for name in METRICS if name != "PTA"])
def test_constant_attributions_are_worth_as_much_as_random_ones(name):
    metric = METRICS[name][0]
    evidence = torch.tensor([[True, False, False, True, False]])
    constant = metric(torch.ones(1, 5, dtype=torch.float64), evidence)
    orders = list(itertools.permutations(range(5)))
    values = torch.tensor(orders, dtype=torch.float64) + (1e9 if name == "RMA" else 0)
    every = metric(values, evidence.expand(len(orders), 5))
    assert constant.item() == pytest.approx(every.mean().item(), abs=1e-9)


def test_long_texts_with_ties_keep_their_precision():
    length = 4096
    evidence = torch.zeros(1, length, dtype=torch.bool)
    evidence[0, :2] = True
    same = torch.ones(1, length)
    assert pointing_game(same, evidence, k=10).item() == pytest.approx(
        1 - math.comb(length - 2, 10) / math.comb(length, 10), rel=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_metric
def test_lower_precision_gives_float32(name, dtype):
    values = torch.tensor([[1.0, 0.5, -2.0, 0.5]])
    evidence = torch.tensor([[False, True, False, True]])
    found = METRICS[name][0](values.to(dtype), evidence)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, METRICS[name][0](values, evidence))


def test_the_accuracy_follows_from_the_rank_accuracy():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 9, generator=generator, dtype=torch.float64)
    evidence = torch.rand(50, 9, generator=generator) < 0.4
    evidence[:, 0] = True
    missed = evidence.sum(-1) * (1 - relevance_rank_accuracy(values, evidence))
    found = per_token_accuracy(values, evidence, selection="top")
    torch.testing.assert_close(found, 1 - 2 * missed / 9)


def test_random_signs_are_right_for_half_of_the_tokens_and_magnitudes_for_the_evidence():
    generator = torch.Generator().manual_seed(0)
    values = 2 * torch.rand(2000, 12, generator=generator) - 1
    evidence = torch.zeros(2000, 12, dtype=torch.bool)
    evidence[:, :2] = True
    assert abs(per_token_accuracy(values, evidence).mean().item() - 0.5) < 0.01
    magnitudes = per_token_accuracy(values.abs() + 1e-9, evidence)
    torch.testing.assert_close(magnitudes, torch.full((2000,), 2 / 12))
    assert per_token_accuracy(torch.zeros(1, 4), torch.eye(4, dtype=torch.bool)[:1]).item() == 0.75


# What is refused.
GOOD = (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("attributions", "evidence", "mask", "error", "message"),
    [
        (torch.ones(3), GOOD[1], None, AssertionError, "batch of one"),
        (torch.ones(2, 3, 4), GOOD[1], None, AssertionError, "token_relevances"),
        (torch.ones(2, 3, dtype=torch.long), GOOD[1], None, AssertionError, "floating-point"),
        ((GOOD[0],), GOOD[1], None, AssertionError, "tuple"),
        (torch.ones(2, 0), torch.ones(2, 0, dtype=torch.bool), None, AssertionError, "no tokens"),
        (GOOD[0], torch.ones(2, 3), None, AssertionError, "`evidence` must be a tensor of bool"),
        (GOOD[0], torch.ones(2, 4, dtype=torch.bool), None, AssertionError, r"\[2, 3\]"),
        (GOOD[0], torch.tensor([[1, 2, 0], [0, 1, 2]]), None, ValueError, "0 and 1 only"),
        (GOOD[0], GOOD[1], torch.ones(2, 3), AssertionError, "`mask` must be a tensor of bool"),
        (GOOD[0], GOOD[1], torch.ones(3, dtype=torch.bool), AssertionError, "`mask` must have"),
        (GOOD[0], [[True]], None, AssertionError, "list"),
    ],
)
@every_metric
def test_what_does_not_fit_is_refused(name, attributions, evidence, mask, error, message):
    with pytest.raises(error, match=message):
        METRICS[name][0](attributions, evidence, mask=mask)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_k_is_a_number_of_tokens(k):
    with pytest.raises(ValueError, match="`k` is a number of tokens"):
        pointing_game(*GOOD, k=k)


def test_an_unknown_selection_is_refused():
    with pytest.raises(ValueError, match="positive or top"):
        per_token_accuracy(*GOOD, selection="threshold")


# With attribution objects.
@pytest.fixture(scope="module")
def case():
    model = tiny("llama")
    ids = token_ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    evidence = torch.zeros(2, 6, dtype=torch.bool)
    evidence[:, 1:3] = True
    return TokenLogits(model), ids, model.get_input_embeddings()(ids).detach(), mask, evidence


@pytest.mark.parametrize("method", [LRPx, AttnLRPx, InputXGradient, Saliency])
@every_metric
def test_the_wrapper_is_the_metric_of_the_attributions(name, method, case):
    forward, _, embeds, mask, evidence = case
    metric, arguments = METRICS[name][0], {"target": 7, "additional_forward_args": (mask,)}
    attribute = method(forward).attribute
    found = ground_truth_metric(metric, attribute, embeds, evidence, mask=mask, **arguments)
    expected = metric(attribute(embeds, **arguments).detach().sum(-1), evidence, mask=mask)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert found.shape == (2,)
    in_a_tuple = ground_truth_metric(metric, attribute, (embeds,), evidence, mask=mask, **arguments)
    torch.testing.assert_close(in_a_tuple, expected)


def test_ids_and_layers_give_the_same(case):
    forward, ids, embeds, mask, evidence = case
    arguments = {"target": 7, "additional_forward_args": (mask,), "mask": mask}
    measure = partial(ground_truth_metric, relevance_mass_accuracy)
    of_embeds = measure(LRPx(forward).attribute, embeds, evidence, **arguments)
    of_ids = measure(LRPx(forward).attribute, ids, evidence, **arguments)
    torch.testing.assert_close(of_ids, of_embeds)
    with propagation(forward.model, ATTN_LRP):
        layer = LayerGradientXActivation(forward, forward.model.get_input_embeddings())
        of_layer = measure(layer.attribute, ids, evidence, **arguments)
    of_inputs = measure(AttnLRPx(forward).attribute, ids, evidence, **arguments)
    torch.testing.assert_close(of_layer, of_inputs)


def test_a_delta_beside_the_attributions_is_refused(case):
    forward, ids, _, mask, evidence = case
    with pytest.raises(AssertionError, match="leave return_convergence_delta out"):
        ground_truth_metric(
            pointing_game,
            LRPx(forward).attribute,
            ids,
            evidence,
            target=7,
            additional_forward_args=(mask,),
            return_convergence_delta=True,
        )


def test_tokens_of_embeddings_are_sums():
    values = torch.randn(2, 3, 4)
    torch.testing.assert_close(token_relevances(values), values.sum(-1))
    assert token_relevances(values[..., 0]).data_ptr() == values.data_ptr()
