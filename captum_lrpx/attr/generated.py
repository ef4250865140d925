"""Builds the result of an explained continuation, with a record of how it was made."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from captum_lrpx.attr.alti_logit import ALTILogit
from captum_lrpx.attr.generation_grouping import text_of
from captum_lrpx.attr.generation_result import LLMRelevanceResult
from captum_lrpx.attr.layer import LayerLRPx
from captum_lrpx.characters import readable
from captum_lrpx.decoding import decoded
from captum_lrpx.explanation import Explanation
from captum_lrpx.explanation.arithmetic import total
from captum_lrpx.explanation.provenance import provenance
from captum_lrpx.targets.continuation import continued, token_texts
from captum_lrpx.targets.quantity import NAMES

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx.attr.hops import RowRelevances
    from captum_lrpx.attr.input import LRPx
    from captum_lrpx.targets.continuation import Prompt
    from captum_lrpx.targets.quantity import Quantity
    from captum_lrpx.words import Span


class Generated(NamedTuple):
    """An explained continuation.

    Attributes:
        tokenizer: The tokenizer.
        prompt: The prompt.
        continuation: Token ids ``[K]``.
        foils: Token ids that are subtracted ``[K]``, if there are any.
        rows: Weight of each token in each row ``[R, K]``, 1 in the span of the row.
    """

    tokenizer: Any
    prompt: Prompt
    continuation: Tensor
    foils: Tensor | None
    rows: Tensor


def result_of(
    generated: Generated,
    method: LRPx | LayerLRPx | ALTILogit,
    quantity: Quantity,
    found: RowRelevances,
    *,
    model_name: str | None,
) -> LLMRelevanceResult:
    """Build the result, with a record of how it was made.

    Args:
        generated: The explained continuation.
        method: The attribution.
        quantity: Logits, log-probabilities or probabilities.
        found: The relevances.
        model_name: Name for the record. Default: where the model was loaded from.
    """
    tokenizer, prompt, continuation = generated[:3]
    length, steps = len(prompt.ids), len(continuation)
    text = continued(tokenizer, prompt, continuation)
    spans = [
        (length + int(row.nonzero()[0]), length + int(row.nonzero()[-1]) + 1)
        for row in generated.rows
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
        **provenance(text, method.model, model_name),
    )
    foils = None
    if generated.foils is not None:
        foils = ("",) * length + tuple(decoded(tokenizer, generated.foils.tolist()).tokens)
    target_of = partial(_target_of, record, foils, NAMES[quantity])
    whole = spans == [(length + step, length + step + 1) for step in range(steps)]
    targets = [target_of(span) for span in spans]
    described = target_of((length, length + steps)) if whole else " plus ".join(targets)
    return LLMRelevanceResult(
        record=replace(record, target=described),
        spans=spans,
        targets=targets,
        shown=prompt.shown,
        context_tokens=[*prompt.encoding.tokens, *texts],
        output_tokens=[" ".join(texts[first - length : stop - length]) for first, stop in spans],
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
