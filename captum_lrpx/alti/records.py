"""What the recording of one forward pass keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import GradientEdge

    from captum_lrpx.alti.attention_weights import AttentionWeights
    from captum_lrpx.sites import Block

__all__ = ["BiasRecord", "BlockRecord"]


@dataclass(eq=False)
class BlockRecord:
    """What one block did in the recorded forward pass.

    Attributes:
        block: The block.
        bias_name: Path of the bias of the output projection.
        bias: That bias ``[D]``, or None.
        residual: Its input, the residual stream ``x`` ``[B, T, D]``.
        values: Values ``[B, T, G z]``.
        weights: Attention weights.
        resultant: What the attention block makes of ``x``, ``y`` ``[B, T, D]``: behind the residual
            add, and behind its norm where that stands there.
        norm_input: The input of that norm ``[B, T, D]``, None where norms stand before branches.
        norm_weight: The stored weight of that norm ``[D]``, which may be offloaded afterwards.
        update: Output of the attention ``o`` ``[B, T, D]``; kept until it has been checked.
        mixed: Input of the output projection at ``checked`` ``[B, C, H z]``.
        checked: Positions ``[C]`` at which the weights are checked against ``mixed``.
        mlp: Output of the MLP ``m`` ``[B, T, D]``.
        attention_edge: Where the gradient at the output of the attention arrives.
        mlp_edge: Where the gradient at the output of the MLP arrives.
    """

    block: Block
    bias_name: str
    bias: Tensor | None
    residual: Tensor = field(init=False)
    values: Tensor = field(init=False)
    weights: AttentionWeights = field(init=False)
    resultant: Tensor = field(init=False)
    norm_input: Tensor | None = None
    norm_weight: Tensor | None = None
    update: Tensor = field(init=False)
    mixed: Tensor = field(init=False)
    checked: Tensor = field(init=False)
    mlp: Tensor = field(init=False)
    attention_edge: GradientEdge = field(init=False)
    mlp_edge: GradientEdge = field(init=False)


@dataclass(frozen=True, eq=False)
class BiasRecord:
    """A bias outside of the branches.

    Attributes:
        name: Its path in the model.
        bias: ``[F]``.
        edge: Where the gradient at the output that it was added to arrives.
    """

    name: str
    bias: Tensor
    edge: GradientEdge
