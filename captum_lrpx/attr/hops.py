"""Hops: relevance of generated tokens, traced back to the tokens that they were predicted from.

How much an answer owes to the reasoning before it says little about the prompt. The relevance of a
generated token is therefore passed on to the tokens that it was predicted from, in proportion: one
more backward pass in which every token is a target, weighted by its relevance over its logit (the
recursion of FlashTrace, https://arxiv.org/abs/2602.01914). As relevance is linear in the explained
value, each hop is one pass, whatever the number of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class RowRelevances(NamedTuple):
    """Relevances of prompt and continuation for parts of the continuation.

    Attributes:
        context: ``[R, P + K]``.
        values: The explained values ``[R]``.
        decomposed: The sums of relevances and delta ``[R]``.
        lost: Relevance lost at each hop ``[R, hops]``.
    """

    context: Tensor
    values: Tensor
    decomposed: Tensor
    lost: Tensor


def check_hops(hops: int) -> None:
    """Refuse a negative number of hops.

    Raises:
        ValueError: If it is negative.
    """
    if hops < 0:
        raise ValueError(f"hops must be 0 or more, not {hops}.")


def followed(
    relevance: Tensor, explain: Callable[[Tensor], Tensor], logits: Tensor, hops: int
) -> tuple[Tensor, Tensor]:
    """Pass relevance of generated tokens on to the tokens that they were predicted from.

    A token keeps its relevance if its logit is not positive: shares of zero or of a negative
    number are not defined.

    Args:
        relevance: Of prompt and continuation ``[R, P + K]``.
        explain: Maps weights of the continuation's logits ``[R, K]`` to the relevances
            ``[R, P + K]`` of the weighted sums.
        logits: Of the tokens of the continuation ``[K]``.
        hops: Number of hops.

    Returns:
        Relevances ``[R, P + K]`` and, for each hop, the relevance that reached no token
        ``[R, hops]``: the share of biases, positions and the softmax.
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
