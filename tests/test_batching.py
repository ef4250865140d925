"""Sequences of unequal length: batches of similar length, results in order, padding for nothing."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import tiny, token_ids

from captum_lrpx import AttnLRPx, LogitDifference, LRPx
from captum_lrpx.batching import buckets, in_order

LENGTHS = st.lists(st.integers(1, 40))


@given(LENGTHS, st.integers(1, 100), st.none() | st.integers(1, 5))
def test_every_sequence_is_in_one_batch_and_none_is_too_large(lengths, max_tokens, max_rows):
    batches = buckets(lengths, max_tokens, max_rows)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        size = len(batch) * max(lengths[index] for index in batch)
        assert size <= max_tokens or len(batch) == 1
        assert len(batch) <= (max_rows or len(lengths))


@given(LENGTHS, st.integers(1, 100))
def test_batches_are_in_order_of_length(lengths, max_tokens):
    batches = buckets(lengths, max_tokens)
    flat = [index for batch in batches for index in batch]
    assert flat == sorted(flat, key=lambda index: (lengths[index], index))


@given(st.lists(st.integers(1, 40), max_size=9), st.integers(1, 200), st.none() | st.integers(1, 5))
def test_no_other_batches_in_order_of_length_cost_less(lengths, max_tokens, max_rows):
    def cost(batches):
        return sum(len(batch) * max(batch) + max(1, max_tokens // 16) for batch in batches)

    def is_allowed(batch):
        fits = len(batch) * max(batch) <= max_tokens and len(batch) <= (max_rows or len(batch))
        return fits or len(batch) == 1

    ordered = sorted(lengths)
    all_batches = (
        [ordered[start:stop] for start, stop in itertools.pairwise((0, *cuts, len(ordered)))]
        for count in range(len(ordered))
        for cuts in itertools.combinations(range(1, len(ordered)), count)
    )
    allowed = [batches for batches in all_batches if all(map(is_allowed, batches))]
    found = [
        [lengths[index] for index in batch] for batch in buckets(lengths, max_tokens, max_rows)
    ]
    assert cost(found) == min(map(cost, allowed), default=0)


def test_a_large_batch_is_divided_where_padding_would_cost_more_than_another_batch():
    short, long = [5] * 20, [50] * 4
    assert buckets(short + long, max_tokens=2048) == [tuple(range(20)), tuple(range(20, 24))]
    assert buckets([5] * 2 + long, max_tokens=2048) == [tuple(range(6))]


@given(LENGTHS, st.integers(1, 100))
def test_results_come_back_in_the_order_of_the_sequences(lengths, max_tokens):
    batches = buckets(lengths, max_tokens)
    results = ([f"result {index}" for index in batch] for batch in batches)
    assert in_order(batches, results) == [f"result {index}" for index in range(len(lengths))]


def test_a_batch_of_one_length_has_as_many_rows_as_fit():
    assert buckets([4] * 5, max_tokens=8) == [(0, 1), (2, 3), (4,)]
    assert buckets([], max_tokens=8) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3], 0), "max_tokens must be positive, not 0"),
        (([3], 4, 0), "max_rows must be positive, not 0"),
        (([3, 0], 4), "Sequence 1 has the length 0"),
    ],
)
def test_what_cannot_be_batched_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        buckets(*arguments)


def test_results_that_do_not_fit_the_batches_are_refused():
    with pytest.raises(ValueError, match="zip"):
        in_order([(0, 1)], [["only one"]])
    with pytest.raises(ValueError, match="zip"):
        in_order([(0,), (1,)], [["one batch"]])


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_relevances_from_batches_are_those_of_the_sequences_alone(family, method):
    """In float64, with SDPA: eager attention pads with NaN there."""
    model = tiny(family, attn="sdpa")
    rows = [token_ids(1, length, seed=length)[0] for length in (5, 2, 9, 5, 3, 7)]
    attribution = method(LogitDifference(model))

    def relevances(batch):
        ids = torch.nn.utils.rnn.pad_sequence([rows[index] for index in batch], batch_first=True)
        lengths = torch.tensor([len(rows[index]) for index in batch])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        found = attribution.attribute(ids, additional_forward_args=(mask, 5, 6, lengths - 1))
        return [row[:length] for row, length in zip(found, lengths, strict=True)]

    batches = buckets([len(row) for row in rows], max_tokens=12)
    assert max(map(len, batches)) > 1
    for ids, found in zip(rows, in_order(batches, map(relevances, batches)), strict=True):
        alone = attribution.attribute(ids[None], additional_forward_args=(None, 5, 6, len(ids) - 1))
        torch.testing.assert_close(found, alone[0], rtol=0, atol=1e-12)
