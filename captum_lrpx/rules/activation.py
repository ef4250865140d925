"""Rules for element-wise activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from captum_lrpx.rules.base import Rule

__all__ = ["ActivationGradient", "ActivationRule", "Identity"]


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
