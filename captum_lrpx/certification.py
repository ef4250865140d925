"""Checks of an explanation: its forward pass, and once for each form everything else."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from captum_lrpx import _captum
from captum_lrpx.attr import ALTILogit, AttnLRPx, LRPx
from captum_lrpx.attr.call_form import form_of
from captum_lrpx.attr.capture import embedding_with_gradients
from captum_lrpx.attr.forward_function import aliases_with_gradients
from captum_lrpx.attr.protocol import tensors_of
from captum_lrpx.conservation import observed_ledger
from captum_lrpx.explanation.certificate import LEDGER_TOLERANCES, Certificate, sealed
from captum_lrpx.linear_rules import with_own_gradients
from captum_lrpx.module_patches import Patched
from captum_lrpx.module_tree import modules_of
from captum_lrpx.onlookers import fingerprint, hooked
from captum_lrpx.structure import token_embedding_of
from captum_lrpx.targets.head import read_whole
from captum_lrpx.training import already_warned

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from captum_lrpx.conservation import Ledger
    from captum_lrpx.coverage import Coverage
    from captum_lrpx.explanation import Explanation
    from captum_lrpx.recipes import Recipe
    from captum_lrpx.targets import Query


_ROUNDING: Final = {
    dtype: 100 * torch.finfo(dtype).eps
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
"""Tolerance for sums of products in another order, relative to the largest output."""

Certify = bool | Literal["full"]
"""Whether to check an explanation; ``"full"`` audits it even if its form has been audited."""

_RULE_BASED = {"lrpx": LRPx, "attnlrpx": AttnLRPx}


def certified(
    explanation: Explanation,
    query: Query,
    recipe: Recipe | None,
    *,
    full: bool = False,
    once: AbstractContextManager[None] | None = None,
) -> Explanation:
    """Attach a certificate to an explanation, unless its method has no rules to check.

    Each certificate compares the explained value with the value of a forward pass without rules.
    The audit is made for the first explanation of a form (model, method, rules, kinds of inputs),
    or on request: the value is read from the outputs of the given object, and an observed pass
    yields coverage, ledger, and relevances that must equal the recorded ones.

    Args:
        explanation: The explanation.
        query: Its question, a batch of one.
        recipe: The given rules, None for the method's own.
        full: Whether to audit even if the form has been audited.
        once: Cache of the model's results without rules.

    Returns:
        The explanation with a certificate. If a check failed, it says so, and there is a warning.
    """
    attribution = _attribution(explanation, query, recipe)
    if attribution is None:
        return explanation
    audits = _audits.setdefault(query.model, {})
    key = _key(attribution, explanation, query)
    known = None if full or key is None else audits.get(key)
    with already_warned(query.model):
        with nullcontext() if once is None else once:
            value = _value(query)
        unchanged = float(value) == explanation.value
        if known is not None:
            certificate = replace(known, forward_unchanged=unchanged)
        else:
            certificate = _audit(attribution, query, explanation, value, unchanged=unchanged)
            if key is not None and certificate.holds:
                audits[key] = replace(
                    certificate,
                    audited=False,
                    ledger_residual=None,
                    ledger_delta=None,
                    relevance_difference=None,
                )
    if certificate.failed:
        warnings.warn(
            f"The explanation did not pass its checks ({certificate}). Do not rely on it: see "
            "captum_lrpx.ledger and the attribution's coverage() for where it fails.",
            stacklevel=3,
        )
    return sealed(explanation, certificate)


_audits: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Certificate]] = (
    weakref.WeakKeyDictionary()
)
"""Results of the audits of each model, by form."""


def _key(attribution: LRPx | ALTILogit, explanation: Explanation, query: Query) -> Hashable | None:
    """Key shared by explanations of the same operations by the same rules."""
    arguments = query.additional_forward_args
    form = form_of(query.model, query.forward, tensors_of(query.inputs), arguments, ())
    if form is None:
        return None
    options = repr(sorted(explanation.options.items()))
    return (
        form,
        explanation.method,
        attribution.recipe,
        options,
        fingerprint(query.model, modules_of(query.model)),
    )


def _audit(
    attribution: LRPx | ALTILogit,
    query: Query,
    explanation: Explanation,
    value: Tensor,
    *,
    unchanged: bool,
) -> Certificate:
    audited = _Observed(attribution, query, explanation)
    coverage = audited.coverage
    return Certificate(
        forward_unchanged=unchanged and _is_own_value(query, value),
        operations=len(coverage.operations),
        ruled=sum(each.kind == "ruled" for each in coverage.operations),
        unruled=len(coverage.unruled),
        ledger_tolerance=LEDGER_TOLERANCES.get(explanation.dtype, max(LEDGER_TOLERANCES.values())),
        ledger_residual=audited.residual,
        ledger_missing=audited.missing,
        ledger_delta=audited.amounts,
        relevance_difference=audited.difference,
        audited=True,
    )


def _attribution(
    explanation: Explanation, query: Query, recipe: Recipe | None
) -> LRPx | ALTILogit | None:
    forward, model = query.forward, query.model
    if explanation.method == "altilogit":
        return ALTILogit(forward, model, value_bias=explanation.options["value_bias"])
    kind = _RULE_BASED.get(explanation.method)
    return None if kind is None else kind(forward, model, recipe=recipe)


# The checks ---------------------------------------------------------------------------------------


def _value(query: Query) -> Tensor:
    """Compute the explained value without rules, with gradients as for an explanation.

    Without gradients quantized layers, and some of PyTorch's modules, use another kernel.
    """
    inputs = query.inputs
    if isinstance(inputs, tuple):
        inputs = aliases_with_gradients(inputs)
    with with_gradients(query.model, of_tokens=query.gather is None):
        value: Tensor = _captum.run_forward(
            query.forward, inputs, query.target, query.additional_forward_args
        )
    return value.detach()


@contextmanager
def with_gradients(model: nn.Module, *, of_tokens: bool) -> Iterator[None]:
    """Run a model as an explanation does, with a gradient for the embeddings of tokens."""
    gradients: AbstractContextManager[object] = nullcontext()
    if of_tokens:
        gradients = embedding_with_gradients(token_embedding_of(model))
    modules = modules_of(model)
    plain = Patched(modules, with_own_gradients(model, modules), freeze=True)
    with torch.enable_grad(), plain, gradients:
        yield


def _is_own_value(query: Query, value: Tensor) -> bool:
    """Whether an explained value equals the one read from the outputs of the given object.

    It may differ by the rounding of a product with all rows of the head instead of some.
    """
    outputs: list[Tensor] = []

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        found = output.values() if isinstance(output, Mapping) else (output,)
        outputs.extend(each for each in found if isinstance(each, torch.Tensor))

    with hooked([query.model], after=after), read_whole():
        own = _value(query)
    scale = max(float(each.detach().abs().max()) for each in (own, *outputs))
    return float((own - value).abs().max()) <= _ROUNDING[own.dtype] * scale


class _Observed:
    """Results of an observed pass.

    Attributes:
        coverage: The operations.
        residual: Open amount of the ledger, relative to its largest number; None without one.
        missing: Reason why there is no ledger.
        amounts: Amounts of the ledger beyond the recorded relevances, by kind.
        difference: The largest difference to a recorded relevance, relative to the largest one;
            None if they were not computed a second time.
    """

    def __init__(
        self, attribution: LRPx | ALTILogit, query: Query, explanation: Explanation
    ) -> None:
        self.residual: float | None = None
        self.missing: str | None = None
        self.amounts: tuple[tuple[str, float], ...] | None = None
        self.difference: float | None = None
        try:
            book, self.coverage = observed_ledger(attribution, query.inputs, **query.arguments)
        except (MemoryError, torch.OutOfMemoryError):
            self.missing = "out of memory"
        except ValueError as error:
            self.missing = str(error)
        if self.missing is not None:
            self.coverage = _coverage(attribution, query)
            return
        beyond = _beyond_tokens(book, explanation)
        left = abs(explanation.value - explanation.sum - math.fsum(beyond.values()))
        self.residual = left / float(book.largest) if left else 0.0
        self.amounts = tuple(beyond.items())
        if isinstance(attribution, LRPx):
            recorded = torch.tensor(explanation.relevances, dtype=torch.float64, device="cpu")
            found = query.real(book.attributions)[0].double().cpu()
            largest = float(recorded.abs().max()) or 1.0
            self.difference = float((found - recorded).abs().max()) / largest


def _coverage(attribution: LRPx | ALTILogit, query: Query) -> Coverage:
    arguments = query.additional_forward_args
    if isinstance(attribution, LRPx):
        return attribution.coverage(query.inputs, arguments)
    return attribution.coverage(query.inputs, query.target, arguments)


def _beyond_tokens(book: Ledger, explanation: Explanation) -> dict[str, float]:
    """Amounts of the ledger other than the recorded relevances, by kind."""
    amounts = {kind: float(amount) for kind, amount in book.by_kind().items() if kind != "tokens"}
    options: dict[str, Any] = explanation.options
    # ALTI-Logit: the embedding's path along the residual stream, if excluded.
    left_out = [
        float(entry.amount)
        for entry in book.of("tokens")
        if entry.layer is None and not options.get("include_start", True)
    ]
    return amounts | ({"tokens": math.fsum(left_out)} if left_out else {})
