"""Rules for the product of an expert's output with the weight that a router gives it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from captum_lrpx.rules.base import Rule
from captum_lrpx.rules.functional import UNIFORM_SHARE

if TYPE_CHECKING:
    from captum_lrpx.rules.base import Shares

__all__ = ["ConstantRouter", "RouterGradient", "RouterRule", "UniformRouter"]


class RouterRule(Rule):
    """A rule for ``w_e(x) * expert_e(x)`` in a mixture of experts.

    A router is known by its choice: weights (of a softmax, or a sigmoid) that ``topk``, ``gather``
    or a maximum selects. Which experts are chosen is constant in every recipe, as an index is.
    """

    role: ClassVar[str] = "router"

    @property
    @abstractmethod
    def shares(self) -> Shares:
        """Of the router's weight and of the expert's output."""


@dataclass(frozen=True)
class ConstantRouter(RouterRule):
    """The router's weights are constant, all relevance goes to the experts: ``[w_e] expert_e(x)``.

    Signal-take-all with the router as the gate (Arras et al. 2017; Arras et al. 2025, D.4), as a
    softmax of attention is held constant by LRP. The relevance of a mixture is the sum of that of
    its chosen experts, and the router gets no graph at all.
    """

    conserves: ClassVar[bool] = True

    @property
    def shares(self) -> Shares:
        """All for the expert."""
        return (None, 1.0)


@dataclass(frozen=True)
class UniformRouter(RouterRule):
    """Router and expert get half each, and the router's softmax keeps its gradient.

    The rules that AttnLRP has for attention, applied to the router (Achtibat et al. 2024, sections
    3.3.1 and 3.3.2). The denominator that makes the chosen weights sum to 1 is constant. Does not
    conserve: a softmax has a bias-like term, a sigmoid has its value at 0.
    """

    conserves: ClassVar[bool] = False

    @property
    def shares(self) -> Shares:
        """Half for each."""
        return (UNIFORM_SHARE, UNIFORM_SHARE)


@dataclass(frozen=True)
class RouterGradient(RouterRule):
    """The ordinary gradient of the product; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True

    @property
    def shares(self) -> Shares:
        """All for each."""
        return (1.0, 1.0)
