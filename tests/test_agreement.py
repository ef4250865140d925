"""Agreement of estimates with effects, and its interval over rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_lrpx.metrics import Agreement, agreement, pearson, spearman

E = torch.tensor([[1.0, -2.0, 3.0, 0.5], [0.0, 1.0, 5.0, -4.0]])
M = torch.tensor([[2.0, -1.0, 3.5, 0.0], [1.0, 0.0, -5.0, 4.0]])


def test_correlations_are_over_the_nodes_of_a_row():
    found = agreement(E, M, k=2)
    assert found.pearson.equal(pearson(E, M))
    assert found.spearman.equal(spearman(E, M))


def test_layers_are_compared_at_once():
    parts = agreement([E[:, :3], E[:, 3:]], [M[:, :3], M[:, 3:]], k=2)
    assert parts.pearson.equal(agreement(E, M, k=2).pearson)
    tokens = agreement([E.reshape(2, 2, 2)], [M.reshape(2, 2, 2)], k=2)
    assert tokens.spearman.equal(parts.spearman)


def test_top_k_counts_by_size_whatever_the_sign():
    assert agreement(E, M, k=2).top_k.tolist() == [0.5, 1.0]
    assert agreement(E, M, k=9).top_k.tolist() == [1.0, 1.0]


def test_a_mean_has_an_interval_around_it():
    values = torch.tensor([0.0, 1.0] * 50)
    low, high = 0.5 - 2.2 * 0.05, 0.5 + 2.2 * 0.05  # two standard errors, and some play
    found = Agreement(values, values, values, 1).interval("pearson")
    assert found.mean == 0.5
    assert low < found.low < 0.43
    assert 0.57 < found.high < high


def test_rows_of_one_group_are_drawn_together():
    values = torch.arange(40.0).remainder(2)
    row = Agreement(values, values, values, 1)
    alike = row.interval("top_k", groups=torch.arange(20).repeat_interleave(2))
    assert alike.low == alike.high == 0.5, "every group has the same mean"
    apart = row.interval("top_k", groups=values.long())
    assert apart.low == 0
    assert apart.high == 1


def test_an_interval_is_the_same_whatever_the_default_device():
    row = Agreement(*3 * [torch.tensor([0.0, 1.0, 0.5])], 1)
    with torch.device("meta"):
        found = row.interval("pearson")
    assert found == row.interval("pearson")


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(0, 3))
def test_the_interval_holds_the_extremes_at_most(values, seed):
    row = torch.tensor(values)
    found = Agreement(row, row, row, 1).interval("spearman", seed=seed, resamples=50)
    assert min(values) - 1e-6 <= found.low <= found.high <= max(values) + 1e-6


def test_rows_without_a_correlation_do_not_count():
    found = agreement(torch.ones(1, 3), M[:1, :3])
    assert found.pearson.isnan().all()
    joined = Agreement.joined([found, agreement(E, M)])
    assert joined.interval("pearson").mean == pytest.approx(float(pearson(E, M).double().mean()))
    assert torch.tensor(found.interval("pearson")).isnan().all()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(AssertionError, match="same layers and nodes"):
        agreement(E, M[:, :2])
    with pytest.raises(ValueError, match="k"):
        agreement(E, M, k=0)
    with pytest.raises(ValueError, match="measure"):
        agreement(E, M).interval("kendall")
    with pytest.raises(ValueError, match="level"):
        agreement(E, M).interval("pearson", level=95)
    with pytest.raises(ValueError, match="same `k`"):
        Agreement.joined([agreement(E, M, k=1), agreement(E, M, k=2)])
