"""Backward products that skip zeros give what the whole product gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_lrpx.fast.sparse import product_of_sparse


@given(
    rows=st.lists(st.booleans(), min_size=1, max_size=9),
    columns=st.lists(st.booleans(), min_size=1, max_size=9),
    seed=st.integers(0, 999),
)
def test_any_pattern_of_zeros(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(len(rows), len(columns), generator=generator, dtype=torch.float64)
    grad = grad * torch.tensor(rows)[:, None] * torch.tensor(columns)
    weight = torch.randn(len(columns), 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        product_of_sparse(grad, weight), grad @ weight, rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 5)])
def test_a_gradient_of_zero(shape):
    result = product_of_sparse(torch.zeros(shape), torch.ones(5, 4))
    assert torch.equal(result, torch.zeros(*shape[:-1], 4))


def test_nan_is_not_zero():
    grad = torch.zeros(8, 8)
    grad[3, 2] = torch.nan
    result = product_of_sparse(grad, torch.ones(8, 4))
    assert result[3].isnan().all()
    assert not result[[0, 7]].isnan().any()
