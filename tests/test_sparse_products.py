"""Backward products that skip zeros give what the whole product gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_lrpx.fast import sparse
from captum_lrpx.fast.sparse import product_of_sparse

patterns = st.lists(st.booleans(), min_size=1, max_size=9)


@given(
    rows=patterns,
    columns=patterns,
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


def grouped(grad, weight, ends):
    """One product for each group of rows."""
    parts = torch.tensor_split(grad, ends.long()[:-1])
    return torch.cat([part @ each for part, each in zip(parts, weight, strict=True)])


@given(
    groups=st.lists(patterns | st.just([]), min_size=1, max_size=4).filter(any),
    columns=st.lists(st.booleans(), min_size=2, max_size=12),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def test_any_pattern_of_zeros_in_groups(groups, columns, dtype, seed):
    """As of experts, some of which get no token."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor([row for group in groups for row in group])
    columns = torch.tensor(columns).repeat_interleave(16 // dtype.itemsize)
    ends = torch.tensor([len(group) for group in groups]).cumsum(0).int()
    grad = torch.randn(len(rows), len(columns), generator=generator) * rows[:, None] * columns
    weight = torch.randn(len(groups), 8, len(columns), generator=generator).to(dtype).mT
    grad = grad.to(dtype)
    found = product_of_sparse(grad, weight, ends)
    expected = grouped(grad.float(), weight.float(), ends)
    assert found.dtype == dtype
    close = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.float(), expected, rtol=close, atol=close)


@pytest.mark.parametrize(("first", "last"), [(0, 8), (8, 16), (3, 7), (13, 16), (6, 10)])
def test_products_of_groups_begin_where_kernels_can_read(monkeypatch, first, last):
    grad, ends = torch.zeros(6, 16), torch.tensor([2, 2, 6], dtype=torch.int32)
    grad[:, first:last] = torch.randn(6, last - first)
    weight, seen, plain = torch.randn(3, 16, 4), [], sparse._product

    def product(*args):
        seen.append(args[0])
        return plain(*args)

    monkeypatch.setattr(sparse, "_product", product)
    found = product_of_sparse(grad, weight, ends)
    torch.testing.assert_close(found, grouped(grad, weight, ends))
    assert seen[0].shape[1] == -(-last // 4) * 4 - first // 4 * 4
    assert seen[0].storage_offset() % 4 == seen[0].stride(0) % 4 == 0
