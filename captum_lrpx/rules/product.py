"""Rules for the product ``activation(gate(x)) * up(x)`` of a gated MLP."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from captum_lrpx.rules.base import Rule
from captum_lrpx.rules.functional import UNIFORM_SHARE

if TYPE_CHECKING:
    from captum_lrpx.rules.base import Shares

__all__ = ["GateRule", "ProductGradient", "SignalTakeAll", "Uniform"]


class GateRule(Rule):
    """A rule for a gated product."""

    role: ClassVar[str] = "gate"

    @property
    @abstractmethod
    def shares(self) -> Shares:
        """Of the activated factor and of the other one."""


@dataclass(frozen=True)
class SignalTakeAll(GateRule):
    """One factor takes all the relevance, the other is constant (Arras et al. 2025, D.4).

    The layer becomes ``signal * [gate]``: ``R_signal = R_z``, ``R_gate = 0``. The paper says what
    gate and signal are for attention only. In a gated MLP both choices conserve, and they are
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
        """All for the signal."""
        return (None, 1.0) if self.signal == "up" else (1.0, None)


@dataclass(frozen=True)
class Uniform(GateRule):
    """Both factors get half (Achtibat et al. 2024; Jafari et al. 2024; Arras et al. 2025, 2.7).

    Also known as the half rule. Formula: :data:`captum_lrpx.rules.functional.UNIFORM_SHARE`.
    """

    conserves: ClassVar[bool] = True

    @property
    def shares(self) -> Shares:
        """Half for each."""
        return (UNIFORM_SHARE, UNIFORM_SHARE)


@dataclass(frozen=True)
class ProductGradient(GateRule):
    """The ordinary gradient of the product; for ablations, doubles the relevance."""

    conserves: ClassVar[bool] = False
    own_gradient: ClassVar[bool] = True

    @property
    def shares(self) -> Shares:
        """All for each."""
        return (1.0, 1.0)
