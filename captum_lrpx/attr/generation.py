"""A whole continuation explained from one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from captum.attr._utils.attribution import Attribution
from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.alti_logit import ALTILogit
from captum_lrpx.attr.backward import at_once_of, gradients
from captum_lrpx.attr.checks import check_model_and_tokenizer
from captum_lrpx.attr.engine import forward_pass
from captum_lrpx.attr.finite import Finite
from captum_lrpx.attr.generated import Generated, result_of
from captum_lrpx.attr.generation_alti import rows_of_alti
from captum_lrpx.attr.hops import RowRelevances, check_hops, followed
from captum_lrpx.attr.input import LRPx
from captum_lrpx.attr.layer import LayerLRPx
from captum_lrpx.attr.protocol import require_gradients
from captum_lrpx.attr.seeds import seeds_of
from captum_lrpx.models import device_of
from captum_lrpx.structure import token_embedding_of
from captum_lrpx.targets.continuation import (
    check_predicts_text,
    continuation_ids,
    foil_ids,
    generated_ids,
    prompt_of,
    span_rows,
)
from captum_lrpx.targets.head import LanguageModelHead, ModelForward
from captum_lrpx.targets.quantity import check_quantity
from captum_lrpx.wrappers import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum.attr import TextTokenInput

    from captum_lrpx.attr.generation_result import LLMRelevanceResult
    from captum_lrpx.targets.continuation import Prompt, Spans
    from captum_lrpx.targets.inputs import Given, TokenIds
    from captum_lrpx.targets.place import Token
    from captum_lrpx.targets.quantity import Quantity


class LLMRelevance(Attribution):
    r"""Explains each token of a continuation, or spans of it, with a single forward pass.

    The counterpart of Captum's ``LLMGradientAttribution`` for relevance: the same arguments, the
    same results, and by default the numbers that class computes with ``LayerLRPx`` or
    ``LayerAttnLRPx`` at the token embeddings.

    Captum's class runs the model anew for each token of the continuation, on the text before it. In
    a causal model a position's state does not depend on later tokens, so one
    forward pass over prompt and continuation contains all of these runs. Each token then only needs
    a backward pass, and several are computed at once.
    """

    def __init__(
        self,
        attr_method: LRPx | LayerLRPx | ALTILogit,
        tokenizer: Any,
        attr_target: Quantity = "log_prob",
        *,
        model_name: str | None = None,
    ) -> None:
        r"""Take the model and the rules from a method.

        Args:
            attr_method (LRPx, LayerLRPx or ALTILogit): The method, on a Hugging Face causal
                language model: ``LRPx(model)``, ``AttnLRPx(model)`` or ``ALTILogit(model)`` for
                relevances of the tokens, ``LayerLRPx(model, layer)`` or ``LayerAttnLRPx(model,
                layer)`` for relevances of a layer at each position.
            tokenizer (Tokenizer): The tokenizer of the model.
            attr_target (str, optional): Explained quantity of each token: ``"log_prob"``,
                ``"prob"`` or ``"logit"``. Default: ``"log_prob"``
            model_name (str, optional): Name of the model in the results. Default: where it was
                loaded from

        Raises:
            TypeError: If the method is another one, or does not explain a model itself, or
                the tokenizer is none.
            ValueError: If the model predicts no text, ``attr_target`` is unknown, or it is not
                ``"logit"`` for ALTI-Logit.
        """
        if not isinstance(attr_method, (LRPx, LayerLRPx, ALTILogit)):
            raise TypeError(
                f"LLMRelevance needs LRPx, AttnLRPx, LayerLRPx, LayerAttnLRPx or ALTILogit, not "
                f"{type(attr_method).__name__}. For other methods there is LLMGradientAttribution."
            )
        if isinstance(attr_method, LayerLRPx) and not isinstance(attr_method.layer, nn.Module):
            raise TypeError("LLMRelevance explains one layer at a time, not a list of layers.")
        if attr_method.forward_func is attr_method.model:
            check_predicts_text(attr_method.model)
        elif not callable(getattr(attr_method.forward_func, "generate", None)):  # an adapter
            raise TypeError(
                "LLMRelevance selects the explained value itself: give the method the language "
                f"model, not {type(attr_method.forward_func).__name__}."
            )
        check_model_and_tokenizer(attr_method.model, tokenizer)
        if unwrapped(cast("nn.Module", attr_method.forward_func)) is None:
            raise ValueError(
                f"LLMRelevance reads {type(attr_method.model).__name__} step by step, but the "
                "given module computes more: prompt or prefix tuning, hooks, or a forward of its "
                "own. Explain token by token, with TokenLogits."
            )
        super().__init__(attr_method.forward_func)
        self.attr_method = attr_method
        self.model: nn.Module = attr_method.model
        self.tokenizer = tokenizer
        self.attr_target: Quantity = check_quantity(attr_target)
        if isinstance(attr_method, ALTILogit) and attr_target != "logit":
            raise ValueError('ALTI-Logit decomposes logits: pass attr_target="logit".')
        self.model_name = model_name

    @_captum.log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inp: Given | TextTokenInput,
        target: str | Token | TokenIds | None = None,
        gen_args: dict[str, Any] | None = None,
        *,
        first_token: str | None = None,
        foil: int | str | Token | TokenIds | None = None,
        spans: Spans | None = None,
        hops: int = 0,
        attribute_to_layer_input: bool = False,
        targets_per_backward: int | None = None,
    ) -> LLMRelevanceResult:
        r"""Relevances of the prompt, and of earlier continuation tokens, for the continuation.

        Args:
            inp (str, sequence of messages, Tensor, sequence of int, or TextTokenInput): The prompt:
                whatever :func:`captum_lrpx.explain` takes (a text, chat messages, token ids
                ``[P]`` or ``[1, P]``, the tokenizer's output for one text), or Captum's
                ``TextTokenInput`` (``token_attr`` leaves out its ``skip_tokens``).
            target (str, Tensor, or sequence of int, optional): The continuation: a text, encoded in
                its place after the prompt like a word of :class:`captum_lrpx.Target`, a
                ``Token``, or token ids ``[K]``. Default: None, the model generates it.
            gen_args (dict, optional): Arguments of ``model.generate``, if there is no ``target``.
                Default: None, Captum's defaults
            first_token (str, optional): A special token to prepend, for a model trained with one
                that its tokenizer does not add. Default: None
            foil (int, str, Tensor, or sequence of int, optional): Token subtracted at each step:
                one for all steps or one for each. Explains why this token rather than that one,
                given the same text before it. Default: None
            spans (sequence of (int, int or None), optional): Parts of the continuation, ``(first,
                stop)``, each explained as a whole, the sum over its tokens, in one
                backward pass, whatever its number of tokens. ``(0, None)`` is the whole
                continuation.
                Default: None, each token by itself
            hops (int, optional): How many times relevance of tokens of the continuation is
                passed on to the tokens that they were predicted from, with their logits as targets,
                in proportion: to follow an answer through reasoning. One more backward pass each;
                relevance that reaches no token is in :attr:`LLMRelevanceResult.delta`, and for each
                hop in ``result.record.options["lost"]``. Default: 0
            attribute_to_layer_input (bool, optional): Whether to explain the layer's input
                instead of its output. Default: False
            targets_per_backward (int, optional): How many tokens or spans are explained by one
                backward pass. More is faster on short texts and takes memory, in proportion. With 1
                the backward pass is an ordinary one, for models with operations that
                ``torch.func.vmap`` cannot batch. Default: None, up to 8, fewer for long texts

        Returns:
            LLMRelevanceResult: A Captum ``LLMAttributionResult`` whose ``token_attr`` is
            ``[K, P]`` (a row per token or span), and ``context_attr`` ``[K, P + K]`` has the tokens
            of the continuation too. ``seq_attr`` is the sum of the rows.

        Raises:
            ValueError: If the model is not a causal language model, prompt or continuation is empty
                or too long or from another tokenizer, or an argument does not fit.
            IndexError: If a span is out of range.
            RuntimeError: Under ``torch.inference_mode``.

        Examples::

            >>> llm = LLMRelevance(AttnLRPx(model), tokenizer)
            >>> result = llm.attribute("the keys to the cabinet", target="are old")
            >>> result.token_attr  # [2, number of tokens of the prompt]
            >>> result.plot_token_attr()
            >>> llm.attribute("the keys to the cabinet", target="are old", foil=[is_, new])
            >>> llm.attribute("the keys to the", gen_args={"max_new_tokens": 5}, spans=[(0, 5)])
        """
        require_gradients()
        self._check_options(hops, targets_per_backward)
        prompt = prompt_of(self.model, self.tokenizer, inp, first_token)
        continuation = self._continuation(prompt, target, gen_args)
        foils = None
        if foil is not None:
            foils = foil_ids(self.model, self.tokenizer, prompt, continuation, foil)
        steps = len(continuation)
        rows = torch.eye(steps, device="cpu") if spans is None else span_rows(spans, steps)
        ids = torch.cat([prompt.ids, continuation])
        wanted = torch.stack([continuation] if foils is None else [continuation, foils], dim=1)
        if isinstance(self.attr_method, ALTILogit):
            explained = rows_of_alti(self.attr_method, ids, wanted, rows, hops)
        else:
            explained = self._explain(
                self.attr_method,
                ids,
                wanted,
                rows,
                targets_per_backward,
                hops,
                at_input=attribute_to_layer_input,
            )
        return result_of(
            Generated(self.tokenizer, prompt, continuation, foils, rows),
            self.attr_method,
            self.attr_target,
            explained,
            model_name=self.model_name,
        )

    def _check_options(self, hops: int, targets_per_backward: int | None) -> None:
        """Refuse options before anything is generated."""
        check_hops(hops)
        if hops and isinstance(self.attr_method, LayerLRPx):
            raise ValueError("Hops follow relevance of tokens: use LRPx, AttnLRPx or ALTILogit.")
        if targets_per_backward is not None:
            at_once_of(targets_per_backward, 0, torch.device("cpu"))

    def _continuation(
        self,
        prompt: Prompt,
        target: str | Token | TokenIds | None,
        gen_args: dict[str, Any] | None,
    ) -> Tensor:
        if target is None:
            return generated_ids(self.model, prompt, gen_args)
        if gen_args is None:
            return continuation_ids(self.model, self.tokenizer, prompt, target)
        raise ValueError("gen_args are for generating a continuation, but `target` gives one.")

    def attribute_future(self) -> None:
        """Not available: relevance needs a backward pass.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("attribute_future is not implemented for LLMRelevance.")

    def _explain(
        self,
        method: LRPx | LayerLRPx,
        ids: Tensor,
        wanted: Tensor,
        rows: Tensor,
        at_once: int | None,
        hops: int,
        *,
        at_input: bool,
    ) -> RowRelevances:
        """Run one forward pass, one seed per step, one backward pass per ``at_once`` rows.

        Args:
            method: Model and rules.
            ids: Prompt and continuation ``[P + K]``.
            wanted: Token, and foil if there is one, of each step ``[K, 1 or 2]``.
            rows: Weight of each step in each row ``[R, K]``.
            at_once: Number of rows per backward pass; None chooses by length.
            hops: How many times relevance of the continuation is passed on.
            at_input: Whether the input of the layer is explained.
        """
        reading = self._reading(method)
        layer = reading.layer
        device = device_of(self.model)
        read = ids[None, :-1].to(device)
        wanted = wanted.to(device)
        size = at_once_of(at_once, len(ids) - 1, device)
        with forward_pass(
            reading, (read,), None, layers=[layer], at_input=at_input, at_inputs=False
        ) as passed:
            states = passed.explain(
                lambda run: run.output[0, -len(wanted) :],
                lambda run: _of_sequence(run.layers.get(layer), len(ids) - 1, layer),
                at_once=min(size, len(rows)),
            )  # [K, D]
            found = _of_sequence(passed.layers.get(layer), len(ids) - 1, layer)
            head = LanguageModelHead(self.model)
            values, decomposed, seeds = seeds_of(head, states, wanted, self.attr_target)
            Finite(self.model, self.model, (read,), noun="token").require(values)
            rows = rows.to(seeds)

            def explain(weights: Tensor, seeds: Tensor, *, retain: bool) -> Tensor:
                def one_pass(chunk: Tensor, again: bool) -> Tensor:
                    slopes = gradients(states, found, chunk.unsqueeze(2) * seeds, retain=again)
                    return _relevance(method, found, slopes)

                return _in_chunks(weights, size, one_pass, retain=retain)

            context = explain(rows, seeds, retain=hops > 0)
            # Hops need logits as targets, whatever the explained quantity.
            logits, _, of_logits = (
                seeds_of(head, states, wanted[:, :1], "logit") if hops else (values, values, seeds)
            )
            remaining = iter(range(hops - 1, -1, -1))
            context, lost = followed(
                context,
                lambda weights: explain(weights, of_logits, retain=next(remaining) > 0),
                logits,
                hops,
            )
        return RowRelevances(
            context, rows.to(values) @ values, rows.to(decomposed) @ decomposed, lost
        )

    def _reading(self, method: LRPx | LayerLRPx) -> LayerLRPx:
        """Explains states of the model at the method's layer, or at the token embeddings."""
        reading = LayerLRPx(
            _LastStates(self.model),
            method.layer if isinstance(method, LayerLRPx) else token_embedding_of(self.model),
            model=self.model,
            recipe=method.recipe,
            strict=method.strict,
            fast=method.economical,
        )
        reading.checkpointing = method.checkpointing
        return reading


class _LastStates(ModelForward):
    """A language model without its head: its states at each position."""

    def forward(self, ids: Tensor) -> Tensor:
        """States ``[B, T, D]``."""
        return LanguageModelHead(self.model).states(ids)


def _relevance(
    method: LRPx | LayerLRPx,
    values: Sequence[Tensor],
    slopes: Sequence[Tensor],
) -> Tensor:
    """Relevance of each position ``[R, T]``, from gradients ``[R, 1, T, ...]``."""
    multiply = method.multiplies_by_inputs
    total: Any = 0
    for value, gradient in zip(values, slopes, strict=True):
        product = gradient * (value.detach() if multiply else 1)
        total = total + product.detach()[:, 0].flatten(2).sum(2)
    relevance: Tensor = total
    return relevance


def _of_sequence(
    values: tuple[Tensor, ...] | None, length: int, layer: nn.Module
) -> tuple[Tensor, ...]:
    """The tensors of a layer, which must have one vector per token."""
    if not values or any(value.shape[:2] != (1, length) for value in values):
        shown = "nothing" if not values else ", ".join(str(tuple(value.shape)) for value in values)
        raise ValueError(
            f"The layer {type(layer).__name__} gave {shown} where the model read {length} tokens: "
            "choose a layer between the embeddings and the head, with hidden states for each token."
        )
    return values


def _in_chunks(
    weights: Tensor, size: int, explain: Callable[[Tensor, bool], Tensor], *, retain: bool
) -> Tensor:
    """Relevances ``[R, P + K]`` of weighted sums ``[R, K]``; the last token is never read.

    Args:
        weights: Weight of each step in each sum.
        size: Number of sums per backward pass.
        explain: Maps some of the weights to relevances; it keeps the graph if asked to.
        retain: Whether to keep the graph after the last pass.
    """
    chunks = torch.split(weights, size)
    passes = enumerate(chunks, start=1)
    context = torch.cat([explain(each, retain or number < len(chunks)) for number, each in passes])
    _check_causal(context, weights)
    return nn.functional.pad(context, (0, 1))


def _check_causal(relevance: Tensor, rows: Tensor) -> None:
    """Refuse a model that sees later tokens: one pass then differs from a pass per prefix.

    Args:
        relevance: ``[R, T]`` for the text without its last token.
        rows: ``[R, K]``.
    """
    length, steps = relevance.shape[1], rows.shape[1]
    at = torch.arange(steps, device=rows.device)
    read_from = length - steps + torch.where(rows != 0, at, 0).amax(1)  # [R]
    later = torch.arange(length, device=rows.device) > read_from.unsqueeze(1)
    if bool((relevance[later] != 0).any()):
        raise ValueError(
            "The model's predictions depend on tokens that come later, so it is not a causal "
            "language model: a bidirectional one needs `is_decoder=True` in its config."
        )
