"""A continuation explained by ALTI-Logit, all of its tokens from one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from captum_lrpx.attr.hops import RowRelevances, followed
from captum_lrpx.models import device_of
from captum_lrpx.targets.head import LanguageModelHead

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx.attr.alti_logit import ALTILogit


_AT_ONCE = 16
"""Targets per decomposition; its temporary tensors grow with their number."""


def rows_of_alti(
    method: ALTILogit, ids: Tensor, wanted: Tensor, rows: Tensor, hops: int
) -> RowRelevances:
    """Contributions of prompt and continuation to the logits of a continuation.

    Args:
        method: ALTI-Logit on the model.
        ids: Prompt and continuation ``[P + K]``.
        wanted: Token, and foil if there is one, of each step ``[K, 1 or 2]``.
        rows: Weight of each step in each row ``[R, K]``.
        hops: Number of times that relevance of the continuation is passed on.

    Returns:
        The contributions; they decompose the explained values.
    """
    device = device_of(method.model)
    read, steps = ids[None, :-1].to(device), len(wanted)
    first = len(ids) - 1 - steps
    with torch.no_grad():
        head = LanguageModelHead(method.model)
        logits = head.logits(head.states(read)[0, first:], wanted.to(device))
    single = [_contributions(method, read, column.tolist(), first) for column in wanted.T]
    explained, values = single[0], logits[:, 0]
    if len(single) == 2:
        explained, values = explained - single[1], values - logits[:, 1]
    rows = rows.to(explained)
    context, lost = followed(
        rows @ explained,
        lambda weights: weights.to(explained) @ single[0],
        logits[:, 0].to(explained),
        hops,
    )
    values = rows.to(values) @ values
    return RowRelevances(context, values, values, lost)


def _contributions(method: ALTILogit, read: Tensor, tokens: list[int], first: int) -> Tensor:
    """One row ``[K, P + K]`` per token; the last token is only predicted, never read."""
    targets = [(first + step, token) for step, token in enumerate(tokens)]
    parts = [
        cast("Tensor", method.attribute_targets(read, targets[start : start + _AT_ONCE]))[:, 0]
        for start in range(0, len(targets), _AT_ONCE)
    ]
    return torch.nn.functional.pad(torch.cat(parts), (0, 1))
