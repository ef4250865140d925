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

A second kind goes around another forward module, any with one number per class, token or position:
a function of its outputs ``[B, C]``. The arguments of the inner module come after its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from captum_lrpx.targets.head import HeadForward, ModelForward, output_of, run_model
from captum_lrpx.targets.quantity import check_quantity, in_quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum_lrpx.targets.quantity import Quantity


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
        ids = _per_row("tokens", tokens, x)
        at = self.positions(x, attention_mask, position, ids.shape[1])
        # [B, 1, K] at one position, [B, K, 1] where each token has a position of its own
        wanted = ids.unsqueeze(1) if at.shape[1] == 1 else ids.unsqueeze(2)
        if self.of == "logit":
            values = self.logits(x, attention_mask, at, wanted, token_type_ids)
        else:
            logits = self.logits(x, attention_mask, at, types=token_type_ids)
            values = in_quantity(logits, self.of).gather(2, wanted)
        values = values.reshape(ids.shape)
        return (values if weights is None else values * _per_row("weights", weights, x)).sum(1)


def _per_row(name: str, values: Sequence[float] | Tensor, x: Tensor) -> Tensor:
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


# Classes and answers -----------------------------------------------------------------------------


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
        output = run_model(self.model, self.model, x, attention_mask, token_type_ids)
        return output_of(output, "logits")


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
        output = run_model(self.model, self.model, x, attention_mask, token_type_ids)
        return output_of(output, f"{self.end}_logits")


# Functions of outputs ----------------------------------------------------------------------------


class _InQuantity(nn.Module):
    """Outputs of a forward module, converted to another quantity.

    Args:
        forward: The forward module.
    """

    quantity: ClassVar[Quantity]

    def __init__(self, forward: nn.Module) -> None:
        super().__init__()
        self.inner = forward

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Compute the outputs of the inner module in the quantity of the class.

        Args:
            x: Inputs of the inner module.
            *args: Its other arguments.

        Returns:
            ``[B, C]``.
        """
        return in_quantity(self.inner(x, *args), self.quantity)


class Probabilities(_InQuantity):
    """Probabilities of the outputs of a forward module: ``target`` as for the inner module.

    The softmax is an ordinary function here, with its own gradient. The relevances for
    ``p_t`` decompose ``sum_v (dp_t / dz_v) z_v`` over the logits ``z``, not ``p_t``: the
    convergence delta is no measure of quality here.

    Args:
        forward: The forward module.
    """

    quantity = "prob"


class LogProbabilities(_InQuantity):
    """Log-probabilities of the outputs of a forward module: ``target`` as for the inner module.

    As with :class:`Probabilities`, the relevances for ``log p_t`` decompose ``z_t - sum_v p_v
    z_v``, the logit minus the expected logit. The difference of two log-probabilities equals the
    difference of the two logits, with the same relevances.

    Args:
        forward: The forward module.
    """

    quantity = "log_prob"


class OutputSum(nn.Module):
    """Weighted sum of outputs of a forward module. No ``target``.

    Args:
        forward: The forward module.
    """

    def __init__(self, forward: nn.Module) -> None:
        super().__init__()
        self.inner = forward

    def forward(
        self,
        x: Tensor,
        choices: Sequence[int] | Tensor,
        weights: Sequence[float] | Tensor | None = None,
        *args: Any,
    ) -> Tensor:
        """Compute the weighted sum over the choices of each row.

        Args:
            x: Inputs of the inner module, ``[B, ...]``.
            choices: Indices ``[B, K]`` of outputs; ``[1, K]`` or a sequence of ``K`` integers is
                the same for every row.
            weights: ``[B, K]``, likewise. Default: 1.
            *args: Other arguments of the inner module.

        Returns:
            ``[B]``.

        Raises:
            ValueError: If shapes do not fit.
            IndexError: If a choice is out of range.
        """
        outputs: Tensor = self.inner(x, *args)
        wanted = _per_row("choices", choices, x)
        size = outputs.shape[1]
        if bool(((wanted < 0) | (wanted >= size)).any()):
            raise IndexError(f"A choice is out of range for {size} outputs: {wanted.tolist()}.")
        values = outputs.gather(1, wanted)
        return (values if weights is None else values * _per_row("weights", weights, x)).sum(1)


class OutputFunction(nn.Module):
    """A function of the outputs of a forward module, with its ordinary gradient.

    Args:
        forward: The forward module.
        function: Maps outputs ``[B, C]`` to one value per row ``[B]``, or to ``[B, ...]``, from
            which Captum's ``target`` selects.
    """

    def __init__(self, forward: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = forward
        self.function = function

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Compute the function of the inner module's outputs.

        Args:
            x: Inputs of the inner module.
            *args: Its other arguments.

        Returns:
            The result of the function.

        Raises:
            ValueError: If the result does not have one entry per row.
        """
        result = self.function(self.inner(x, *args))
        if not isinstance(result, Tensor) or result.shape[:1] != x.shape[:1]:
            shown = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"The function of the outputs returned {shown}: it must return a tensor with one "
                f"value per row, [{x.shape[0]}]."
            )
        return result
