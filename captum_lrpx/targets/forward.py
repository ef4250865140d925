"""What is explained, as small forward modules that every Captum method can use.

Captum says what is explained by ``target`` on the output of a forward function. The modules here
are such forward functions for a Hugging Face model: inputs and per-example tensors in, the logits
of interest out. They compute only what is needed (one position of the head instead of all, two rows
of the output matrix instead of the vocabulary), take token ids and embeddings alike, and work the
same with ``LRPx``, ``IntegratedGradients``, ``FeatureAblation`` or ``infidelity``::

    forward = LogitDifference(model)
    args = (attention_mask, good, bad, position)
    LRPx(forward).attribute(embeds, additional_forward_args=args)
    IntegratedGradients(forward).attribute(embeds, additional_forward_args=args)
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from captum_lrpx.binding import architecture_of, find_model
from captum_lrpx.propagation import sites_of
from captum_lrpx.targets.task import task_of

__all__ = ["AnswerLogits", "ClassLogits", "LogitDifference", "TokenLogits", "last_token"]


def last_token(attention_mask: Tensor) -> Tensor:
    """Position of the last real token of each row, for padding on either side.

    Args:
        attention_mask: ``[B, T]``, 1 for real tokens and 0 for padding.

    Returns:
        ``[B]`` positions.

    Raises:
        ValueError: If a row has no real token.
    """
    real = attention_mask != 0
    if not bool(real.any(-1).all()):
        raise ValueError("A row of the attention mask has no real token, so there is no last one.")
    positions = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
    return torch.where(real, positions, -1).amax(-1)


class _ModelForward(nn.Module):
    """A forward module around one Hugging Face model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def _hugging_face(self) -> nn.Module:
        return find_model(self.model)

    def _run(self, module: nn.Module, x: Tensor, mask: Tensor | None, **keywords: Any) -> Any:
        """Run a module of the model on ids or embeddings, with the positions of a mask."""
        accepted = inspect.signature(module.forward).parameters
        keywords["inputs_embeds" if x.is_floating_point() else "input_ids"] = x
        if mask is not None:
            keywords["attention_mask"] = mask
            by_argument = architecture_of(self._hugging_face()).position_ids
            if by_argument and "position_ids" in accepted and not bool(mask[:, 0].all()):
                keywords["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        if "use_cache" in accepted:
            keywords["use_cache"] = False
        return module(**keywords)


class _HiddenAt(_ModelForward):
    """The input of a model's output layer at one position per row."""

    def _position(self, x: Tensor, mask: Tensor | None, position: int | Tensor | None) -> Tensor:
        rows, length = x.shape[:2]
        if position is None:
            if task_of(self._hugging_face()) == "masked-lm":
                raise ValueError(
                    "A masked language model predicts at its mask token: give `position`, an index "
                    "or a tensor with one index per row."
                )
            mask = torch.ones(rows, length, device=x.device) if mask is None else mask
            return last_token(mask)
        at = torch.as_tensor(position, device=x.device)
        if at.is_floating_point() or at.ndim > 1 or (at.ndim == 1 and at.shape[0] not in (1, rows)):
            raise ValueError(
                f"`position` must be an integer or an integer tensor of shape [{rows}] (one per "
                f"row), not {position!r}."
            )
        if bool(((at < -length) | (at >= length)).any()):
            raise IndexError(f"position {position} is out of range for inputs of {length} tokens.")
        return (at % length).expand(rows)

    def _logits(
        self, x: Tensor, mask: Tensor | None, position: int | Tensor | None, tokens: Tensor | None
    ) -> Tensor:
        """Logits ``[B, V]`` at one position per row, or ``[B, K]`` of the tokens ``[B, K]``."""
        if x.ndim != 3 and (x.is_floating_point() or x.ndim != 2):
            raise ValueError(
                f"Inputs must be token ids [B, T] or embeddings [B, T, D], not {tuple(x.shape)}."
            )
        at = self._position(x, mask, position)
        rows = torch.arange(x.shape[0], device=x.device)
        model = self._hugging_face()
        head = sites_of(model).language_model_head
        if not head:
            logits: Tensor = self._run(model, x, mask).logits[rows, at]
            return logits if tokens is None else logits.gather(1, tokens)
        base = getattr(model, str(type(model).base_model_prefix))  # type: ignore[attr-defined]
        hidden = self._run(base, x, mask).last_hidden_state[rows, at]
        for module in head[:-1]:
            hidden = module(hidden)
        return _output_rows(head[-1], hidden, tokens)


class TokenLogits(_HiddenAt):
    """Logits of all tokens at one position of each row: ``target`` is a token id.

    Args:
        model: A language model (causal or masked) or a token classifier, or a module around one.
    """

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position: int | Tensor | None = None,
    ) -> Tensor:
        """Logits at the explained position.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            attention_mask: ``[B, T]``, padding on either side.
            position: Index, or one index per row ``[B]``. Default: the last real token of each row;
                a masked language model has no default.

        Returns:
            ``[B, V]``.

        Raises:
            ValueError: If shapes do not fit, or a masked model gets no position.
            IndexError: If a position is out of range.
        """
        return self._logits(x, attention_mask, position, None)


class LogitDifference(_HiddenAt):
    """Logit of one token minus that of another: why this rather than that. No ``target``.

    Args:
        model: A language model (causal or masked), or a module around one.
    """

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        good: int | Tensor,
        bad: int | Tensor,
        position: int | Tensor | None = None,
    ) -> Tensor:
        """Difference of two logits at the explained position.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            attention_mask: ``[B, T]`` or None.
            good: Token id, or one per row ``[B]``.
            bad: Token id that is subtracted, or one per row ``[B]``.
            position: As in :class:`TokenLogits`.

        Returns:
            ``[B]``.

        Raises:
            ValueError: If shapes do not fit, or a masked model gets no position.
            IndexError: If a position or a token id is out of range.
        """
        rows = x.shape[0]
        pair = [torch.as_tensor(ids, device=x.device).expand(rows) for ids in (good, bad)]
        logits = self._logits(x, attention_mask, position, torch.stack(pair, dim=1))
        return logits[:, 0] - logits[:, 1]


class ClassLogits(_ModelForward):
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
        """Class logits.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``. A decoder finds its last real token
                by its padding id, so it needs ids unless there is one row.
            attention_mask: ``[B, T]`` or None.
            token_type_ids: ``[B, T]`` or None.

        Returns:
            ``[B, C]``.
        """
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self._run(self._hugging_face(), x, attention_mask, **extra).logits
        return logits


class AnswerLogits(_ModelForward):
    """Start or end logits of a question answering model: ``target`` is a position.

    Args:
        model: A question answering model, or a module around one.
        end: Which end of the answer.
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
        """Logits of the positions at which the answer may start or end.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            attention_mask: ``[B, T]`` or None.
            token_type_ids: ``[B, T]`` or None.

        Returns:
            ``[B, T]``.
        """
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self._run(self._hugging_face(), x, attention_mask, **extra)
        logits: Tensor = output.start_logits if self.end == "start" else output.end_logits
        return logits


def _output_rows(output: nn.Module, hidden: Tensor, tokens: Tensor | None) -> Tensor:
    """Logits ``[B, V]``, or those ``[B, K]`` of the tokens ``[B, K]``; ``hidden`` is ``[B, D]``."""
    plain = (
        type(output) is nn.Linear
        and "forward" not in vars(output)  # a rule, or accelerate, wraps this layer
        and not output._forward_hooks  # noqa: SLF001 - somebody listens to this layer
        and not output._forward_pre_hooks  # noqa: SLF001
    )
    if tokens is None or not plain:
        logits: Tensor = output(hidden)
        return logits if tokens is None else logits.gather(1, tokens)
    linear = cast("nn.Linear", output)
    weight = F.embedding(tokens, linear.weight)  # [B, K, D]; refuses ids that do not exist
    rows = torch.bmm(weight, hidden.unsqueeze(-1)).squeeze(-1)
    return rows if linear.bias is None else rows + linear.bias[tokens]
