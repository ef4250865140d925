"""A whole continuation explained from one forward pass."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from captum.attr._utils.attribution import Attribution
from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.alti_logit import ALTILogit
from captum_lrpx.attr.backward import at_once_of
from captum_lrpx.attr.checks import check_model_and_tokenizer
from captum_lrpx.attr.generation_result import LLMRelevanceResult, text_of
from captum_lrpx.attr.generation_rows import rows_of_alti, rows_of_rules
from captum_lrpx.attr.input import LRPx
from captum_lrpx.attr.layer import LayerLRPx
from captum_lrpx.attr.protocol import WithoutFuture, require_gradients
from captum_lrpx.characters import readable
from captum_lrpx.decoding import decoded
from captum_lrpx.explanation import Explanation
from captum_lrpx.explanation.arithmetic import total
from captum_lrpx.explanation.provenance import provenance
from captum_lrpx.targets.continuation import (
    check_predicts_text,
    continuation_ids,
    continued,
    foil_ids,
    generated_ids,
    prompt_of,
    span_rows,
    token_texts,
)
from captum_lrpx.targets.quantity import NAMES, check_quantity
from captum_lrpx.wrappers import unwrapped

if TYPE_CHECKING:
    from captum.attr import TextTokenInput

    from captum_lrpx.attr.generation_rows import RowRelevances
    from captum_lrpx.targets.continuation import Prompt, Spans
    from captum_lrpx.targets.inputs import Given, TokenIds
    from captum_lrpx.targets.place import Token
    from captum_lrpx.targets.quantity import Quantity
    from captum_lrpx.words import Span


class LLMRelevance(WithoutFuture, Attribution):
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
            explained = rows_of_rules(
                self.attr_method,
                ids,
                wanted,
                rows,
                hops,
                quantity=self.attr_target,
                at_once=targets_per_backward,
                at_input=attribute_to_layer_input,
            )
        return self._result(prompt, continuation, foils, rows, explained)

    def _check_options(self, hops: int, targets_per_backward: int | None) -> None:
        """Refuse options before anything is generated."""
        if hops < 0:
            raise ValueError(f"hops must be 0 or more, not {hops}.")
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

    def _result(
        self,
        prompt: Prompt,
        continuation: Tensor,
        foils: Tensor | None,
        rows: Tensor,
        found: RowRelevances,
    ) -> LLMRelevanceResult:
        """Build the result, with a record of how it was made."""
        method, tokenizer = self.attr_method, self.tokenizer
        length, steps = len(prompt.ids), len(continuation)
        text = continued(tokenizer, prompt, continuation)
        spans = [
            (length + int(row.nonzero()[0]), length + int(row.nonzero()[-1]) + 1) for row in rows
        ]
        texts = token_texts(tokenizer, continuation)
        record = Explanation(
            relevances=tuple(found.context.sum(0).double().tolist()),
            value=total(found.values.double().tolist()),
            target="",
            position=None,
            method=type(method).__name__.lower(),
            recipe=None if isinstance(method, ALTILogit) else method.recipe.name,
            options=_layer_options(method) | _hop_options(found.lost),
            **provenance(text, method.model, self.model_name),
        )
        names: tuple[str, ...] | None = None
        if foils is not None:
            names = ("",) * length + tuple(decoded(tokenizer, foils.tolist()).tokens)
        target_of = partial(_target_of, record, names, NAMES[self.attr_target])
        whole = spans == [(length + step, length + step + 1) for step in range(steps)]
        targets = [target_of(span) for span in spans]
        described = target_of((length, length + steps)) if whole else " plus ".join(targets)
        return LLMRelevanceResult(
            record=replace(record, target=described),
            spans=spans,
            targets=targets,
            shown=prompt.shown,
            context_tokens=[*prompt.encoding.tokens, *texts],
            output_tokens=[
                " ".join(texts[first - length : stop - length]) for first, stop in spans
            ],
            context_attr=found.context,
            values=found.values,
            decomposed=found.decomposed,
            prompt_ids=prompt.ids,
            continuation_ids=continuation,
        )


def _target_of(
    record: Explanation, foils: tuple[str, ...] | None, quantity: str, span: Span
) -> str:
    """The explained value of a span of the text, in words; foils are by position in the text."""
    first, stop = span
    alone = stop - first == 1
    name = record.tokens[first] if alone else readable(text_of(record, span))
    target = f"{quantity} of {name!r}"
    if foils is None:
        return target
    names = foils[first:stop]
    same = len(set(names)) == 1
    each = " at each step" if same and not alone else ""
    foil = names[0] if same else " ".join(names)
    return f"{target} minus {quantity} of {foil!r}{each}"


def _hop_options(lost: Tensor) -> dict[str, Any]:
    """Number of hops, and the relevance lost at each, summed over the rows."""
    if not lost.shape[1]:
        return {}
    return {"hops": lost.shape[1], "lost": lost.double().sum(0).tolist()}


def _layer_options(method: LRPx | LayerLRPx | ALTILogit) -> dict[str, Any]:
    """Path of the explained layer in the model."""
    if not isinstance(method, LayerLRPx):
        return {}
    paths = [name for name, module in method.model.named_modules() if module is method.layer]
    return {"layer": paths[0]} if paths else {}
