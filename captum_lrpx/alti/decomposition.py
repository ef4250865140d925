"""An explained value as a sum: tokens through each head, MLPs, biases, and the explained token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from captum_lrpx.coverage import Coverage

__all__ = ["ALTILogitDecomposition"]


@dataclass(frozen=True, eq=False)
class ALTILogitDecomposition:
    """Decomposition of an explained value, for ``B`` examples, ``L`` blocks and ``H`` heads.

    ``heads.sum() + start.sum() + mlps.sum() + all biases + remainder`` is the explained value,
    per example (:meth:`total`).

    Attributes:
        value: The explained values ``[B]``.
        coverage: Operations on the paths of the directions of the values.
        updates: Logit updates: contribution of each position of a block's own input through each
            head ``[B, L, H, T]``, before they are carried back.
        heads: The same carried back to the input tokens by the ALTI matrices ``[B, L, H, T]``; the
            sum over ``T`` equals the sum of ``updates``.
        start: Direct contribution of the explained position's own embedding, along the residual
            stream ``[B, T]``; zero at all other positions.
        mlps: Contribution of the output of each MLP ``[B, L]``. It is not carried back: ALTI-Logit
            cuts the flow there.
        biases: Contribution of each bias outside of the MLPs, by its path, each ``[B]``.
        remainder: The rest ``[B]``: rounding, if the forward function is linear in the logits;
            for a log-probability its non-linear part.
        output: The explained function's own part of the remainder ``[B]``: its value minus its
            gradient times the model's outputs; 0 for a linear one.
        alti: The ALTI matrix of each block ``[B, L, T, T]`` (row: position, column: token), if
            requested.
        sinks: Share of each position's attention that went to no token, averaged over the
            heads ``[B, L, T]``, if the matrices were requested. It carries no value.
        attention_paths: Path of the module of each block.
        mlp_paths: Path of the module that computed the update of each MLP.
    """

    value: Tensor
    coverage: Coverage
    updates: Tensor
    heads: Tensor
    start: Tensor
    mlps: Tensor
    biases: Mapping[str, Tensor]
    remainder: Tensor
    output: Tensor
    alti: Tensor | None = None
    sinks: Tensor | None = None
    attention_paths: tuple[str, ...] = ()
    mlp_paths: tuple[str, ...] = ()

    @property
    def layers(self) -> Tensor:
        """Contributions of the input tokens through the attention of each block ``[B, L, T]``."""
        return self.heads.sum(2)

    def tokens(self, *, include_start: bool = True) -> Tensor:
        """Contributions of the input tokens.

        Args:
            include_start: Whether the start term is part of its token's contribution.

        Returns:
            ``[B, T]``.
        """
        tokens = self.heads.sum((1, 2))
        return tokens + self.start if include_start else tokens

    def parts(self) -> dict[str, Tensor]:
        """The terms whose sum is the explained value, by name, each ``[B]``."""
        return {
            "tokens": self.heads.sum((1, 2, 3)),
            "start": self.start.sum(1),
            "mlps": self.mlps.sum(1),
            **self.biases,
            "remainder": self.remainder,
        }

    def total(self) -> Tensor:
        """The sum of all parts ``[B]``: the explained value, up to rounding."""
        return torch.stack(list(self.parts().values())).sum(0)
