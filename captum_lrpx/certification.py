"""Checking an explanation: the forward pass, the coverage and the ledger."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx import _captum
from captum_lrpx.attr import ALTILogit, AttnLRPx, LRPx
from captum_lrpx.attr.capture import captured, embedding_with_gradients
from captum_lrpx.conservation import ledger
from captum_lrpx.explanation.certificate import LEDGER_TOLERANCES, Certificate, sealed
from captum_lrpx.frozen import FrozenParameters
from captum_lrpx.module_tree import modules_of
from captum_lrpx.propagation import attached, sites_of
from captum_lrpx.structure import is_declared, token_embedding_of
from captum_lrpx.targets.head import read_whole
from captum_lrpx.traced import traced_rules
from captum_lrpx.training import already_warned

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from captum_lrpx.conservation import Ledger
    from captum_lrpx.coverage import Coverage
    from captum_lrpx.explanation import Explanation
    from captum_lrpx.methods import Subject
    from captum_lrpx.recipes import Recipe

__all__ = ["certified"]

_ROUNDING: Final = {
    dtype: 100 * torch.finfo(dtype).eps
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
"""What sums of products in another order may differ by, relative to the largest output."""

_DENSE = torch.contiguous_format
_RULE_BASED = {"lrpx": LRPx, "attnlrpx": AttnLRPx}


def certified(explanation: Explanation, subject: Subject, recipe: Recipe | None) -> Explanation:
    """An explanation with its certificate; as it is, if its method has no rules to check.

    Checked are the forward pass (one without the rules against one with them, and against the
    outputs of the object that is explained), the coverage (which
    the attribution itself has traced) and the ledger (one more forward and backward pass).

    Args:
        explanation: What was found.
        subject: What was explained, a batch of one.
        recipe: The rules that were given, None for the method's own.

    Returns:
        The explanation with a certificate. If a check failed, this says so, and a warning does.
    """
    attribution = _attribution(explanation, subject, recipe)
    if attribution is None:
        return explanation
    with already_warned(subject.model):
        certificate = _certificate(attribution, subject, explanation)
    if certificate.failed:
        warnings.warn(
            f"The explanation did not pass its checks ({certificate}). Do not rely on it: see "
            "captum_lrpx.ledger and the attribution's coverage() for where it fails.",
            stacklevel=3,
        )
    return sealed(explanation, certificate)


def _certificate(
    attribution: LRPx | ALTILogit, subject: Subject, explanation: Explanation
) -> Certificate:
    coverage = _coverage(attribution, subject)
    residual, missing, amounts = _ledger_residual(attribution, subject, explanation)
    return Certificate(
        forward_unchanged=_forward_unchanged(attribution, subject),
        operations=len(coverage.operations),
        ruled=sum(each.kind == "ruled" for each in coverage.operations),
        unruled=len(coverage.unruled),
        ledger_tolerance=LEDGER_TOLERANCES.get(explanation.dtype, max(LEDGER_TOLERANCES.values())),
        ledger_residual=residual,
        ledger_missing=missing,
        ledger_delta=amounts,
    )


def _attribution(
    explanation: Explanation, subject: Subject, recipe: Recipe | None
) -> LRPx | ALTILogit | None:
    forward, model = subject.question.forward, subject.model
    if explanation.method == "altilogit":
        return ALTILogit(forward, model, value_bias=explanation.options["value_bias"])
    kind = _RULE_BASED.get(explanation.method)
    return None if kind is None else kind(forward, model, recipe=recipe)


def _rules(attribution: LRPx | ALTILogit) -> AbstractContextManager[object]:
    """What an attribution attaches to its model."""
    if isinstance(attribution, LRPx) and attribution.fast:
        return attribution.rules()
    return traced_rules(attribution.model, attribution.recipe, None)


# The three checks ---------------------------------------------------------------------------------


def _forward_unchanged(attribution: LRPx | ALTILogit, subject: Subject) -> bool:
    """Whether hidden states, logits and values are the same bits with and without the rules.

    The value must also be the one that can be read from the outputs of the object that is
    explained, up to the rounding of a product with all rows of the head instead of some.
    """
    declared = is_declared(subject.model)
    plain = _outputs(subject, attached(subject.model, ()) if declared else _frozen(subject.model))
    ruled = _outputs(subject, _rules(attribution))
    if len(plain) != len(ruled) or not all(map(_same_bits, plain, ruled)):
        return False
    # With a gradient, as for an explanation: quantized layers have another kernel without one.
    gradients: AbstractContextManager[object] = (
        embedding_with_gradients(token_embedding_of(subject.model))
        if subject.scene is None
        else nullcontext()
    )
    with read_whole(), torch.enable_grad(), gradients:
        own = _value(subject).detach()
    outputs = plain[2:] if declared else plain[1:]
    scale = max(float(each.abs().max()) for each in (own, *outputs))
    return float((own - plain[0]).abs().max()) <= _ROUNDING[own.dtype] * scale


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """A model whose parameters need no gradient, which may decide about the kernel of attention."""
    frozen = FrozenParameters()
    frozen.freeze(modules_of(model))
    try:
        yield
    finally:
        frozen.thaw()


def _outputs(subject: Subject, rules: AbstractContextManager[object]) -> list[Tensor]:
    """What the explained function gives, and the last block and the head, or the model itself.

    With hooks on them, the last block computes all positions instead of the explained ones only,
    and the head the whole vocabulary instead of the explained tokens: without rules as with them.
    """
    if not is_declared(subject.model):
        seen: list[Any] = []
        hook = subject.model.register_forward_hook(lambda *call: seen.append(call[2]))
        try:
            with torch.enable_grad(), rules:
                value = _value(subject)
        finally:
            hook.remove()
        found = [each.values() if isinstance(each, Mapping) else (each,) for each in seen]
        tensors = [each for output in found for each in output if isinstance(each, torch.Tensor)]
        return [each.detach() for each in (value, *tensors)]
    sites = sites_of(subject.model)
    in_blocks = tuple(f"{block.path}." for block in sites.blocks)
    head = [site.module for site in sites.linear if not site.path.startswith(in_blocks)]
    watched = [sites.token_embedding, sites.blocks[-1].module, *head]
    with torch.enable_grad(), rules, captured(watched) as layers:
        values = _value(subject)
    caught = (tensor for layer in watched for tensor in layers.get(layer, ()))
    return [each.detach() for each in (values, *caught)]


def _value(subject: Subject) -> Tensor:
    question = subject.question
    value: Tensor = _captum.run_forward(
        question.forward, subject.inputs, question.target, question.additional_forward_args
    )
    return value


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    # A new tensor has no stride left over from a slice, with which its bytes could not be viewed.
    left, right = (each.flatten().clone(memory_format=_DENSE) for each in (one, other))
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def _coverage(attribution: LRPx | ALTILogit, subject: Subject) -> Coverage:
    arguments = subject.question.additional_forward_args
    if isinstance(attribution, LRPx):
        return attribution.coverage(subject.inputs, arguments)
    target = subject.question.target
    return attribution.coverage(subject.inputs, target, arguments)


def _ledger_residual(
    attribution: LRPx | ALTILogit, subject: Subject, explanation: Explanation
) -> tuple[float | None, str | None, tuple[tuple[str, float], ...] | None]:
    """What the ledger leaves open, relatively; or why there is none; what it has by kind."""
    try:
        book = ledger(attribution, subject.inputs, **subject.arguments)
    except ValueError as error:
        return None, str(error), None
    except (MemoryError, torch.OutOfMemoryError):
        return None, "out of memory", None
    amounts = [book.value.abs(), *(entry.amount.abs() for entry in book.entries)]
    scale = float(torch.stack(amounts).max())
    beyond = _beyond_tokens(book, explanation)
    left = abs(explanation.value - explanation.sum - math.fsum(beyond.values()))
    return left / scale if left else 0.0, None, tuple(beyond.items())


def _beyond_tokens(book: Ledger, explanation: Explanation) -> dict[str, float]:
    """What the ledger gives to anything but the recorded relevances, by kind."""
    amounts = {kind: float(amount) for kind, amount in book.by_kind().items() if kind != "tokens"}
    options: dict[str, Any] = explanation.options
    # ALTI-Logit: the way of the embedding along the residual stream, if that was left out.
    left_out = [
        float(entry.amount)
        for entry in book.of("tokens")
        if entry.layer is None and not options.get("include_start", True)
    ]
    return amounts | ({"tokens": math.fsum(left_out)} if left_out else {})
