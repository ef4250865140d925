"""Rules for the product ``activation(gate(x)) * up(x)`` of a gated MLP."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from captum_lrpx.rules.base import Rule, both_shares, check_share
from captum_lrpx.rules.functional import UNIFORM_SHARE

if TYPE_CHECKING:
    from captum_lrpx.rules.base import Shares

__all__ = ["GateRule", "GateShares", "ProductGradient", "SignalTakeAll", "Uniform"]


class GateRule(Rule):
    """Base class of rules for gated products."""

    role: ClassVar[str] = "gate"

    @property
    @abstractmethod
    def shares(self) -> Shares:
        """Shares of the activated factor and of the other one."""


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

    See also Arras et al. 2025, 2.7. Formula: :data:`captum_lrpx.rules.functional.UNIFORM_SHARE`.
    """

    conserves: ClassVar[bool] = True

    @property
    def shares(self) -> Shares:
        """Half for each."""
        return (UNIFORM_SHARE, UNIFORM_SHARE)


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
        check_share("up", self.up)

    @property
    def shares(self) -> Shares:
        """The remaining share, and the share of ``up``."""
        return both_shares(self.up)


@dataclass(frozen=True)
class ProductGradient(GateRule):
    """The ordinary gradient of the product; for ablations, doubles the relevance."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True

    @property
    def shares(self) -> Shares:
        """Everything for each."""
        return (1.0, 1.0)
