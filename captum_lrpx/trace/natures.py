"""What a tensor is and what an operation is for, in words that rules and ledgers understand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from captum_lrpx.trace.operations import Kind

__all__ = ["PRIORITY", "SIGNALS", "Nature", "Operation", "Role"]

Nature = Literal["signal", "activated", "gate", "weights", "scale", "constant"]
"""What a tensor is.

- ``"signal"``: linear in the residual stream, or a product that has one;
- ``"activated"``: a signal after an activation with g(0) = 0, or what a hint calls a gate that is
  linear in the signal;
- ``"gate"``: a function that is not 0 at 0 (sigmoid, exp, softplus, 1 + tanh);
- ``"weights"``: a softmax;
- ``"scale"``: what a norm divides by;
- ``"constant"``: held constant by a hint (the key of a recurrence), and functions of such.
"""

Role = Literal[
    "linear",
    "activation",
    "norm",
    "softmax",
    "attention",
    "scores",
    "gated product",
    "router",
    "similarity",
    "composite",
    "constant factor",
    "kernel",
    "rule",
    "undecided",
    "unknown",
]
"""What an operation is for.

- ``"attention"``: weights times values; ``"scores"``: query times key;
- ``"gated product"``: an activated branch times another;
- ``"router"``: an expert times the weight that a router has chosen it with;
- ``"similarity"``: a product of two things each of which depends on an input that the other does
  not depend on (an image and a text);
- ``"composite"``: a product of functions of one tensor, part of an activation;
- ``"constant factor"``: a product or quotient one side of which is held constant in every recipe:
  gates, pools, scales of norms, denominators.
"""

SIGNALS: Final[frozenset[Nature]] = frozenset({"signal", "activated"})
PRIORITY: Final[tuple[Nature, ...]] = ("weights", "gate", "activated", "scale", "constant")


@dataclass(frozen=True)
class Operation:
    """A node with its role.

    Attributes:
        kind: What the operator does.
        role: What it is for.
        nature: What its result is.
        constant: Places of operands that the role holds constant (``"constant factor"``, and
            constants that are added to a signal); the weights of ``"attention"`` and of a
            ``"router"``; the activated branch of a ``"gated product"``.
        signal: Places of the operands that get relevance beside those.
        weights: Places of functions of a softmax (weights of constant values) that are added to a
            signal: constant where the weights of attention are.
    """

    kind: Kind
    role: Role
    nature: Nature
    constant: tuple[int, ...] = ()
    signal: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
