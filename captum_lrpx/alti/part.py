"""One attention in numbers: weights, values, and the linear maps around them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx.alti.attention_weights import AttentionWeights, Order
    from captum_lrpx.alti.layout import Attention
    from captum_lrpx.alti.scaling import Scaling
    from captum_lrpx.parallel import Split

__all__ = ["Part"]


@dataclass(eq=False)
class Part:
    """One attention in numbers.

    Attributes:
        attention: Its place in the graph.
        path: Path of its module.
        weights: Attention weights.
        values: ``[B, G, S, z]``.
        places: Index of each among the mixing node's matrices of values ``[B, G]``; for the heads
            of this process, if they are sharded.
        order: Rows of the mixing node by example, head and position ``[B, H, T]``; for the heads of
            this process, if they are sharded.
        output_weight: Maps the output of each head to the stream ``[H, z, D]``, before ``scaled``.
        by_head: Factor of the output of each head ``[B, H, T]``, or None.
        scaled: The norm or factor between output projection and stream.
        norm: The norm after the addition.
        residual: The tensor that it is added to ``[B, T, D]``.
        resultant: The result, after the norm ``[B, T, D]``.
        split: Distribution of the heads over processes; None if each has them all.
    """

    attention: Attention
    path: str
    weights: AttentionWeights
    values: Tensor
    places: Tensor
    order: Order
    output_weight: Tensor
    by_head: Tensor | None
    scaled: Scaling | None
    norm: Scaling | None
    residual: Tensor
    resultant: Tensor
    split: Split | None = None

    @property
    def rows(self) -> Tensor:
        """Row of each example, head and position in the mixing node's rows ``[B, H, T]``."""
        return self.order.rows

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.output_weight.shape[0]

    def found(self, gradient: Tensor) -> Tensor:
        """A gradient at the mixing node, by heads ``[B, H, T, z]``."""
        of_rows = self.order.of_rows(gradient)
        return of_rows if self.split is None else self.split.joined(of_rows, 1)

    def joined(self, split: Split) -> Part:
        """The attention with the heads of all processes.

        Norms act on the sum over heads, so each process needs them all.
        """
        by_head = None if self.by_head is None else split.joined(self.by_head, 1)
        return replace(
            self,
            weights=self.weights.joined(split),
            values=split.joined(self.values, 1),
            output_weight=split.joined(self.output_weight, 0),
            by_head=by_head,
            split=split,
        )
