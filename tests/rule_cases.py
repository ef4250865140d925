"""What rules are tried on, and the replicas' common ground.

A replica is a loop over inputs ``i`` and outputs ``j`` of a layer: ``R_i = sum_j c_ij / z_j R_j``
with the contribution ``c_ij`` of input ``i`` to output ``j``. The rules themselves never form such
a quotient: they are gradients. Inputs are drawn by hypothesis as multiples of 1/8, so that float64
sums are exact in any order, and zeros, cancellations and equal rows are frequent.
"""

from __future__ import annotations

from math import sqrt

import torch
from hypothesis import strategies as st
from torch import nn

from captum_lrpx import LRP, propagation

HALF = [torch.bfloat16, torch.float16]
ACCURACY = {torch.bfloat16: 3e-2, torch.float16: 4e-3}  # a few units of the last place


def tensors(*shape):
    """Float64 tensors of multiples of 1/8, a fifth of them zero, contiguous or not."""
    eighths = st.integers(-24, 24) | st.just(0)
    count = torch.Size(shape).numel()
    values = st.lists(eighths, min_size=count, max_size=count)
    return st.builds(_strided, values, st.just(shape), st.booleans())


def _strided(values, shape, contiguous):
    flat = torch.tensor(values, dtype=torch.float64) / 8
    if contiguous:
        return flat.reshape(shape)
    padded = torch.full((*reversed(shape), 2), float("nan"), dtype=torch.float64)
    tensor = padded[..., 0].permute(*reversed(range(len(shape))))
    tensor.copy_(flat.reshape(shape))
    return tensor


sizes = st.integers(1, 4)
strengths = st.sampled_from([0.0, 0.125, 0.25, 1.0, 10.0])


@st.composite
def linear_layers(draw):
    """Input ``[N, I]``, weight ``[O, I]``, bias ``[O]`` or None, upstream gradient ``[N, O]``."""
    rows, inputs, outs = draw(sizes), draw(sizes), draw(sizes)
    bias = draw(st.none() | tensors(outs))
    return (
        draw(tensors(rows, inputs)),
        draw(tensors(outs, inputs)),
        bias,
        draw(tensors(rows, outs)),
    )


@st.composite
def pairs(draw):
    """Two factors of one shape and an upstream gradient."""
    shape = draw(st.lists(sizes, min_size=1, max_size=3))
    return [draw(tensors(*shape)) for _ in range(3)]


@st.composite
def norm_rows(draw):
    """Input ``[N, D]``, weight ``[D]`` or None, bias ``[D]``, upstream gradient ``[N, D]``."""
    rows, width = draw(sizes), draw(sizes)
    weight = draw(st.none() | tensors(width))
    return draw(tensors(rows, width)), weight, draw(tensors(width)), draw(tensors(rows, width))


@st.composite
def attentions(draw):
    """Query, key, value ``[B, T, d]``, upstream gradient, mask ``[T, T]`` (True: visible)."""
    batch, length, width = draw(st.integers(1, 2)), draw(sizes), draw(st.integers(1, 3))
    q, k, v, grad = (draw(tensors(batch, length, width)) for _ in range(4))
    mask = torch.ones(length, length, dtype=torch.bool)
    return q, k, v, grad, mask.tril() if draw(st.booleans()) else mask


def relevance(function, inputs, grad):
    """``(function(*inputs), input * gradient for each input)`` for the upstream gradient."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    found = torch.autograd.grad(output, leaves, grad, allow_unused=True, materialize_grads=True)
    return output.detach(), [leaf.detach() * grad for leaf, grad in zip(leaves, found, strict=True)]


class Function(nn.Module):
    """A function as a module, which rules can be put on."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def ruled(function, inputs, grad, recipe=LRP):
    """What :func:`relevance` gives for a function or module that a recipe has its rules on.

    It runs twice, as a pass of a new form and as one of a form that is known.
    """
    module = function if isinstance(function, nn.Module) else Function(function)
    with torch.no_grad():
        plain = module(*(each.clone() for each in inputs))  # strides may decide about last bits
    with propagation(module, recipe):
        (value, first), (again, second) = (relevance(module, inputs, grad) for _ in range(2))
    assert torch.equal(value, plain)
    assert torch.equal(again, plain)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    return value, first


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def attention_weights(q, k, mask):
    scores = (q @ k.transpose(-1, -2)) / sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)


def attend_manually(q, k, v, mask):
    return attention_weights(q, k, mask) @ v
