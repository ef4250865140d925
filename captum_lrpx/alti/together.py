"""Attentions of the same form in numbers, whose examples are computed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx.alti import formulas
from captum_lrpx.alti.attention_weights import stacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from captum_lrpx.alti.attention_parts import Part


def form_of(part: Part) -> tuple[Any, ...]:
    """Key of an attention, equal for those that can be computed at once."""
    scalings = (None if each is None else each.centered for each in (part.scaled, part.norm))
    tensors = part.values, part.output_weight, part.residual
    shapes = (each.shape for each in tensors)
    return part.weights.form, part.by_head is None, *scalings, part.values.device, *shapes


class Together:
    """``L`` attentions of the same form, and some examples.

    Args:
        parts: The attentions.
        examples: The examples: all, unless there is one attention.
    """

    def __init__(self, parts: Sequence[Part], examples: slice) -> None:
        self._parts, self._examples = parts, examples
        self.values = torch.stack([each.values[examples] for each in parts])  # [L, B, G, S, z]
        count = len(parts)
        taken = slice(examples.start * count, examples.stop * count)
        weights: Tensor = stacked([each.weights for each in parts]).of(taken, slice(None))
        self.weights = weights.to(self.values).view(count, -1, *weights.shape[1:])

    def updates(self, gradients: Tensor, *, per_head: bool) -> Tensor:
        """Logit updates ``[L, B, H or 1, S]``.

        Args:
            gradients: Gradients of an explained value at the output of each head
                ``[L, B, H, T, z]``.
            per_head: Whether they are kept per head.
        """
        groups, _, size = self.values.shape[-3:]
        directions = gradients[:, self._examples].to(self.values)
        grouped = directions.reshape(*directions.shape[:2], groups, -1, size)
        scores = (grouped @ self.values.mT).view(self.weights.shape)
        product: Tensor = (self.weights * scores).sum(-2)
        return product if per_head else product.sum(-2, keepdim=True)

    def matrices(self, first: int) -> Tensor:
        """ALTI matrices ``[L, B, T, T]`` without those of some attentions at the beginning."""
        parts = self._parts[first:]
        if not parts:
            return self.values.new_zeros(0, *self.weights.shape[1:2], *self.weights.shape[3:])
        values, weights = self.values[first:], self.weights[first:]
        output_weight = self._joined([each.output_weight for each in parts])[:, None]
        residual, resultant = (
            self._joined([getattr(each, name)[self._examples] for each in parts])
            for name in ("residual", "resultant")
        )
        if parts[0].by_head is not None:
            by_head = [each.by_head[self._examples] for each in parts if each.by_head is not None]
            weights = weights * self._joined(by_head).unsqueeze(-1)
        for name in ("scaled", "norm"):
            scalings = [getattr(each, name) for each in parts]
            if scalings[0] is None:
                continue
            weights, output_weight, folded = formulas.fold_frozen_norm(
                weights,
                output_weight,
                residual,
                scale=self._joined([each.scale[self._examples] for each in scalings]),
                weight=self._joined([each.weight for each in scalings])[:, None],
                centered=scalings[0].centered,
            )
            residual = folded if name == "norm" else residual
        return formulas.normalize(
            formulas.contributions_at_once(weights, values, output_weight, residual, resultant)
        )

    def _joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of the attentions as one, in the precision and on the device of the values."""
        return torch.stack([each.to(self.values) for each in tensors])

    def sinks(self) -> Tensor:
        """Share of attention that went to no token, averaged over the heads ``[L, B, T]``."""
        shares: Tensor = self.weights.sum(-1).mean(-2)
        return 1 - shares
