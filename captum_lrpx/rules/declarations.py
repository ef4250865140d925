"""Rules of norms, activations, attention, gates and routers, as declarations.

Each rule says which shares of the relevance the operands of a product get, or that an operation
keeps its own gradient; :mod:`captum_lrpx.rules.node_rules` applies it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

Share = float | None
"""Factor of an operand's gradient; None holds the operand constant."""

Shares = tuple[Share, Share]
"""The shares of the two operands of a product: the constant or activated one, and the signal."""

UNIFORM_SHARE: Final = 0.5
"""Uniform rule for a product ``z = a * b``: ``R_a = R_b = R_z / 2``.

The layer becomes ``0.5 a b + [0.5 a b]``: the gradient of the product is halved (Arras et al. 2025,
section 2.7; Achtibat et al. 2024, proposition 3.3). The product may be element-wise or a matrix
product. Conserves."""


@dataclass(frozen=True)
class Rule(ABC):
    """A backward rule for one role.

    Subclasses are frozen dataclasses: their fields are the rule's parameters, two equal rules are
    interchangeable, and a recipe made of rules can be a dictionary key.

    Attributes:
        role: The role that the rule is for: ``"norm"``, ``"activation"``, ``"attention"``,
            ``"gate"``, ``"router"`` or ``"linear"``.
        conserves: Whether the relevance of the output is the sum of the relevances of the inputs,
            biases counted as inputs.
        own_gradient: Whether the operation keeps its ordinary gradient.
    """

    role: ClassVar[str]
    conserves: ClassVar[bool]
    own_gradient: ClassVar[bool] = False


class _ProductRule(Rule):
    """Base class of rules for products."""

    @property
    @abstractmethod
    def shares(self) -> Shares:
        """Shares of the two operands: the constant or activated one, and the signal."""


# Norms and activations ----------------------------------------------------------------------------


class NormRule(Rule):
    """Base class of rules for norms."""

    role: ClassVar[str] = "norm"


@dataclass(frozen=True)
class FrozenScale(NormRule):
    """The LN-rule: the scale ``1 / std`` or ``1 / rms`` is constant (Arras et al. 2025, D.5).

    The norm becomes ``weight * (x - mean(x)) / [std(x)] + bias``, or ``weight * x / [rms(x)]``,
    which is linear (Ali et al. 2022). Conserves up to the share of the bias.
    Slope: :func:`captum_lrpx.rules.node_rules.frozen_norm`.
    """

    conserves: ClassVar[bool] = True


@dataclass(frozen=True)
class NormGradient(NormRule):
    """The ordinary gradient of the norm; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True


class ActivationRule(Rule):
    """Base class of rules for element-wise activations."""

    role: ClassVar[str] = "activation"


@dataclass(frozen=True)
class Identity(ActivationRule):
    """``R_z = R_g(z)``: the activation passes relevance through (Arras et al. 2025, D.3).

    The activation becomes ``z * [g(z) / z]``, with the limit ``g'(0)`` of the slope at ``z = 0``.
    Slope: :func:`captum_lrpx.rules.node_rules.secant`.
    """

    conserves: ClassVar[bool] = True


@dataclass(frozen=True)
class ActivationGradient(ActivationRule):
    """The ordinary gradient of the activation; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True


# Attention ----------------------------------------------------------------------------------------


class AttentionRule(_ProductRule):
    """Base class of rules for attention, whichever way a model computes it.

    The shares are those of the weights and of the values in ``A V``.

    Attributes:
        of_scores: Share of the query, and of the key, in ``Q K^T``.
    """

    role: ClassVar[str] = "attention"
    of_scores: ClassVar[float] = UNIFORM_SHARE

    @property
    def constant_weights(self) -> bool:
        """Whether the weights get no relevance."""
        return self.shares[0] is None


@dataclass(frozen=True)
class ConstantWeights(AttentionRule):
    """CP-LRP's rule: the attention weights are constant, all relevance goes to the values.

    ``[A] V``: signal-take-all, ``R_signal = R_z`` and ``R_gate = 0`` for ``z = signal * [gate]``,
    at the product of attention (Ali et al. 2022, there the AH-rule; Arras et al. 2017, 2019; Arras
    et al. 2025, D.4). Queries and keys get nothing.
    """

    conserves: ClassVar[bool] = True
    shares: ClassVar[Shares] = (None, 1.0)


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
    shares: ClassVar[Shares] = (UNIFORM_SHARE, UNIFORM_SHARE)


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
        _check_share("values", self.values)

    @property
    def conserves(self) -> bool:  # type: ignore[override]
        """Whether no relevance passes through the softmax."""
        return self.values == 1

    @property
    def shares(self) -> Shares:
        """The remaining share for the weights, and the share of the values."""
        return _both_shares(self.values)


@dataclass(frozen=True)
class AttentionGradient(AttentionRule):
    """The ordinary gradient of attention; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True
    of_scores: ClassVar[float] = 1.0
    shares: ClassVar[Shares] = (1.0, 1.0)


# Gated products -----------------------------------------------------------------------------------


class GateRule(_ProductRule):
    """Base class of rules for gated products, with shares of the activated and the other factor."""

    role: ClassVar[str] = "gate"


@dataclass(frozen=True)
class SignalTakeAll(GateRule):
    """One factor takes all the relevance, the other is constant (Arras et al. 2025, D.4).

    The layer becomes ``signal * [gate]``: ``R_signal = R_z``, ``R_gate = 0``. The paper defines
    gate and signal for attention only. In a gated MLP both choices conserve, and they are
    different methods.

    Attributes:
        signal: ``"up"`` (default): the linear branch is the signal and the activated gate is the
            constant; ``"activation"``: the mirror image.
    """

    conserves: ClassVar[bool] = True

    signal: Literal["up", "activation"] = "up"

    def __post_init__(self) -> None:
        if self.signal not in ("up", "activation"):
            raise ValueError(f"signal must be 'up' or 'activation', not {self.signal!r}.")

    @property
    def shares(self) -> Shares:
        """Everything for the signal."""
        return (None, 1.0) if self.signal == "up" else (1.0, None)


@dataclass(frozen=True)
class Uniform(GateRule):
    """The half rule: both factors get half (Achtibat et al. 2024; Jafari et al. 2024).

    See also Arras et al. 2025, 2.7. Formula: :data:`captum_lrpx.rules.declarations.UNIFORM_SHARE`.
    """

    conserves: ClassVar[bool] = True
    shares: ClassVar[Shares] = (UNIFORM_SHARE, UNIFORM_SHARE)


@dataclass(frozen=True)
class GateShares(GateRule):
    """``up`` gets a share, the activated gate the rest: ``R_up = p R``, ``R_gate = (1 - p) R``.

    These are the weights of the content path and of the control path of Dual Path Attribution
    (Jantsch et al. 2026, https://arxiv.org/abs/2603.19742) in a gated MLP. ``p = 1`` and ``p = 0``
    are :class:`SignalTakeAll` and its mirror image, ``p = 1/2`` is :class:`Uniform`.

    Attributes:
        up: The share ``p`` of the branch without an activation, from 0 to 1.
    """

    conserves: ClassVar[bool] = True

    up: float

    def __post_init__(self) -> None:
        _check_share("up", self.up)

    @property
    def shares(self) -> Shares:
        """The remaining share, and the share of ``up``."""
        return _both_shares(self.up)


@dataclass(frozen=True)
class ProductGradient(GateRule):
    """The ordinary gradient of the product; for ablations, doubles the relevance."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True
    shares: ClassVar[Shares] = (1.0, 1.0)


# Routers ------------------------------------------------------------------------------------------


class RouterRule(_ProductRule):
    """Base class of rules for ``w_e(x) * expert_e(x)`` in a mixture of experts.

    A router is recognized by its selection: weights (of a softmax, or a sigmoid) chosen by
    ``topk``, ``gather`` or a maximum. The choice of experts is constant in every recipe, as an
    index is. The shares are those of the router's weight and of the expert's output.
    """

    role: ClassVar[str] = "router"


@dataclass(frozen=True)
class ConstantRouter(RouterRule):
    """The router's weights are constant, all relevance goes to the experts: ``[w_e] expert_e(x)``.

    Signal-take-all with the router as the gate (Arras et al. 2017; Arras et al. 2025, D.4), like
    attention's softmax under LRP. The relevance of a mixture is the sum over its chosen
    experts, and the router gets nothing.
    """

    conserves: ClassVar[bool] = True
    shares: ClassVar[Shares] = (None, 1.0)


@dataclass(frozen=True)
class UniformRouter(RouterRule):
    """Router and expert get half each, and the router's softmax keeps its gradient.

    AttnLRP's rules for attention, applied to the router (Achtibat et al. 2024, sections
    3.3.1 and 3.3.2). The denominator that makes the chosen weights sum to 1 is constant. Does not
    conserve: a softmax has a bias-like term, a sigmoid has its value at 0.
    """

    conserves: ClassVar[bool] = False
    shares: ClassVar[Shares] = (UNIFORM_SHARE, UNIFORM_SHARE)


@dataclass(frozen=True)
class RouterGradient(RouterRule):
    """The ordinary gradient of the product; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True
    shares: ClassVar[Shares] = (1.0, 1.0)


def _check_share(name: str, share: float) -> None:
    """Check that a share of relevance is a number from 0 to 1.

    Raises:
        ValueError: If it is not a number from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must be a share of the relevance, from 0 to 1, not {share!r}.")


def _both_shares(signal: float) -> Shares:
    """Two shares that add up to one; an operand with share 0 is held constant."""
    return (1 - signal or None, signal or None)
