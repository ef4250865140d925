"""The explanation of a continuation, as a result of Captum's language model attributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum.attr import LLMAttributionResult

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LLMRelevanceResult"]


class LLMRelevanceResult(LLMAttributionResult):
    """Relevances of a prompt, and of the continuation itself, for what a model generated.

    It is Captum's result (``seq_attr``, ``token_attr``, ``input_tokens``, ``output_tokens``, the
    plots) with more to it. A *row* is what is explained: a token of the continuation, or a span.

    Attributes:
        context_attr: ``[R, P + K]``: relevance of each token of prompt and continuation for each
            row; 0 for those that the model had not seen yet.
        context_tokens: The ``P + K`` tokens.
        values: ``[R]``: what is explained, say the log-probability of the token.
        decomposed: ``[R]``: what the relevances decompose. For logits and their differences that
            is ``values``. For the log-probability of ``t`` it is ``z_t - sum_v p_v z_v``, the logit
            minus the expected one: the gradient towards the logits, times the logits.
        prompt_ids: ``[P]``.
        continuation_ids: ``[K]``.
    """

    def __init__(
        self,
        *,
        input_tokens: list[str],
        output_tokens: list[str],
        token_attr: Tensor,
        context_tokens: list[str],
        context_attr: Tensor,
        values: Tensor,
        decomposed: Tensor,
        prompt_ids: Tensor,
        continuation_ids: Tensor,
    ) -> None:
        super().__init__(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            seq_attr=token_attr.sum(0),
            token_attr=token_attr,
        )
        self.context_tokens = context_tokens
        self.context_attr = context_attr
        self.values = values
        self.decomposed = decomposed
        self.prompt_ids = prompt_ids
        self.continuation_ids = continuation_ids

    @property
    def delta(self) -> Tensor:
        """``[R]``: what no token accounts for: ``decomposed`` minus the sum of the relevances."""
        return self.decomposed - self.context_attr.sum(1)

    def with_continuation(self) -> LLMAttributionResult:
        """The same with the continuation among the inputs, for Captum's plots.

        Returns:
            A result whose ``token_attr`` is ``context_attr``.
        """
        return LLMAttributionResult(
            input_tokens=self.context_tokens,
            output_tokens=self.output_tokens,
            seq_attr=self.context_attr.sum(0),
            token_attr=self.context_attr,
        )
