"""Rules for the product of an expert's output with its router's weight."""

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
    """Base class of rules for ``w_e(x) * expert_e(x)`` in a mixture of experts.

    A router is recognized by its selection: weights (of a softmax, or a sigmoid) chosen by
    ``topk``, ``gather`` or a maximum. The choice of experts is constant in every recipe, as an
    index is.
    """

    role: ClassVar[str] = "router"

    @property
    @abstractmethod
    def shares(self) -> Shares:
        """Shares of the router's weight and of the expert's output."""


@dataclass(frozen=True)
class ConstantRouter(RouterRule):
    """The router's weights are constant, all relevance goes to the experts: ``[w_e] expert_e(x)``.

    Signal-take-all with the router as the gate (Arras et al. 2017; Arras et al. 2025, D.4), like
    attention's softmax under LRP. The relevance of a mixture is the sum over
    its chosen experts, and the router gets no graph at all.
    """

    conserves: ClassVar[bool] = True

    @property
    def shares(self) -> Shares:
        """Everything for the expert."""
        return (None, 1.0)


@dataclass(frozen=True)
class UniformRouter(RouterRule):
    """Router and expert get half each, and the router's softmax keeps its gradient.

    AttnLRP's rules for attention, applied to the router (Achtibat et al. 2024, sections
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
        """Everything for each."""
        return (1.0, 1.0)
