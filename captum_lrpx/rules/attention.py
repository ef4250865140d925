"""Rules for the two products and the softmax of attention."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from captum_lrpx.rules.base import Rule, both_shares, check_share
from captum_lrpx.rules.functional import UNIFORM_SHARE

if TYPE_CHECKING:
    from captum_lrpx.rules.base import Shares

__all__ = [
    "AttentionGradient",
    "AttentionRule",
    "AttentionShares",
    "ConstantWeights",
    "UniformAttention",
]


class AttentionRule(Rule):
    """Base class of rules for attention, whichever way a model computes it.

    Attributes:
        of_scores: Share of the query, and of the key, in ``Q K^T``.
    """

    role: ClassVar[str] = "attention"
    of_scores: ClassVar[float] = UNIFORM_SHARE

    @property
    @abstractmethod
    def shares(self) -> Shares:
        """Shares of the weights and of the values in ``A V``."""

    @property
    def constant_weights(self) -> bool:
        """Whether the weights get no relevance."""
        return self.shares[0] is None


@dataclass(frozen=True)
class ConstantWeights(AttentionRule):
    """CP-LRP's rule: the attention weights are constant, all relevance goes to the values.

    ``[A] V``: signal-take-all, ``R_signal = R_z`` and ``R_gate = 0`` for ``z = signal * [gate]``,
    at the product of attention (Ali et al. 2022, there the AH-rule; Arras et al. 2017, 2019; Arras
    et al. 2025, D.4). Queries and keys get no graph at all.
    """

    conserves: ClassVar[bool] = True

    @property
    def shares(self) -> Shares:
        """Everything for the values."""
        return (None, 1.0)


@dataclass(frozen=True)
class UniformAttention(AttentionRule):
    """AttnLRP's rule: uniform rule at ``A V`` and ``Q K^T``, ordinary gradient of the softmax.

    The uniform rule at ``A V`` halves the gradients of both factors, and the uniform rule at
    ``Q K^T`` halves the gradients of query and key once more, while the softmax between them
    keeps its ordinary gradient (Achtibat et al. 2024; Arras et al. 2025, D.6): 1/4, 1/4 and 1/2 of
    the gradients of query, key and value. Does not conserve: the softmax has a bias-like term. With
    ``s`` the scores and ``d`` gradients, the leak per row is ``sum_k A_k dA_k - sum_k s_k ds_k``.
    """

    conserves: ClassVar[bool] = False

    @property
    def shares(self) -> Shares:
        """Half for each."""
        return (UNIFORM_SHARE, UNIFORM_SHARE)


@dataclass(frozen=True)
class AttentionShares(AttentionRule):
    """The values get a share; query and key get half of the rest each.

    ``R_V = p R`` and ``R_A = (1 - p) R`` at ``A V``, with the softmax by its gradient and the
    uniform rule at ``Q K^T``: ``p``, ``(1 - p) / 2`` and ``(1 - p) / 2`` of the gradients of value,
    query and key. These are the weights of the content path and of the control path of Dual Path
    Attribution (Jantsch et al. 2026, https://arxiv.org/abs/2603.19742). ``p = 1`` is
    :class:`ConstantWeights`, ``p = 1/2`` is :class:`UniformAttention`. Conserves with ``p = 1``;
    otherwise the softmax leaks as in :class:`UniformAttention`.

    Attributes:
        values: The share ``p`` of the values, from 0 to 1.
    """

    values: float

    def __post_init__(self) -> None:
        check_share("values", self.values)

    @property
    def conserves(self) -> bool:  # type: ignore[override]
        """Whether no relevance passes through the softmax."""
        return self.values == 1

    @property
    def shares(self) -> Shares:
        """The remaining share for the weights, and the share of the values."""
        return both_shares(self.values)


@dataclass(frozen=True)
class AttentionGradient(AttentionRule):
    """The ordinary gradient of attention; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True
    of_scores: ClassVar[float] = 1.0

    @property
    def shares(self) -> Shares:
        """Everything for each."""
        return (1.0, 1.0)
