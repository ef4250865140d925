"""Rules for LayerNorm, RMSNorm, and norms that are written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from captum_lrpx.rules.base import Rule

__all__ = ["FrozenScale", "NormGradient", "NormRule"]


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
