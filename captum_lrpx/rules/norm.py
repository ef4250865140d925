"""Rules for LayerNorm, RMSNorm, and norms that are written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from captum_lrpx.rules.base import Rule

__all__ = ["FrozenScale", "NormGradient", "NormRule"]


class NormRule(Rule):
    """A rule for a norm."""

    role: ClassVar[str] = "norm"


@dataclass(frozen=True)
class FrozenScale(NormRule):
    """The scale ``1 / std`` or ``1 / rms`` is held constant (Arras et al. 2025, D.5; Ali 2022).

    The norm becomes ``weight * (x - mean(x)) / [std(x)] + bias``, or ``weight * x / [rms(x)]``:
    what is left is linear. Conserves up to the share of the bias. Also known as the LN-rule.
    Slope: :func:`captum_lrpx.rules.node_rules.frozen_norm`.
    """

    conserves: ClassVar[bool] = True


@dataclass(frozen=True)
class NormGradient(NormRule):
    """The ordinary gradient of the norm; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True
