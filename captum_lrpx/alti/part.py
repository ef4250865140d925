"""One attention as ALTI-Logit needs it: weights, values, and the linear maps around them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx.alti.attention_weights import AttentionWeights
    from captum_lrpx.alti.layout import Attention
    from captum_lrpx.alti.scaling import Scaling
    from captum_lrpx.parallel import Split

__all__ = ["Part"]


@dataclass(eq=False)
class Part:
    """One attention in numbers.

    Attributes:
        attention: Where it is in the graph.
        path: Path of its module.
        weights: Attention weights.
        values: ``[B, G, S, z]``.
        places: Which of the mixing node's matrices of values each of them is ``[B, G]``; of the
            heads of this process, if they are split.
        rows: For each example, head and position its row among those of the mixing node
            ``[B, H, T]``; of the heads of this process, if they are split.
        output_weight: From what each head found to the stream ``[H, z, D]``, before ``scaled``.
        by_head: Factor of what each head found ``[B, H, T]``, or None.
        scaled: The norm or factor between output projection and stream.
        norm: The norm after the addition.
        residual: What is added to ``[B, T, D]``.
        resultant: What comes of it, after the norm ``[B, T, D]``.
        split: How the heads are spread over processes; None if each has them all.
    """

    attention: Attention
    path: str
    weights: AttentionWeights
    values: Tensor
    places: Tensor
    rows: Tensor
    output_weight: Tensor
    by_head: Tensor | None
    scaled: Scaling | None
    norm: Scaling | None
    residual: Tensor
    resultant: Tensor
    split: Split | None = None

    @property
    def heads(self) -> int:
        """The number of heads."""
        return self.output_weight.shape[0]

    def found(self, gradient: Tensor) -> Tensor:
        """A gradient at the mixing node by heads ``[B, H, T, z]``."""
        of_rows = gradient.reshape(-1, gradient.shape[-1])[self.rows]
        return of_rows if self.split is None else self.split.joined(of_rows, 1)

    def joined(self, split: Split) -> Part:
        """The attention with the heads of all processes.

        Norms are taken of what all heads add up to, so each process needs them all.
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
