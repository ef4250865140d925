"""What a method is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx import _captum
from captum_lrpx.structure import token_embedding_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from captum_lrpx.targets import Question
    from captum_lrpx.targets.scene import Scene

__all__ = ["Attributed", "Subject"]

_BASELINES = ("zero", "mask", "pad", "unk")


@dataclass(frozen=True)
class Subject:
    """One explained value for each text of a batch.

    Attributes:
        model: The Hugging Face model.
        tokenizer: Its tokenizer.
        question: What is explained. Its arguments that are tensors have a row per text; if there is
            a ``mask``, that very tensor is among them.
        ids: Token ids ``[B, T]``, padded on the right.
        mask: 1 for tokens and 0 for padding, ``[B, T]``. Default: there is no padding.
        scene: Several inputs that take the place of the ids, for a batch of one.
    """

    model: nn.Module
    tokenizer: Any
    question: Question
    ids: Tensor
    mask: Tensor | None = None
    scene: Scene | None = None

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        if self.mask.shape != self.ids.shape:
            raise ValueError(
                f"The mask has the shape {tuple(self.mask.shape)}, but the ids have "
                f"{tuple(self.ids.shape)}."
            )
        real = self.mask != 0
        if not bool(real[:, 0].all()) or bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise ValueError(
                "The texts of a batch must be padded on the right: each row of the mask is ones "
                "and then zeros."
            )
        if not any(argument is self.mask for argument in self.question.additional_forward_args):
            raise ValueError(
                "The mask is not among the arguments of the question, so the model would read the "
                "padding: give the same tensor as `mask` and in `additional_forward_args`."
            )

    @property
    def inputs(self) -> Tensor | tuple[Tensor, ...]:
        """What relevance is attributed to, as Captum takes it."""
        return self.ids if self.scene is None else self.scene.inputs

    @property
    def arguments(self) -> dict[str, Any]:
        """Captum's arguments besides the inputs."""
        return {
            "target": self.question.target,
            "additional_forward_args": self.question.additional_forward_args,
        }

    @property
    def rows(self) -> list[Subject]:
        """Each text by itself, without padding."""
        return [self.row(index) for index in range(len(self.ids))]

    def row(self, index: int) -> Subject:
        """One text by itself, without padding.

        Args:
            index: Which one.

        Returns:
            A batch of one.
        """
        if len(self.ids) == 1 and self.mask is None:
            return self
        here = slice(index, index + 1)
        length = self.ids.shape[1] if self.mask is None else int((self.mask[index] != 0).sum())
        mask = None if self.mask is None else self.mask[here, :length]
        arguments = tuple(
            mask if argument is self.mask else _of_row(argument, len(self.ids), here)
            for argument in self.question.additional_forward_args
        )
        question = replace(self.question, additional_forward_args=arguments)
        return replace(self, question=question, ids=self.ids[here, :length], mask=mask)

    def embeddings(self) -> Tensor:
        """The token embeddings ``[B, T, D]``, which need a gradient."""
        embedding = token_embedding_of(self.model)
        vectors: Tensor = embedding(self.ids).detach()
        return vectors.requires_grad_()

    def baseline(self, name: str) -> Tensor:
        """What replaces embeddings, ``[B, T, D]``.

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
        vectors: Tensor = token_embedding_of(self.model)(torch.full_like(self.ids, token))
        return vectors.detach()

    @cached_property
    def values(self) -> Tensor:
        """The explained values ``[B]``, from one forward pass."""
        with torch.no_grad():
            output: Tensor = _captum.run_forward(
                self.question.forward,
                self.embeddings(),
                self.question.target,
                self.question.additional_forward_args,
            )
        return output.reshape(-1)

    def real(self, relevances: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Relevances of the inputs by entry ``[B, T]``, with zeros at the padding."""
        if isinstance(relevances, tuple):
            assert self.scene is not None  # noqa: S101 - for the type checker
            return self.scene.gather([each.detach() for each in relevances])
        relevances = relevances.detach()
        return relevances if self.mask is None else relevances.masked_fill(self.mask == 0, 0)


def _of_row(argument: Any, rows: int, here: slice) -> Any:
    """The part of an argument that is about one row."""
    per_row = isinstance(argument, torch.Tensor) and argument.ndim and len(argument) == rows
    return argument[here] if per_row else argument


@dataclass(frozen=True)
class Attributed:
    """What a method found.

    Attributes:
        relevances: ``[B, T]``, zero at padding.
        values: The explained values ``[B]``.
        deltas: The method's own convergence deltas ``[B]``, if it has them.
        recipe: Name of the rules, if it has any.
    """

    relevances: Tensor
    values: Tensor
    deltas: Tensor | None = None
    recipe: str | None = None
