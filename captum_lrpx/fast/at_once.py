"""ALTI contributions of several small attentions at once.

One by one, the launches of a short input take far longer than its arithmetic. Here attentions and
examples are dimensions of the same tensors, without the chunks of long inputs.

Measured on models of 16 layers of width 32 with 8 tokens: 35 to 45 % of ALTI-Logit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["contributions_at_once"]


@torch.no_grad()
def contributions_at_once(
    weights: Tensor, values: Tensor, output_weight: Tensor, residual: Tensor, resultant: Tensor
) -> Tensor:
    r"""Raw contributions as of :func:`captum_lrpx.alti.formulas.contributions`, of many.

    Args:
        weights: Attention weights ``[..., H, T, T]``.
        values: Values ``[..., G, T, z]``.
        output_weight: Output projection by heads ``[..., H, z, D]``.
        residual: Residual stream ``x`` ``[..., T, D]``.
        resultant: ``y`` ``[..., T, D]``.

    Returns:
        ``[..., T, T]``.
    """
    shared = weights.shape[-3] // values.shape[-3]
    messages = values.repeat_interleave(shared, -3) @ output_weight  # [..., H, T, D]
    t = weights.transpose(-1, -3) @ messages.transpose(-2, -3)  # [..., source, row, D]
    t.diagonal(0, -3, -2).add_(residual.mT)
    total = t.mul_(torch.where(resultant < 0, -1.0, 1.0).to(t).unsqueeze(-3)).sum(-1)
    shares = torch.minimum(t, resultant.abs().unsqueeze(-3), out=t).sum(-1).mul_(2).sub_(total)
    return shares.mT
