"""Correlations per row against Python loops over exact fractions."""

import math
from fractions import Fraction

import pytest
import torch
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from captum_lrpx.metrics import pearson, spearman


def slow_pearson(left, right):
    """In exact arithmetic up to the last step."""
    if any(map(math.isinf, left + right)) or any(map(math.isnan, left + right)):
        return math.nan
    left, right = [Fraction(x) for x in left], [Fraction(y) for y in right]
    if len(set(left)) < 2 or len(set(right)) < 2:
        return math.nan
    x = [value - sum(left) / len(left) for value in left]
    y = [value - sum(right) / len(right) for value in right]
    product = sum(a * b for a, b in zip(x, y, strict=True))
    square = product**2 / (sum(a * a for a in x) * sum(b * b for b in y))
    return math.copysign(math.sqrt(square), product)


def slow_ranks(values):
    return [
        (sum(other < value for other in values) + sum(other <= value for other in values) + 1) / 2
        for value in values
    ]


def slow_spearman(left, right):
    if any(map(math.isnan, left + right)):
        return math.nan
    return slow_pearson(slow_ranks(left), slow_ranks(right))


CORRELATIONS = {"pearson": (pearson, slow_pearson), "spearman": (spearman, slow_spearman)}
both = pytest.mark.parametrize("name", CORRELATIONS)
tied = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
special = st.sampled_from([-math.inf, -1.0, 0.0, 3.0, math.inf, math.nan])
real = st.integers(-1000, 1000).map(lambda number: number / 7)


@st.composite
def pairs(draw):
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    values = draw(st.sampled_from([tied, special, real]))

    def table(of):
        row = st.lists(of, min_size=length, max_size=length)
        return torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)))

    return table(values).double(), table(values).double(), table(st.booleans())


@both
@examples(200)
@given(batch=pairs())
def test_a_correlation_is_its_definition(name, batch):
    fast, definition = CORRELATIONS[name]
    expected = []
    for left, right, counts in zip(*batch, strict=True):
        expected.append(definition(left[counts].tolist(), right[counts].tolist()))
    left, right, mask = batch
    found = fast(left, right, mask=mask)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-7, equal_nan=True
    )


def test_the_examples_of_the_page():
    left = torch.tensor([[1.0, 2.0, 2.0, 5.0]], dtype=torch.float64)
    right = torch.tensor([[0.0, 1.0, 3.0, 8.0]], dtype=torch.float64)
    assert pearson(left, right).item() == pytest.approx(18 / math.sqrt(9 * 38))
    assert spearman(left, right).item() == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@both
def test_constant_rows_have_no_correlation(name):
    correlation = CORRELATIONS[name][0]
    constant = torch.full((1, 3), 0.1)  # whose mean is not exactly 0.1 in floating point
    varying = torch.tensor([[1.0, 2.0, 4.0]])
    assert correlation(constant, varying).isnan().all()
    assert correlation(varying, constant).isnan().all()
    mask = torch.tensor([[True, False, False]])
    assert correlation(varying, varying, mask=mask).isnan().all()


@pytest.mark.parametrize("scale", [1e37, 1e-37])
@both
def test_size_does_not_matter(name, scale):
    correlation = CORRELATIONS[name][0]
    left = torch.tensor([[1.0, -2.0, 3.0, 1.0]])
    right = torch.tensor([[0.5, -1.0, 1.0, 3.0]])
    torch.testing.assert_close(correlation(left * scale, right), correlation(left, right))
    torch.testing.assert_close(correlation(left, -right), -correlation(left, right))


def test_half_precision_is_computed_in_float32():
    left = torch.tensor([[1.0, 2.0, 2.0, 5.0]])
    right = torch.tensor([[0.0, 1.0, 3.0, 8.0]])
    found = pearson(left.bfloat16(), right.half())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pearson(left, right))


@both
def test_other_shapes_are_refused(name):
    correlation = CORRELATIONS[name][0]
    with pytest.raises(AssertionError, match="cannot be correlated"):
        correlation(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(AssertionError, match=r"\[B, T\]"):
        correlation(torch.ones(3), torch.ones(3))


def test_an_infinite_number_does_not_tie_with_the_masked():
    left = torch.tensor([[1.0, 2.0, math.inf, 0.0, 0.0]])
    right = torch.tensor([[1.0, 3.0, 2.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False, False]])
    assert spearman(left, right, mask=mask).item() == 0.5
