"""Seeds of a continuation's backward passes: gradients at the states of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from captum_lrpx.targets.encoding import vocabulary_size
from captum_lrpx.targets.quantity import in_quantity

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx.targets.head import LanguageModelHead
    from captum_lrpx.targets.quantity import Quantity


_LOGITS = 2**23
"""Number of logits over the whole vocabulary that exist at a time."""


def seeds_of(
    head: LanguageModelHead, states: Tensor, wanted: Tensor, quantity: Quantity
) -> tuple[Tensor, Tensor, Tensor]:
    """Explained values of all steps, and the seeds of their backward passes.

    The step of one token depends on the state at its own position only, so one backward pass
    through the head yields the seeds of many steps. Logits over the whole vocabulary are computed
    for as many steps at a time as :data:`_LOGITS` allows, which does not grow with the answer.

    Args:
        head: The head.
        states: ``[K, D]``, the state that each step is predicted from.
        wanted: ``[K, 1]`` tokens, or ``[K, 2]`` with foils.
        quantity: The explained quantity of a token.

    Returns:
        Explained values ``[K]``, gradient times logits ``[K]``, gradients at the states ``[K, D]``.
    """
    size = vocabulary_size(head.model) if head.chain else states.shape[1]
    steps = max(_LOGITS // size, 1)
    parts = [
        _of_steps(head, *part, quantity)
        for part in zip(torch.split(states, steps), torch.split(wanted, steps), strict=True)
    ]
    values, decomposed, seeds = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(decomposed), torch.cat(seeds)


def _of_steps(
    head: LanguageModelHead, states: Tensor, wanted: Tensor, quantity: Quantity
) -> tuple[Tensor, Tensor, Tensor]:
    """Explained values and seeds of some of the steps."""
    leaves = states.detach().requires_grad_()
    if quantity == "logit" or (quantity == "log_prob" and wanted.shape[1] == 2):
        # The normalizer of a log-probability cancels in the difference to a foil.
        logits = head.logits(leaves, wanted)
        explained = logits
    else:
        logits = head.logits(leaves)
        explained = in_quantity(logits, quantity).gather(1, wanted)
    values = explained[:, 0] - explained[:, 1] if wanted.shape[1] == 2 else explained[:, 0]
    (slopes,) = torch.autograd.grad(values.sum(), logits, retain_graph=True)
    (seeds,) = torch.autograd.grad(logits, leaves, slopes)
    return values.detach(), (slopes * logits.detach()).sum(1), seeds
