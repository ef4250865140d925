"""Targets as small forward modules that every Captum method can use.

Captum selects an explained value by ``target`` on the output of a forward function. The modules
here are such functions for a Hugging Face model: inputs and per-example tensors in, the logits
of interest out. They compute only what they need (the head at one position instead of all, two rows
of the output matrix instead of the vocabulary), take token ids and embeddings alike, and work the
same with ``LRPx``, ``IntegratedGradients``, ``FeatureAblation`` or ``infidelity``::

    forward = LogitDifference(model)
    args = (attention_mask, good, bad, position)
    LRPx(forward).attribute(embeds, additional_forward_args=args)
    IntegratedGradients(forward).attribute(embeds, additional_forward_args=args)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_lrpx.targets.head import HeadForward
from captum_lrpx.targets.quantity import check_quantity, in_quantity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from captum_lrpx.targets.quantity import Quantity

__all__ = ["LogitDifference", "TokenLogits", "TokenSum", "per_row"]


class TokenLogits(HeadForward):
    """Logits of all tokens at one position of each row: ``target`` is a token id.

    Args:
        model: A language model (causal or masked) or a token classifier, or a module around one.
    """

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position: int | Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute logits at the explained position.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            attention_mask: ``[B, T]``, padding on either side.
            position: Index, or one index per row ``[B]``. Default: the last real token of each row;
                a masked language model has no default.
            token_type_ids: ``[B, T]`` or None.

        Returns:
            ``[B, V]``.

        Raises:
            ValueError: If shapes do not fit, or a masked model gets no position.
            IndexError: If a position is out of range.
        """
        at = self.positions(x, attention_mask, position)
        return self.logits(x, attention_mask, at, types=token_type_ids).squeeze(1)


class LogitDifference(HeadForward):
    """Logit of one token minus the logit of another: why this rather than that. No ``target``.

    Args:
        model: A language model (causal or masked) or a token classifier, or a module around one.
    """

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        good: int | Tensor,
        bad: int | Tensor,
        position: int | Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute the difference of two logits at the explained position.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            attention_mask: ``[B, T]`` or None.
            good: Token id, or one per row ``[B]``.
            bad: Token id to subtract, or one per row ``[B]``.
            position: As in :class:`TokenLogits`.
            token_type_ids: ``[B, T]`` or None.

        Returns:
            ``[B]``.

        Raises:
            ValueError: If shapes do not fit, or a masked model gets no position.
            IndexError: If a position or a token id is out of range.
        """
        at = self.positions(x, attention_mask, position)
        rows = x.shape[0]
        pair = [torch.as_tensor(ids, device=x.device).expand(rows) for ids in (good, bad)]
        wanted = torch.stack(pair, dim=1).unsqueeze(1)
        logits = self.logits(x, attention_mask, at, wanted, token_type_ids)
        return logits[:, 0, 0] - logits[:, 0, 1]


class TokenSum(HeadForward):
    """Sum over several tokens, each at its own position if needed. No ``target``.

    For instance several forms of one word ("are", "were") at one position; the tokens of a span of
    text, each at the position before it; with weights of both signs, some tokens against others.

    For ``"log_prob"`` and ``"prob"`` the gradient of the log-probability or probability is taken,
    ordinary functions of the logits: relevances then decompose this gradient times the
    logits, not the log-probability or probability itself.

    Args:
        model: A language model (causal or masked) or a token classifier, or a module around one.
        of: The quantity to sum.

    Raises:
        ValueError: If ``of`` is unknown.
    """

    def __init__(self, model: nn.Module, of: Quantity = "logit") -> None:
        super().__init__(model)
        self.of: Quantity = check_quantity(of)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        tokens: Sequence[int] | Tensor,
        position: int | Tensor | None = None,
        weights: Sequence[float] | Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute the weighted sum over the tokens of each row.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            attention_mask: ``[B, T]`` or None.
            tokens: Token ids ``[B, K]``; a tensor ``[1, K]`` or a sequence of ``K`` integers is the
                same for every row.
            position: As in :class:`TokenLogits`, or one per token ``[B, K]``.
            weights: ``[B, K]``, likewise. Default: 1. A weight of 0 leaves a token out, for rows of
                different numbers of tokens.
            token_type_ids: ``[B, T]`` or None.

        Returns:
            ``[B]``.

        Raises:
            ValueError: If shapes do not fit, or a masked model gets no position.
            IndexError: If a position or a token id is out of range.
        """
        ids = per_row("tokens", tokens, x)
        at = self.positions(x, attention_mask, position, ids.shape[1])
        # [B, 1, K] at one position, [B, K, 1] where each token has a position of its own
        wanted = ids.unsqueeze(1) if at.shape[1] == 1 else ids.unsqueeze(2)
        if self.of == "logit":
            values = self.logits(x, attention_mask, at, wanted, token_type_ids)
        else:
            logits = self.logits(x, attention_mask, at, types=token_type_ids)
            values = in_quantity(logits, self.of).gather(2, wanted)
        values = values.reshape(ids.shape)
        return (values if weights is None else values * per_row("weights", weights, x)).sum(1)


def per_row(name: str, values: Sequence[float] | Tensor, x: Tensor) -> Tensor:
    """Values per row ``[B, K]`` for inputs ``[B, ...]``.

    Args:
        name: Name of the values, for the message.
        values: ``[B, K]`` or ``[1, K]``, or a sequence of ``K`` numbers.
        x: The inputs.

    Raises:
        ValueError: If the shape is another one. A tensor ``[K]`` is refused, because Captum takes
            the first dimension of every tensor argument for the batch.
    """
    tensor = torch.as_tensor(values, device=x.device)
    if not isinstance(values, Tensor) and tensor.ndim == 1:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != 2 or tensor.shape[0] not in (1, x.shape[0]) or not tensor.shape[1]:
        raise ValueError(
            f"`{name}` must be a tensor [{x.shape[0]}, K] with a row per example, or a sequence of "
            f"K numbers, not {values!r}."
        )
    return tensor.expand(x.shape[0], -1)
