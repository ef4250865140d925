"""Base class of rules: a formula for one role of an operation, and its properties."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["Forward", "Patch", "Rule", "Share", "Shares", "both_shares", "check_share"]

Forward = Callable[..., Any]
Patch = Callable[..., Any]
"""``patch(forward, *args, **kwargs)`` returns what ``forward(*args, **kwargs)`` returns."""

Share = float | None
"""Factor of an operand's gradient; None holds the operand constant."""

Shares = tuple[Share, Share]
"""The shares of the two operands of a product: the constant or activated one, and the signal."""


@dataclass(frozen=True)
class Rule(ABC):
    """A backward rule for one role.

    Subclasses are frozen dataclasses: their fields are the rule's parameters, two equal rules are
    interchangeable, and a recipe made of rules can be a dictionary key.

    Attributes:
        role: The role that the rule is for: ``"norm"``, ``"activation"``, ``"attention"``,
            ``"gate"``, ``"router"`` or ``"linear"``.
        conserves: Whether the relevance of the output is the sum of the relevances of the inputs,
            biases counted as inputs.
        own_gradient: Whether the operation keeps its ordinary gradient.
    """

    role: ClassVar[str]
    conserves: ClassVar[bool]
    own_gradient: ClassVar[bool] = False


def check_share(name: str, share: float) -> None:
    """Check that a share of relevance is a number from 0 to 1.

    Raises:
        ValueError: If it is not a number from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must be a share of the relevance, from 0 to 1, not {share!r}.")


def both_shares(signal: float) -> Shares:
    """Two shares that add up to one; an operand with share 0 is held constant."""
    return (1 - signal or None, signal or None)
