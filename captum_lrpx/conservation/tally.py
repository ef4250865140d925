"""Kinds of lines in an account, and the precision of its amounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KINDS", "Kind", "wide"]

Kind = Literal[
    "tokens",
    "positions",
    "token_types",
    "bias",
    "mlp",
    "softmax",
    "score_bias",
    "absorbed",
    "rule",
    "output",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


def wide(x: Tensor) -> Tensor:
    """The tensor in the precision of sums: float64 where the device has it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
