"""ALTI's mathematics against replicas that hold every transformed vector."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from captum_lrpx.alti.attention_weights import Order, attention_of
from captum_lrpx.alti.formulas import (
    contributions,
    fold_frozen_norm,
    logit_update,
    normalize,
    rollout,
    rollout_by_layer,
)
from captum_lrpx.fast.sparse import product_of_sparse
from captum_lrpx.trace.graph import name_of
from captum_lrpx.trace.operations import is_kernel

# Replicas: the formulas as they are written, one vector for each pair of positions ---------------


def transformed_vectors(weights, values, output_weight, residual, first_row=0):
    """``T_ij`` ``[R, T, D]``."""
    values = values.repeat_interleave(weights.shape[0] // values.shape[0], 0)
    vectors = torch.einsum("hij,hjz,hzd->ijd", weights, values, output_weight)
    for row in range(len(residual)):
        vectors[row, first_row + row] += residual[row]
    return vectors


def plain_contributions(vectors, resultant):
    """``||y_i||_1 - ||T_ij - y_i||_1``."""
    distance = (vectors - resultant.unsqueeze(1)).abs().sum(-1)
    return resultant.abs().sum(-1, keepdim=True) - distance


def alti_matrix(**block):
    return normalize(contributions(**block), first_row=block["first_row"])


# What is drawn ------------------------------------------------------------------------------------


def attention(heads, rows, tokens, pattern, first_row, generator):
    query = torch.arange(first_row, first_row + rows).unsqueeze(1)
    key = torch.arange(tokens)
    allowed = {
        "all": torch.ones(rows, tokens, dtype=torch.bool),
        "causal": key <= query,
        "window": (key <= query) & (key > query - 2),
        "left padding": (key <= query) & (key >= 1) | (key == query),
        "right padding": (key < tokens - 1).expand(rows, tokens),
        "nothing": torch.zeros(rows, tokens, dtype=torch.bool),
    }[pattern]
    scores = torch.randn(heads, rows, tokens, generator=generator, dtype=torch.float64)
    return scores.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num(0.0)


PATTERNS = ["all", "causal", "window", "left padding", "right padding", "nothing"]


@st.composite
def blocks(draw):
    """One attention block: keyword arguments of :func:`contributions`."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    groups, shared = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    tokens, size, hidden = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    first_row = draw(st.integers(0, tokens - 1))
    rows = draw(st.integers(1, tokens - first_row))
    heads = groups * shared

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = attention(heads, rows, tokens, draw(st.sampled_from(PATTERNS)), first_row, generator)
    block = {
        "weights": weights,
        "values": normal(groups, tokens, size),
        "output_weight": normal(heads, size, hidden),
        "residual": normal(rows, hidden),
        "first_row": first_row,
    }
    resultant = transformed_vectors(**block).sum(1) + normal(hidden)  # with a bias
    resultant[resultant.abs() < draw(st.sampled_from([0.0, 0.5]))] = 0.0
    return block | {"resultant": resultant}


def vectors_of(block):
    return transformed_vectors(**{k: v for k, v in block.items() if k != "resultant"})


# Contributions and their matrix -------------------------------------------------------------------


@given(block=blocks(), chunk=st.integers(1, 200))
def test_contributions_equal_the_difference_of_norms(block, chunk):
    expected = plain_contributions(vectors_of(block), block["resultant"])
    actual = contributions(**block, chunk=chunk)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@given(block=blocks())
def test_shares_are_stochastic_and_zero_where_nothing_is_read(block):
    matrix = alti_matrix(**block)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones(len(matrix), dtype=torch.float64))
    unread = (block["weights"] == 0).all(0)
    unread.diagonal(block["first_row"]).fill_(value=False)
    assert not matrix[unread].any()


@given(block=blocks())
def test_rows_can_be_computed_apart(block):
    whole = alti_matrix(**block)
    for row in range(len(whole)):
        taken = slice(row, row + 1)
        one = {name: block[name][taken] for name in ("residual", "resultant")}
        one |= {name: block[name] for name in ("values", "output_weight")}
        one |= {"weights": block["weights"][:, taken], "first_row": block["first_row"] + row}
        single = alti_matrix(**one)
        torch.testing.assert_close(single, whole[taken])


def test_a_row_without_mass_keeps_its_own_token():
    mass = torch.tensor([[-1.0, -2.0, 0.0], [3.0, -1.0, 1.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [0.75, 0.0, 0.25]])
    torch.testing.assert_close(normalize(mass, first_row=1), expected)


def test_nothing_grows_with_tokens_squared_times_hidden_size():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
            return result

    heads, tokens, size, hidden, chunk = 2, 64, 4, 32, 4096
    generator = torch.Generator().manual_seed(0)
    weights = attention(heads, tokens, tokens, "causal", 0, generator)
    values = torch.randn(heads, tokens, size, dtype=torch.float64)
    output_weight = torch.randn(heads, size, hidden, dtype=torch.float64)
    residual = torch.randn(tokens, hidden, dtype=torch.float64)
    with Largest() as largest:
        normalize(contributions(weights, values, output_weight, residual, residual, chunk=chunk))
    assert largest.elements <= max(chunk, weights.numel()) < tokens * tokens * hidden / 8


@pytest.mark.parametrize("massive", [1.0, 3000.0])
def test_float32_does_not_cancel_when_one_dimension_is_massive(massive):
    torch.manual_seed(0)
    heads, tokens, size, hidden = 2, 24, 8, 64
    weights = attention(heads, tokens, tokens, "causal", 0, torch.Generator().manual_seed(0))
    values = torch.randn(heads, tokens, size, dtype=torch.float64)
    output_weight = torch.randn(heads, size, hidden, dtype=torch.float64) / size
    residual = torch.randn(tokens, hidden, dtype=torch.float64)
    residual[:, 7] = massive
    vectors = transformed_vectors(weights, values, output_weight, residual)
    resultant = vectors.sum(1)
    exact = plain_contributions(vectors, resultant)
    off_diagonal = torch.ones(tokens, tokens, dtype=torch.bool).tril(-1)

    def median_error(approximate):
        error = ((approximate.double() - exact) / exact).abs()
        return error[off_diagonal].median().item()

    single = [x.float() for x in (weights, values, output_weight, residual, resultant)]
    assert median_error(contributions(*single)) < 2e-6
    cancelled = plain_contributions(vectors.float(), resultant.float())
    assert (median_error(cancelled) > 1e-4) == (massive > 1)


@given(block=blocks(), centered=st.booleans())
def test_a_folded_norm_is_the_norm_of_each_vector(block, centered):
    rows, hidden = block["residual"].shape
    scale = torch.rand(rows, 1, dtype=torch.float64) + 0.5
    weight = torch.randn(hidden, dtype=torch.float64)
    vectors = vectors_of(block)
    if centered:
        vectors = vectors - vectors.mean(-1, keepdim=True)
    vectors = vectors * scale.unsqueeze(1) * weight
    folded = fold_frozen_norm(
        block["weights"],
        block["output_weight"],
        block["residual"],
        scale=scale,
        weight=weight,
        centered=centered,
    )
    weights, output_weight, residual = folded
    actual = transformed_vectors(
        weights, block["values"], output_weight, residual, block["first_row"]
    )
    torch.testing.assert_close(actual, vectors)


# Logit updates and the way back -------------------------------------------------------------------


@given(block=blocks(), seed=st.integers(0, 2**16))
def test_logit_update_is_the_projection_of_the_transformed_vectors(block, seed):
    generator = torch.Generator().manual_seed(seed)
    weights, values, output_weight = (block[n] for n in ("weights", "values", "output_weight"))
    directions = torch.randn(block["residual"].shape, generator=generator, dtype=torch.float64)
    actual = logit_update(weights, values, directions @ output_weight.mT)
    values = values.repeat_interleave(weights.shape[0] // values.shape[0], 0)
    vectors = torch.einsum("hij,hjz,hzd->hijd", weights, values, output_weight)
    torch.testing.assert_close(actual, torch.einsum("hijd,id->hj", vectors, directions))


@given(
    layers=st.integers(1, 4),
    updates=st.integers(1, 3),
    tokens=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_rollout_is_the_product_of_all_matrices_below(layers, updates, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(layers, 2, updates, tokens, generator=generator, dtype=torch.float64)
    shares = torch.rand(layers, 2, tokens, tokens, generator=generator, dtype=torch.float64)
    shares /= shares.sum(-1, keepdim=True)
    below = torch.eye(tokens, dtype=torch.float64).expand(2, -1, -1)
    expected = []
    for layer in range(layers):
        expected.append(rows[layer] @ below)
        below = shares[layer] @ below

    def from_the_last():
        return reversed(list(zip(rows, shares, strict=True)))

    by_layer = rollout_by_layer(from_the_last())
    torch.testing.assert_close(by_layer, torch.stack(expected, 1))
    torch.testing.assert_close(rollout(from_the_last()), by_layer.sum(1))
    torch.testing.assert_close(by_layer.sum(-1), rows.sum(-1).transpose(0, 1))


@pytest.mark.parametrize("carry", [rollout, rollout_by_layer])
def test_there_must_be_a_layer(carry):
    with pytest.raises(ValueError, match="no layer"):
        carry([])


# What these are computed from ---------------------------------------------------------------------


MASKS = {
    "none": lambda _: {},
    "causal": lambda _: {"is_causal": True},
    "allowed": lambda t: {"attn_mask": torch.ones(t, t, dtype=torch.bool).tril()},
    "of each example": lambda t: {
        "attn_mask": torch.stack(
            [torch.ones(t, t).tril().bool(), torch.ones(t, t).bool()]
        ).unsqueeze(1)
    },
    "added": lambda t: {"attn_mask": torch.randn(2, 4, t, t, dtype=torch.float64)},
    "of keys": lambda t: {"attn_mask": (torch.arange(t) < max(1, t - 2)).view(1, 1, 1, t)},
    "a row without any": lambda t: {"attn_mask": torch.ones(t, t, dtype=torch.bool).tril(-1)},
    "scaled": lambda _: {"scale": 0.3},
}


def mixing_node(output):
    """The node of a kernel, or of the product of weights and values."""
    node = output.grad_fn
    while not (name_of(node) == "Bmm" or is_kernel(name_of(node))):
        ((node, _), *_) = node.next_functions
    return node


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("mask", MASKS)
def test_weights_of_sdpa_are_those_that_it_uses(mask, tokens, groups):
    torch.manual_seed(0)
    query = torch.randn(2, 4, tokens, 3, dtype=torch.float64).requires_grad_()
    key, value = torch.randn(2, 2, groups, tokens, 3, dtype=torch.float64).unbind(0)
    output = F.scaled_dot_product_attention(
        query, key, value.requires_grad_(), **MASKS[mask](tokens), enable_gqa=groups < 4
    )
    node, rows = mixing_node(output), torch.arange(8 * tokens).view(2, 4, tokens)
    weights = attention_of(node, name_of(node), Order(rows)).weights
    some = torch.tensor([tokens - 1, 0])
    for example in range(2):
        shared = value[example].repeat_interleave(4 // groups, 0)
        whole = weights.of(example, slice(0, tokens))
        torch.testing.assert_close(whole @ shared, output[example])
        torch.testing.assert_close(weights.of(example, some), whole[:, some])


@given(
    rows=st.integers(1, 4),
    outputs=st.integers(1, 12),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_product_with_a_sparse_gradient(rows, outputs, zeros, seed):
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(2, rows, outputs, generator=generator, dtype=torch.float64)
    grad[torch.rand(2, rows, generator=generator) < zeros] = 0.0
    grad[:, :, torch.rand(outputs, generator=generator) < zeros] = 0.0
    weight = torch.randn(outputs, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(product_of_sparse(grad, weight), grad @ weight)
