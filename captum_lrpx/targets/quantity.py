"""Quantities that can be explained: logits, and their softmax or its logarithm."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Quantity = Literal["logit", "log_prob", "prob"]
"""Explained quantity of an output; named as in Captum's ``LLMAttribution``."""

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

NAMES: dict[Quantity, str] = {
    "logit": "logit",
    "log_prob": "log-probability",
    "prob": "probability",
}
"""Quantities in words."""


def check_quantity(quantity: str) -> Quantity:
    """Check that a string names a quantity.

    Raises:
        ValueError: If it is not.
    """
    for known in QUANTITIES:
        if quantity == known:
            return known
    raise ValueError(f"Unknown quantity {quantity!r}; known are {', '.join(QUANTITIES)}.")


def in_quantity(logits: Tensor, quantity: Quantity) -> Tensor:
    """Logits, their softmax over the last dimension, or its logarithm.

    Half precision is normalized in float32, as the sum over a vocabulary requires.

    Args:
        logits: ``[..., V]``.
        quantity: The quantity.

    Returns:
        ``[..., V]``.
    """
    if quantity == "logit":
        return logits
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return wide.log_softmax(-1) if quantity == "log_prob" else wide.softmax(-1)
