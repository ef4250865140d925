"""Rules for element-wise activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from captum_lrpx.rules.base import Rule
from captum_lrpx.rules.patches import Attachment, InlineSecant, SecantPatch
from captum_lrpx.sites import ActivationSite, InlineActivationSite

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ActivationGradient", "ActivationRule", "Identity"]


class ActivationRule(Rule[ActivationSite | InlineActivationSite]):
    """A rule for an element-wise activation."""

    role: ClassVar[str] = "activation"


@dataclass(frozen=True)
class Identity(ActivationRule):
    """``R_z = R_g(z)``: the activation passes relevance through (Arras et al. 2025, D.3).

    Formula: :func:`captum_lrpx.rules.functional.identity`.
    """

    conserves: ClassVar[bool] = True

    def attach(self, site: ActivationSite | InlineActivationSite) -> Sequence[Attachment]:
        """Give the activation its secant slope."""
        if isinstance(site, InlineActivationSite):
            inline = InlineSecant(site.function, site.path, site.before)
            return [Attachment(site.before, inline.before), Attachment(site.after, inline.after)]
        return [Attachment(site.module, SecantPatch(site.module, site.path))]


@dataclass(frozen=True)
class ActivationGradient(ActivationRule):
    """The ordinary gradient of the activation; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False

    def attach(self, site: ActivationSite | InlineActivationSite) -> Sequence[Attachment]:  # noqa: ARG002
        """Leave the activation alone."""
        return []
