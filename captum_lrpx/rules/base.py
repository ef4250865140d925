"""What a rule is: a formula for one role of an architecture, attached to a site of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from captum_lrpx.sites import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captum_lrpx.rules.patches import Attachment

__all__ = ["Rule", "SiteT"]

SiteT = TypeVar("SiteT", bound=Site)


@dataclass(frozen=True)
class Rule(ABC, Generic[SiteT]):
    """A backward rule for one role.

    Subclasses are frozen dataclasses: their fields are the rule's parameters, two equal rules are
    interchangeable, and a recipe made of rules can be a dictionary key.

    Attributes:
        role: The role that the rule is for: ``"norm"``, ``"activation"``, ``"attention"``,
            ``"gate"`` or ``"linear"``.
        conserves: Whether the relevance of the output is the sum of the relevances of the inputs,
            biases counted as inputs.
    """

    role: ClassVar[str]
    conserves: ClassVar[bool]

    @abstractmethod
    def attach(self, site: SiteT) -> Sequence[Attachment]:
        """What has to be patched so that the rule holds at ``site``; nothing is changed yet."""
