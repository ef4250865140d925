"""What Captum needs to explain what a person asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Question", "Terms"]


@dataclass(frozen=True)
class Question:
    """What Captum needs to explain a :class:`~captum_lrpx.targets.Target`.

    Attributes:
        forward: Forward function.
        target: Captum's ``target``.
        additional_forward_args: Captum's ``additional_forward_args``.
        position: Position of the logits in the input, for outputs that have a single one.
        description: The question in words.
        terms: The outputs that are summed; None for a function of the outputs.
    """

    forward: nn.Module
    target: int | None
    additional_forward_args: tuple[Any, ...]
    position: int | None
    description: str
    terms: Terms | None = None


@dataclass(frozen=True)
class Terms:
    """A weighted sum of outputs of a model.

    Attributes:
        choices: Token ids, classes, or positions of an answer.
        weights: The weight of each.
        names: What each is called: the token, the class, the token at the position.
        positions: Where each is read, for models with outputs per position.
    """

    choices: tuple[int, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]
    positions: tuple[int, ...] | None = None

    @property
    def position(self) -> int | None:
        """The position, if there is a single one."""
        if self.positions is None or len(set(self.positions)) > 1:
            return None
        return self.positions[0]

    @property
    def is_one(self) -> bool:
        """Whether this is a single output."""
        return self.weights == (1.0,)

    @property
    def is_pair(self) -> bool:
        """Whether this is the difference of two outputs at one place."""
        return self.weights == (1.0, -1.0) and len(set(self.positions or (0,))) == 1
