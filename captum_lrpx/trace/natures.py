"""Natures of tensors and roles of operations, the vocabulary of rules and ledgers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from captum_lrpx.trace.operations import Kind

Nature = Literal["signal", "activated", "gate", "weights", "scale", "constant"]
"""Nature of a tensor.

- ``"signal"``: linear in the residual stream, or a product with a linear factor;
- ``"activated"``: a signal after an activation with g(0) = 0, or a signal that a hint declares to
  be a gate;
- ``"gate"``: a function that is not 0 at 0 (sigmoid, exp, softplus, 1 + tanh);
- ``"weights"``: a softmax;
- ``"scale"``: the divisor of a norm;
- ``"constant"``: held constant by a hint (the key of a recurrence), and functions of constants.
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
"""Role of an operation.

- ``"attention"``: weights times values; ``"scores"``: query times key;
- ``"gated product"``: an activated branch times another;
- ``"router"``: an expert times the router's weight that selected it;
- ``"similarity"``: a product of two factors each of which depends on an input that the other does
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
        kind: Kind of its operator.
        role: Role of the operation.
        nature: Nature of its result.
        constant: Places of operands that the role holds constant (``"constant factor"``, and
            constants added to a signal); the weights of ``"attention"`` and of a
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
