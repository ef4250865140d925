"""Relevance written out, quantity by quantity, from the formulas: no gradient and no graph.

Each function computes one layer forward and returns it with a function that takes the relevance of
its result to the relevance of what went in. A relevance is a share: of ``y = sum(z)`` each summand
gets ``z / y`` of the relevance of ``y``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF = 0.5


def linear(x: Tensor, weight: Tensor):
    """``y = weight @ x`` for each row of ``x [T, D]``; epsilon rule with epsilon = 0."""
    y = torch.stack([weight @ row for row in x])

    def back(relevance):
        found = torch.zeros_like(x)
        for row in range(len(x)):
            for out in range(len(weight)):
                shares = weight[out] * x[row] / y[row, out]
                found[row] += shares * relevance[row, out]
        return found

    return y, back


def add(a: Tensor, b: Tensor):
    """A residual connection."""
    y = a + b
    return y, lambda relevance: (a / y * relevance, b / y * relevance)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The scale is constant, so each coordinate keeps its relevance."""
    rows = [row / math.sqrt(sum(float(each) ** 2 for each in row) / len(row) + eps) for row in x]
    return torch.stack(rows) * weight


def attention(q, k, v, bias, scaling: float, *, values_only: bool):
    """One head: ``q [T, D]``, ``k``, ``v [S, D]``, ``bias [T, S]`` (-inf where hidden).

    LRP holds the weights constant. AttnLRP shares both products equally between their factors and
    takes the softmax's own gradient times its input.
    """
    scores = torch.full(bias.shape, -math.inf, dtype=q.dtype)
    for t in range(len(q)):
        for s in range(len(k)):
            if bias[t, s] > -math.inf:
                scores[t, s] = (q[t] @ k[s]) * scaling + bias[t, s]
    weights = torch.stack(
        [torch.exp(row - row.max()) / torch.exp(row - row.max()).sum() for row in scores]
    )
    out = torch.stack([sum(weights[t, s] * v[s] for s in range(len(k))) for t in range(len(q))])

    def back(relevance):
        of_q, of_k, of_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for t in range(len(q)):
            of_weights = torch.zeros(len(k), dtype=q.dtype)
            for s in range(len(k)):
                share = weights[t, s] * v[s] / out[t] * relevance[t]
                of_v[s] += share if values_only else HALF * share
                of_weights[s] = HALF * share.sum()
            if values_only:
                continue
            for s in range(len(k)):
                if weights[t, s] == 0:
                    continue
                of_score = scores[t, s] * (of_weights[s] - weights[t, s] * of_weights.sum())
                share = q[t] * k[s] * scaling / scores[t, s] * of_score
                of_q[t] += HALF * share
                of_k[s] += HALF * share
        return of_q, of_k, of_v

    return out, back


def gated(gate: Tensor, up: Tensor, function, *, up_only: bool):
    """``function(gate) * up``: an activation hands on its relevance as it is."""
    activated = function(gate)

    def back(relevance):
        if up_only:
            return torch.zeros_like(gate), relevance
        return HALF * relevance, HALF * relevance

    return activated * up, back
