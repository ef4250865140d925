"""Rules for the two products and the softmax of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from captum_lrpx.rules.base import Rule
from captum_lrpx.rules.functional import UNIFORM_SHARE

if TYPE_CHECKING:
    from captum_lrpx.rules.base import Shares

__all__ = ["AttentionGradient", "AttentionRule", "ConstantWeights", "UniformAttention"]


class AttentionRule(Rule):
    """A rule for attention, whichever way a model computes it.

    Attributes:
        shares: Of the weights and of the values in ``A V``.
        of_scores: Of the query and of the key in ``Q K^T``, each.
    """

    role: ClassVar[str] = "attention"
    shares: ClassVar[Shares]
    of_scores: ClassVar[float]

    @property
    def constant_weights(self) -> bool:
        """Whether the weights get no relevance."""
        return self.shares[0] is None


@dataclass(frozen=True)
class ConstantWeights(AttentionRule):
    """The attention weights are constant, all relevance goes to the values: ``[A] V``.

    Signal-take-all, ``R_signal = R_z`` and ``R_gate = 0`` for ``z = signal * [gate]``, at the
    product of attention (Ali et al. 2022; Arras et al. 2017, 2019; Arras et al. 2025, D.4). Also
    known as CP-LRP or the AH-rule. Queries and keys get no graph at all.
    """

    conserves: ClassVar[bool] = True
    shares: ClassVar[Shares] = (None, 1.0)
    of_scores: ClassVar[float] = UNIFORM_SHARE


@dataclass(frozen=True)
class UniformAttention(AttentionRule):
    """AttnLRP: uniform products at ``A V`` and ``Q K^T``, softmax by its gradient.

    The uniform rule at ``A V`` halves the gradient of both factors, and the uniform rule at
    ``Q K^T`` halves that of the query and of the key once more, while the softmax between them
    keeps its ordinary gradient (Achtibat et al. 2024; Arras et al. 2025, D.6): 1/4, 1/4 and 1/2 of
    the gradients of query, key and value. Does not conserve: the softmax has a bias-like term. With
    ``s`` the scores and ``d`` gradients, what leaks per row is ``sum_k A_k dA_k - sum_k s_k ds_k``.
    """

    conserves: ClassVar[bool] = False
    shares: ClassVar[Shares] = (UNIFORM_SHARE, UNIFORM_SHARE)
    of_scores: ClassVar[float] = UNIFORM_SHARE


@dataclass(frozen=True)
class AttentionGradient(AttentionRule):
    """The ordinary gradient of attention; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True
    shares: ClassVar[Shares] = (1.0, 1.0)
    of_scores: ClassVar[float] = 1.0
