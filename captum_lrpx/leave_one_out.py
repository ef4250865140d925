"""Leave one segment out: the output without a sentence, document or turn."""

from __future__ import annotations

from dataclasses import replace
from itertools import compress, count
from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx.attr.checks import check_model_and_tokenizer
from captum_lrpx.explanation import Explanation
from captum_lrpx.explanation.provenance import provenance
from captum_lrpx.models import find_model
from captum_lrpx.targets import Target, encode
from captum_lrpx.targets.query import query_of
from captum_lrpx.targets.task import task_of
from captum_lrpx.words import added

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from captum_lrpx.explanation import Segments
    from captum_lrpx.segments import By
    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.inputs import Given
    from captum_lrpx.targets.outputs import Choice
    from captum_lrpx.targets.query import Terms


def leave_one_out(
    model: nn.Module,
    tokenizer: Any,
    text: Given,
    target: Target | Choice | None = None,
    *,
    by: By | Sequence[By],
    language: str = "en",
    first_token: str | None = None,
    batch_size: int = 8,
    model_name: str | None = None,
) -> Segments:
    """Measure how much an output falls without each segment of the text.

    The text is read again without the tokens of each segment of the last level, which is exact
    and takes one forward pass per segment. Segments of an outer level get the sum of their parts,
    which differs from the effect of removing all of them. Special tokens, the chat template and
    segments that contain an explained token stay, with 0.

    Args:
        model: A Hugging Face model with a head, or a module around one.
        tokenizer: Its (fast) tokenizer.
        text: As for :func:`captum_lrpx.explain`.
        target: As for :func:`captum_lrpx.explain`.
        by: The segments, as for :meth:`captum_lrpx.Explanation.segments`.
        language: Language of the sentences.
        first_token: As for :func:`captum_lrpx.explain`.
        batch_size: Number of texts per forward pass.
        model_name: Name for the record. Default: where the model was loaded from.

    Returns:
        The segments; their ``relevance`` is the explained value of the whole text minus its value
        for the text without the segment. The rest of the value is ``"interaction"``, as losses do
        not sum to the value.

    Raises:
        ValueError: If text, target or segments cannot be used, or ``batch_size`` is not positive.
        IndexError: If an id or position is out of range.
        TypeError: If model, tokenizer or ``text`` is something else, the first two are swapped, or
            the target is a function.
        ImportError: If sentencex is needed and not installed.

    Examples:
        >>> leave_one_out(model, tokenizer, text, "are", by="sentence").top(1)
    """
    check_model_and_tokenizer(model, tokenizer)
    if not isinstance(target, Target):
        target = Target(target)
    encoding = encode(find_model(model), tokenizer, text, first_token)
    return left_out(
        model,
        tokenizer,
        encoding,
        target,
        by,
        language=language,
        batch_size=batch_size,
        model_name=model_name,
    )


def left_out(
    model: nn.Module,
    tokenizer: Any,
    encoding: Encoding,
    target: Target,
    by: By | Sequence[By],
    *,
    language: str,
    batch_size: int,
    model_name: str | None,
) -> Segments:
    """Like :func:`leave_one_out`, for an encoded text.

    Raises:
        ValueError: If target or segments cannot be used, or ``batch_size`` is not positive.
        TypeError: If the target is a function.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, not {batch_size}.")
    if callable(target.token):
        raise TypeError(
            "A function of the outputs has no fixed place when a part of the text is left "
            "out: give a token, class or span."
        )
    terms = target.terms(model, tokenizer, encoding)
    nothing = Explanation(
        relevances=(0.0,) * len(encoding.ids),
        value=0.0,
        target=target.describe(model, terms),
        position=terms.position,
        method="leave_one_out",
        recipe=None,
        **provenance(encoding, model, model_name),
    )
    leaves = [
        segment.tokens
        for _, segment in nothing.segments(by, language=language).walk()
        if not segment.parts
    ]
    explained = _explained(model, target, terms)
    stay = explained.union(compress(count(), added(encoding.special, encoding.template)))
    out = [leaf for leaf in leaves if stay.isdisjoint(leaf)]
    values = _values(model, tokenizer, encoding, target, terms, [(), *out], batch_size)
    relevances = [0.0] * len(encoding.ids)
    for leaf, value in zip(out, values[1:], strict=True):
        for index in leaf:  # spread evenly over tokens, so that the sum is the segment's
            relevances[index] = (values[0] - value) / len(leaf)
    found = replace(nothing, relevances=tuple(relevances), value=values[0])
    segments = found.segments(by, language=language)
    return replace(segments, rest=(("interaction", found.value - segments.sum),))


def _explained(model: nn.Module, target: Target, terms: Terms) -> set[int]:
    """Tokens that the explained value needs."""
    if task_of(model) == "question-answering":
        return set(terms.choices)
    places = set(terms.positions or ())
    return places | {place + 1 for place in places} if target.span is not None else places


def _values(
    model: nn.Module,
    tokenizer: Any,
    encoding: Encoding,
    target: Target,
    terms: Terms,
    gone: Sequence[Sequence[int]],
    batch_size: int,
) -> list[float]:
    """Explained values of the text without some of its tokens, one per selection of them."""
    values: list[float] = []
    for start in range(0, len(gone), batch_size):
        part = gone[start : start + batch_size]
        everything = {*range(len(encoding.ids))}
        encodings = [encoding.take(sorted(everything.difference(tokens))) for tokens in part]
        shifted = [_shifted(model, terms, tokens) for tokens in part]
        query = query_of(model, tokenizer, [target] * len(part), encodings, shifted)
        with torch.no_grad():
            found = query.forward(query.inputs, *query.additional_forward_args)
        values += found.double().tolist()
    return values


def _shifted(model: nn.Module, terms: Terms, gone: Sequence[int]) -> Terms:
    """The explained outputs, moved to their places without some tokens."""

    def moved(place: int) -> int:
        return place - sum(index < place for index in gone)

    if task_of(model) == "question-answering":
        return replace(terms, choices=tuple(map(moved, terms.choices)))
    if terms.positions is None:
        return terms
    return replace(terms, positions=tuple(map(moved, terms.positions)))
