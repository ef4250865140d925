"""What a method is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx import _captum
from captum_lrpx.propagation import sites_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from captum_lrpx.targets import Question

__all__ = ["Attributed", "Subject"]

_BASELINES = ("zero", "mask", "pad", "unk")


@dataclass(frozen=True)
class Subject:
    """One explained value of one text.

    Attributes:
        model: The Hugging Face model.
        tokenizer: Its tokenizer.
        question: What is explained.
        ids: Token ids ``[1, T]``.
    """

    model: nn.Module
    tokenizer: Any
    question: Question
    ids: Tensor

    @property
    def arguments(self) -> dict[str, Any]:
        """Captum's arguments besides the inputs."""
        return {
            "target": self.question.target,
            "additional_forward_args": self.question.additional_forward_args,
        }

    def embeddings(self) -> Tensor:
        """The token embeddings ``[1, T, D]``, which need a gradient."""
        embedding = sites_of(self.model).token_embedding
        vectors: Tensor = embedding(self.ids).detach()
        return vectors.requires_grad_()

    def baseline(self, name: str) -> Tensor:
        """What replaces embeddings, ``[1, T, D]``.

        Args:
            name: ``"zero"``, or a token of the tokenizer: ``"mask"``, ``"pad"``, ``"unk"``.

        Raises:
            ValueError: If the tokenizer has no such token.
        """
        if name == "zero":
            return torch.zeros_like(self.embeddings())
        if name not in _BASELINES:
            raise ValueError(f"The baseline must be one of {', '.join(_BASELINES)}, not {name!r}.")
        token = getattr(self.tokenizer, f"{name}_token_id", None)
        if token is None:
            raise ValueError(f"The tokenizer has no {name} token: choose another baseline.")
        vectors: Tensor = sites_of(self.model).token_embedding(torch.full_like(self.ids, token))
        return vectors.detach()

    def value(self) -> float:
        """The explained value, from a forward pass."""
        with torch.no_grad():
            output = _captum.run_forward(
                self.question.forward,
                self.embeddings(),
                self.question.target,
                self.question.additional_forward_args,
            )
        return float(output.reshape(-1)[0])


@dataclass(frozen=True)
class Attributed:
    """What a method found.

    Attributes:
        relevances: ``[T]``.
        value: The explained value.
        delta: The method's own convergence delta, if it has one.
        recipe: Name of the rules, if it has any.
    """

    relevances: Tensor
    value: float
    delta: float | None = None
    recipe: str | None = None
