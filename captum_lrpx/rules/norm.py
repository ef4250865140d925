"""Rules for LayerNorm and RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from captum_lrpx.rules.base import Rule
from captum_lrpx.rules.patches import Attachment, FrozenNormPatch
from captum_lrpx.sites import NormSite

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FrozenScale", "NormGradient", "NormRule"]


class NormRule(Rule[NormSite]):
    """A rule for a norm."""

    role: ClassVar[str] = "norm"


@dataclass(frozen=True)
class FrozenScale(NormRule):
    """The scale ``1 / std`` or ``1 / rms`` is held constant (Arras et al. 2025, D.5; Ali 2022).

    Formula: :func:`captum_lrpx.rules.functional.frozen_norm`.
    """

    conserves: ClassVar[bool] = True

    def attach(self, site: NormSite) -> Sequence[Attachment]:
        """Freeze the norm's scale."""
        patch = FrozenNormPatch(site.module, site.centered, site.weight_offset, site.path)
        return [Attachment(site.module, patch)]


@dataclass(frozen=True)
class NormGradient(NormRule):
    """The ordinary gradient of the norm; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False

    def attach(self, site: NormSite) -> Sequence[Attachment]:  # noqa: ARG002 - nothing to do
        """Leave the norm alone."""
        return []
