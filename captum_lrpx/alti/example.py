"""One example of one attention: its logit update, and its ALTI matrix row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from captum_lrpx.alti import formulas
from captum_lrpx.alti.attention_weights import wide

if TYPE_CHECKING:
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


def chunk_of(values: Tensor, memory_budget: int) -> int:
    """Number of elements of transformed vectors that may be held at a time."""
    share = max(1, memory_budget // (_TEMPORARIES * values.element_size()))
    # A CPU needs what fits into its cache, an accelerator needs large chunks.
    return min(share, formulas.CHUNK_ELEMENTS) if values.device.type == "cpu" else share
