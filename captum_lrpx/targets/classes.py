"""Forward modules of classifiers and of question answering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from captum_lrpx.targets.head import ModelForward, output_of, run_model

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["AnswerLogits", "ClassDifference", "ClassLogits"]


class ClassLogits(ModelForward):
    """Logits of a sequence classifier: ``target`` is a class.

    Args:
        model: A sequence classification model, or a module around one.
    """

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute class logits.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``. A decoder finds its last real token
                by the padding id, so it needs ids unless there is only one row.
            attention_mask: ``[B, T]`` or None.
            token_type_ids: ``[B, T]`` or None.

        Returns:
            ``[B, C]``.
        """
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return output_of(run_model(self.model, self.model, x, attention_mask, **extra), "logits")


class ClassDifference(ModelForward):
    """Logit of one class minus the logit of another: why this rather than that. No ``target``.

    Args:
        model: A sequence classification model, or a module around one.
    """

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        good: int | Tensor,
        bad: int | Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute the difference of two class logits.

        Args:
            x: As in :class:`ClassLogits`.
            attention_mask: ``[B, T]`` or None.
            good: Class, or one per row ``[B]``.
            bad: Class to subtract, or one per row ``[B]``.
            token_type_ids: ``[B, T]`` or None.

        Returns:
            ``[B]``.

        Raises:
            IndexError: If a class is out of range.
        """
        logits = ClassLogits(self.model)(x, attention_mask, token_type_ids)
        rows = torch.arange(x.shape[0], device=x.device)
        difference: Tensor = logits[rows, good] - logits[rows, bad]
        return difference


class AnswerLogits(ModelForward):
    """Start or end logits of a question answering model: ``target`` is a position.

    Args:
        model: A question answering model, or a module around one.
        end: End of the answer, ``"start"`` or ``"end"``.
    """

    def __init__(self, model: nn.Module, end: Literal["start", "end"] = "start") -> None:
        super().__init__(model)
        if end not in ("start", "end"):
            raise ValueError(f"end must be 'start' or 'end', not {end!r}.")
        self.end = end

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute logits of the positions at which the answer may start or end.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            attention_mask: ``[B, T]`` or None.
            token_type_ids: ``[B, T]`` or None.

        Returns:
            ``[B, T]``.
        """
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = run_model(self.model, self.model, x, attention_mask, **extra)
        return output_of(output, f"{self.end}_logits")
