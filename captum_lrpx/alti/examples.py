"""Logit updates and ALTI matrices of examples: one row by row, or several at once.

Examples of attentions that have one form are computed at once, if they are small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.alti import formulas
from captum_lrpx.alti.attention_weights import stacked, wide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from captum_lrpx.alti.attention_parts import Part

_TEMPORARIES: Final = 3  # weights of some rows, their scores, and a reordered copy


class Example:
    """One example of one attention."""

    def __init__(self, part: Part, example: int, memory_budget: int, *, whole: bool) -> None:
        self.part = part
        self.example = example
        self.memory_budget = memory_budget
        self.values = part.values[example].contiguous()  # [G, S, z]
        self.output_weight = part.output_weight.to(self.values)
        self.tokens = part.rows.shape[-1]
        # Number of rows whose attention weights fit the memory budget.
        sources = self.values.shape[-2]
        needed = _TEMPORARIES * part.heads * sources * self.values.element_size()
        self.step = memory_budget // needed
        if self.step < 1:
            raise ValueError(
                f"The attention weights of one of {sources} positions take {needed} bytes, more "
                f"than memory_budget={memory_budget}: pass a larger budget, or a shorter text."
            )
        self._whole: Tensor | None = None
        if whole and self.step >= self.tokens:
            self._whole = part.weights.of(example, slice(0, self.tokens)).to(self.values)

    def weights(self, rows: slice | Tensor) -> Tensor:
        """Attention weights of some rows ``[H, R, S]``."""
        if self._whole is not None:
            return self._whole[:, rows]
        return self.part.weights.of(self.example, rows).to(self.values)

    def sink(self) -> Tensor:
        """Share of attention that went to no token, averaged over the heads ``[T]``."""
        shares = [
            1 - self.weights(slice(low, low + self.step)).sum(-1).mean(0)
            for low in range(0, self.tokens, self.step)
        ]
        return torch.cat(shares)

    def directions(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Explained rows ``[R]``, and directions of the output of each head there ``[H, R, z]``.

        Args:
            gradient: ``[B, H, T, z]``.
        """
        own = gradient[self.example]
        rows = (own != 0).any(-1).any(0).nonzero().squeeze(1)
        return rows, wide(own[:, rows]).to(self.values)

    def logit_update(self, rows: Tensor, directions: Tensor, values: Tensor) -> Tensor:
        """Logit update of the explained rows ``[R]`` with directions ``[H, R, z]``: ``[H, S]``."""
        total = values.new_zeros(self.part.heads, values.shape[-2])
        for start in range(0, rows.numel(), self.step):
            taken = slice(start, start + self.step)
            weights = self.weights(rows[taken].to(values.device))
            total += formulas.logit_update(weights, values, directions[:, taken])
        return total

    def alti_matrix(self, first: int, stop: int, *, by_head: bool) -> Tensor:
        """ALTI matrix with the rows ``first`` to ``stop``; the others are 0.

        Args:
            first: The first row.
            stop: The row after the last.
            by_head: Whether each head is a separate part, as in information flow routes.

        Returns:
            ``[T, T]``; ``[T, T + S]`` for an attention to another stream.
        """
        part, values = self.part, self.values
        of_parts = formulas.contributions_by_head if by_head else formulas.contributions
        cross = part.attention.stream != part.attention.source
        if cross:  # tokens of the own stream come first, and are not read
            own = values.new_zeros(values.shape[0], self.tokens, values.shape[-1])
            values = torch.cat([own, values], 1)
        matrix = values.new_zeros(self.tokens, values.shape[-2])
        for low in range(first, stop, self.step):
            rows = slice(low, min(low + self.step, stop))
            weights, output_weight, residual = self.folded(rows)
            if cross:
                weights = torch.cat(
                    [weights.new_zeros(*weights.shape[:2], self.tokens), weights], 2
                )
            raw = of_parts(
                weights,
                values,
                output_weight,
                residual,
                part.resultant[self.example, rows].to(values),
                first_row=low,
                chunk=chunk_of(values, self.memory_budget),
            )
            matrix[rows] = formulas.normalize(raw, first_row=low)
        return matrix

    def folded(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, output projection and residual of some rows; norms and factors are folded in."""
        part, weights, output_weight = self.part, self.weights(rows), self.output_weight
        residual = part.residual[self.example, rows].to(self.values)
        if part.by_head is not None:
            weights = weights * part.by_head[self.example, :, rows].unsqueeze(-1).to(weights)
        for scaling, nothing in ((part.scaled, True), (part.norm, False)):
            if scaling is None:
                continue
            weights, output_weight, scaled = formulas.fold_frozen_norm(
                weights,
                output_weight,
                residual,
                scale=scaling.scale[self.example, rows].to(weights),
                weight=scaling.weight.to(weights),
                centered=scaling.centered,
            )
            residual = residual if nothing else scaled
        return weights, output_weight, residual


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


def chunk_of(values: Tensor, memory_budget: int) -> int:
    """Number of elements of transformed vectors that may be held at a time."""
    share = max(1, memory_budget // (_TEMPORARIES * values.element_size()))
    # A CPU needs what fits into its cache, an accelerator needs large chunks.
    return min(share, formulas.CHUNK_ELEMENTS) if values.device.type == "cpu" else share
