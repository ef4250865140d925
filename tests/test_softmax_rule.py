"""The softmax alone under AttnLRP's rule, against the paper's proof D.6 written out in loops.

The rule has no code of its own: the gradient of softmax, times its input, is the rule. By equation
42 ``R_x_i`` is the sum of ``(x_i - s_j x_i) R_s_j`` for ``j = i`` and ``-s_i x_i R_s_j`` for the
other ``j``, in short ``R_x = x (R_s - s sum R_s)``. A score that is masked out has no share: the
limit for ``s -> 0``.
"""

from __future__ import annotations

import math

import pytest
import torch
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from rule_cases import Function, tensors
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx import ATTN_LRP, propagation

TOKENS = 5
SCALES = st.sampled_from([1.0, 8.0, 300.0])


def softmax_replica(scores):
    """Softmax of the scores of one row, None for a score that is masked out."""
    largest = max(score for score in scores if score is not None)
    exps = [0.0 if score is None else math.exp(score - largest) for score in scores]
    return [each / sum(exps) for each in exps]


def rule_replica(scores, of_weights):
    """Equation 42: relevances of the scores of one row from those of its weights."""
    weights, found = softmax_replica(scores), []
    for i, score in enumerate(scores):
        shares = (
            (score - weights[i] * score if i == j else -weights[i] * score) * of_weights[j]
            for j in range(len(scores))
            if score is not None
        )
        found.append(sum(shares, 0.0))
    return found


def as_replica(x, visible, of_weights):
    """The replica, row by row, for tensors ``[N, T]``."""
    rows = [
        [score if seen else None for score, seen in zip(*row, strict=True)]
        for row in zip(x.tolist(), visible.tolist(), strict=True)
    ]
    found = [rule_replica(*row) for row in zip(rows, of_weights.tolist(), strict=True)]
    return torch.tensor(found, dtype=x.dtype)


def assert_is_the_rule(x, visible, of_scores, of_weights):
    """Relevances found at scores and weights ``[N, T]`` are those of the replica."""
    wanted = as_replica(x, visible, of_weights)
    # A relevance is a difference of shares, each as large as its score times what came in.
    mass = x.abs().amax(-1) * of_weights.abs().sum(-1)
    assert ((of_scores - wanted).abs() <= 1e-15 * TOKENS * mass[:, None]).all()
    assert not of_scores[~visible].any()


@st.composite
def rows(draw):
    """Scores, what is visible of them, and the gradients of the weights: ``[N, T]`` each."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, TOKENS))
    x, grad = draw(tensors(*shape)) * draw(SCALES), draw(tensors(*shape))
    bits = st.lists(st.booleans(), min_size=x.numel(), max_size=x.numel())
    visible = torch.tensor(draw(bits)).view(shape)
    visible[~visible.any(-1)] = True  # a row that sees nothing has no softmax
    return x, visible, grad


def filled(x, visible):
    return x.masked_fill(~visible, -torch.inf)


def added(x, visible):
    return x + torch.zeros_like(x).masked_fill(~visible, -torch.inf)


@pytest.mark.proof("D.6")
@pytest.mark.parametrize("masked", [filled, added])
@pytest.mark.parametrize("softmax", [torch.softmax, F.softmax, torch.Tensor.softmax])
@examples(50)
@given(case=rows())
def test_the_gradient_of_softmax_times_its_input_is_the_rule(softmax, masked, case):
    x, visible, grad = case
    scores = x.clone().requires_grad_()
    weights = softmax(masked(scores, visible), -1)
    (of_scores,) = torch.autograd.grad(weights, scores, grad)
    assert_is_the_rule(x, visible, x * of_scores, (weights * grad).detach())


@pytest.mark.proof("D.6")
@given(case=rows(), values=tensors(TOKENS, 2))
def test_it_is_the_rule_inside_of_an_attention(case, values):
    """Scores ``[N, T]`` of given queries and one-hot keys; relevances are those of the operands.

    Relevances of weights and scores are taken at the operands of the two products: half of those of
    the values enters the softmax, half of what it passes on goes to the queries.
    """
    x, visible, grad = case
    tokens = x.shape[-1]
    q, k, v = x.clone(), torch.eye(tokens, dtype=x.dtype), values[:tokens].clone()
    inputs = [each.requires_grad_() for each in (q, k, v)]
    attention = Function(lambda q, k, v: filled(q @ k.T, visible).softmax(-1) @ v)
    grad = grad[:, :1] * torch.tensor([1.0, -0.5], dtype=x.dtype)
    with propagation(attention, ATTN_LRP):
        of_q, of_k, _ = torch.autograd.grad(attention(*inputs), inputs, grad)
    weights = filled(x, visible).softmax(-1)
    of_products = weights[..., None] * inputs[2] * grad[:, None]  # [N, T, 2], all of it comes in
    of_weights = 0.5 * of_products.sum(-1).detach()
    # The score of a one-hot key is one feature of the query: the query's half is the score's.
    assert_is_the_rule(x, visible, 2 * x * of_q, of_weights)
    # And the other half goes to the keys, here to the diagonal of those.
    wanted = as_replica(x, visible, of_weights).sum(0)
    mass = (x.abs().amax(-1) * of_weights.abs().sum(-1)).sum()
    assert ((2 * of_k.diagonal() - wanted).abs() <= 1e-15 * TOKENS**2 * mass).all()


@pytest.mark.proof("D.6")
@pytest.mark.parametrize(
    ("scores", "of_weights", "wanted"),
    [
        # One token has the weight 1 whatever its score is: there is nothing to explain.
        ([3.0], [2.0], [0.0]),
        # So has one that is alone in the row, and the masked ones get nothing.
        ([3.0, None, None], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        # Saturated: the weights are 1 and 0, and no score can change them any more.
        ([1000.0, 0.0, -1000.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        # Scores of zero get nothing, although their weights have relevance: softmax's own bias.
        ([0.0, 0.0], [1.0, 2.0], [0.0, 0.0]),
        # By hand: weights of 1/4 and 3/4 at the scores 0 and log 3, of which 2 and 3 are explained.
        ([0.0, math.log(3)], [2.0, 3.0], [0.0, math.log(3) * (3 - 0.75 * 5)]),
        ([0.0, None, math.log(3)], [2.0, 0.0, 3.0], [0.0, 0.0, math.log(3) * (3 - 0.75 * 5)]),
    ],
)
def test_rows_that_can_be_worked_out(scores, of_weights, wanted):
    found = rule_replica(scores, of_weights)
    assert found == pytest.approx(wanted, abs=1e-12)
    x = torch.tensor([score or 0.0 for score in scores], dtype=torch.float64, requires_grad=True)
    visible = torch.tensor([score is not None for score in scores])
    weights = filled(x, visible).softmax(-1)
    given_relevance = torch.tensor(of_weights, dtype=torch.float64)
    grad = torch.where(weights > 0, given_relevance / weights.detach().clamp(min=1e-300), 0.0)
    (slope,) = torch.autograd.grad(weights, x, grad)
    assert (x * slope).tolist() == pytest.approx(wanted, abs=1e-12)
