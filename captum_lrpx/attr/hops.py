"""Hops: relevance that lands on generated tokens, followed to where these come from.

What an answer owes to the reasoning before it says little about the prompt. The relevance of a
generated token is therefore handed to what that token was predicted from, in proportion: one more
backward pass in which every token is a target, weighted by its relevance over its logit (the
recursion of FlashTrace, https://arxiv.org/abs/2602.01914). As relevance is linear in what is
explained, each hop is one pass however many tokens there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["check_hops", "followed"]


def check_hops(hops: int) -> None:
    """Refuse a number of hops that is none.

    Raises:
        ValueError: If it is negative.
    """
    if hops < 0:
        raise ValueError(f"hops must be 0 or more, not {hops}.")


def followed(
    relevance: Tensor, explain: Callable[[Tensor], Tensor], logits: Tensor, hops: int
) -> tuple[Tensor, Tensor]:
    """Hand relevance of generated tokens to what they were predicted from.

    A token keeps its relevance if its logit is not positive: a share of nothing, or of a negative
    number, is no share.

    Args:
        relevance: Of prompt and continuation ``[R, P + K]``.
        explain: From weights of the logits of the continuation ``[R, K]`` to the relevances
            ``[R, P + K]`` of their weighted sums.
        logits: Of the tokens of the continuation ``[K]``.
        hops: How often.

    Returns:
        Relevances ``[R, P + K]`` and, for each hop, what was handed on and arrived at no token
        ``[R, hops]``: what biases, positions and the softmax have of it.
    """
    lost = []
    start = relevance.shape[1] - len(logits)
    given_on = logits > 0
    for _ in range(hops):
        mass = torch.where(given_on, relevance[:, start:], 0)
        arrived = explain(torch.where(given_on, mass / logits, 0))
        lost.append(mass.sum(1) - arrived.sum(1))
        relevance = relevance.clone()
        relevance[:, start:] -= mass
        relevance = relevance + arrived
    return relevance, torch.stack(lost, 1) if lost else relevance.new_zeros(len(relevance), 0)
