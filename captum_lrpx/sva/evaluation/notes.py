"""Notes that readers of the numbers need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from captum_lrpx.sva.evaluation.results import ModelResults
    from captum_lrpx.sva.evaluation.run import Evaluation


EXTENSION = "\u2020"
"""Marks a result without a counterpart in the paper."""

_INTERVALS = (
    "Means with 95 % bootstrap intervals over samples (1,000 resamples); +- is the standard "
    "deviation over the draws of a random method."
)
_VIEWS = (
    "All tokens: special tokens (a first token, [CLS], [SEP]) are scored as any other, as in Arras "
    "et al. (2025); text tokens: without them."
)
_EXTENDED = (
    f"{EXTENSION} ALTI-Logit for masked language models is an extension of this package; Arras et "
    "al. (2025) have it for GPT-2 and Llama only."
)
_PREDICTED = (
    "Samples that a model gets wrong are explained, too: the logit of the form that it predicts "
    "minus that of the other."
)
_GATED = (
    "with a gated MLP, LRP's results rest on which factor of the product is the signal: here the "
    "linear branch (`up`), about which the paper is silent. Other rules for the gate change them "
    "(`captum-lrpx evaluate --ablate gate`)."
)


def is_extension(results: ModelResults, method: str) -> bool:
    """Whether the paper lacks a method for this kind of model."""
    return method == "altilogit" and results.task == "masked-lm"


def notes(evaluation: Evaluation) -> Iterator[str]:
    """Lines that explain the numbers of an evaluation."""
    models = evaluation.models
    methods = {contender.method for contender in evaluation.contenders}
    yield _INTERVALS
    yield _VIEWS
    yield from map(_counts, models)
    if evaluation.settings.include_wrong:
        yield _PREDICTED
    if any(is_extension(model, method) for model in models for method in methods):
        yield _EXTENDED
    gated = [model.model for model in models if model.gated]
    if gated and "lrpx" in methods:
        yield f"{', '.join(gated)}: {_GATED}"


def _counts(results: ModelResults) -> str:
    return (
        f"{results.model}: {results.counts['kept']} of {results.counts['given']} samples are "
        f"usable with its tokenizer, {100 * results.accuracy:.1f} % of them right, "
        f"{len(results.samples)} explained."
    )
