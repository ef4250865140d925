"""``ledger(attribution, inputs, ...)``: the complete account of an explained value."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from captum_lrpx import _captum
from captum_lrpx.attr import ALTILogit, LRPx
from captum_lrpx.attr.caches import warn_of_cache
from captum_lrpx.attr.checks import CheckedForward, check_inputs
from captum_lrpx.attr.forward import with_gradients
from captum_lrpx.attr.protocol import require_gradients, tensors_of
from captum_lrpx.conservation.book import Entry, Ledger
from captum_lrpx.conservation.observer import Observer
from captum_lrpx.conservation.tally import Line, Tally, wide
from captum_lrpx.conservation.traced import layer_in, traced_ledger
from captum_lrpx.propagation import observed
from captum_lrpx.wrappers import has_virtual_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx._captum import TargetType
    from captum_lrpx.conservation.tally import Kind

__all__ = ["ledger"]

_OUTPUT = Line("output", "", None)


def ledger(
    attribution: LRPx | ALTILogit,
    inputs: Tensor | tuple[Tensor, ...],
    target: TargetType = None,
    additional_forward_args: object | None = None,
) -> Ledger:
    """Account for all of an explained value, from one forward and one backward pass.

    Args:
        attribution: An :class:`~captum_lrpx.LRPx`, :class:`~captum_lrpx.AttnLRPx` or
            :class:`~captum_lrpx.ALTILogit`.
        inputs: As for its ``attribute``.
        target: As for its ``attribute``.
        additional_forward_args: As for its ``attribute``.

    Returns:
        The ledger.

    Raises:
        TypeError: If ``attribution`` is something else.
        AssertionError: Captum's errors for inputs and targets that do not fit.
        ValueError: As ``attribute``; if the forward function does not give one value for each
            example; or if an attention hides its weights, which AttnLRP's account needs.
        RuntimeError: Under ``torch.inference_mode``, where no gradient exists.

    Examples:
        >>> book = ledger(LRPx(model), ids, target=(-1, are))
        >>> book.closes(1e-4)
        True
        >>> print(book.explanation())
    """
    if has_virtual_tokens(getattr(attribution, "forward_func", None)):
        raise ValueError(
            "The model has virtual tokens of its own (prompt or prefix tuning), whose relevance "
            "is on no line of a ledger: it is in the convergence delta."
        )
    if isinstance(attribution, ALTILogit):
        return _of_alti_logit(attribution, inputs, target, additional_forward_args)
    if isinstance(attribution, LRPx) and not attribution.fast:
        return traced_ledger(attribution, inputs, target, additional_forward_args)
    if isinstance(attribution, LRPx):
        return _of_rules(attribution, inputs, target, additional_forward_args)
    raise TypeError(
        f"There is a ledger of LRPx, AttnLRPx and ALTILogit, not of {type(attribution).__name__}: "
        "give one of these attributions."
    )


# LRP, AttnLRP, any recipe ------------------------------------------------------------------------


def _of_rules(
    attribution: LRPx,
    inputs: Tensor | tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: object | None,
) -> Ledger:
    require_gradients()
    tensors = tensors_of(inputs)
    check_inputs(attribution.model, attribution.forward_func, tensors)
    floating = all(tensor.is_floating_point() for tensor in tensors)
    if not floating and len(tensors) != 1:
        raise ValueError(
            f"Token ids must be the only input, but {len(tensors)} inputs were given. Give masks "
            "and the like as additional_forward_args."
        )
    args = _captum.format_additional_forward_args(additional_forward_args)
    warn_of_cache(attribution.forward_func, args)
    observer = Observer(attribution.model, attribution.recipe, tensors)
    forward = CheckedForward(attribution.forward_func, attribution.model, [target])
    given = with_gradients(tensors)
    rules = observed(
        attribution.model, attribution.recipe, inner=observer.inner(), outer=observer.outer()
    )
    with rules, torch.enable_grad():
        if floating:
            _watch_inputs(observer, given)
        selected = _captum.run_forward(forward, given, target, additional_forward_args)
        value = _value(selected, len(tensors[0]))
        observer.watch_head(_OUTPUT)
        leaves = [leaf for _, leaf in observer.leaves]
        gradients = torch.autograd.grad(torch.unbind(selected), leaves, allow_unused=True)
        observer.finish()
    tally = observer.tally
    _settle_output(tally, value, selected.dtype)
    found = {id(leaf): gradient for leaf, gradient in zip(leaves, gradients, strict=True)}
    if floating:
        relevances = tuple(_product(tensor, found[id(tensor)]) for tensor in given)
    else:
        tokens = next(leaf for line, leaf in observer.leaves if line.kind == "tokens")
        relevances = (_product(tokens, found[id(tokens)]).sum(-1),)
    return Ledger(
        method=attribution.get_name(),
        value=value,
        entries=_entries(tally, value),
        attributions=_captum.format_output(_captum.is_tuple(inputs), relevances),
    )


def _watch_inputs(observer: Observer, inputs: tuple[Tensor, ...]) -> None:
    for index, tensor in enumerate(inputs):
        line = Line("tokens", "inputs" if len(inputs) == 1 else f"inputs.{index}", None)
        observer.leaves.append((line, tensor))
        observer.tally.watch(tensor, [(line, 1.0)])


def _value(selected: Tensor, batch: int) -> Tensor:
    if selected.numel() != batch:
        raise ValueError(
            f"The forward function gave {selected.numel()} explained values for {batch} examples: "
            "the ledger is an account of one value for each example."
        )
    return wide(selected.detach()).reshape(-1)


def _settle_output(tally: Tally, value: Tensor, dtype: torch.dtype) -> None:
    """Keep a line for the explained quantity where that is not linear in the logits."""
    minus_logits = tally.amounts.pop(_OUTPUT, None)
    if minus_logits is None:
        return
    beyond = value + minus_logits.to(value)
    # The square root separates a formula from its rounding, in any precision.
    rounding = torch.finfo(dtype).eps ** 0.5 * minus_logits.to(value).abs()
    if bool((beyond.abs() > rounding).any()):
        tally.add(_OUTPUT, beyond)


def _product(tensor: Tensor, gradient: Tensor | None) -> Tensor:
    value = tensor.detach()
    return torch.zeros_like(value) if gradient is None else value * gradient


def _entries(tally: Tally, value: Tensor) -> tuple[Entry, ...]:
    return tuple(
        Entry(line.kind, line.path, line.layer, amount.to(value))
        for line, amount in tally.amounts.items()
    )


# ALTI-Logit --------------------------------------------------------------------------------------


def _of_alti_logit(
    attribution: ALTILogit,
    inputs: Tensor | tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: object | None,
) -> Ledger:
    parts = attribution.decompose(
        cast("Tensor | tuple[Tensor]", inputs), target, additional_forward_args
    )
    value = wide(parts.value.detach())

    def entry(kind: Kind, path: str, amount: Tensor) -> Entry:
        return Entry(kind, path, layer_in(path), wide(amount.detach()).to(value))

    entries = [entry("tokens", "inputs", parts.start.sum(1))]
    for index, path in enumerate(parts.attention_paths):
        entries.append(entry("tokens", path, parts.heads[:, index].sum((1, 2))))
    for index, path in enumerate(parts.mlp_paths):
        entries.append(entry("mlp", path, parts.mlps[:, index]))
    entries += [entry("bias", path, amount) for path, amount in parts.biases.items()]
    widths = [each.shape[1] for each in tensors_of(inputs)]
    attributions = torch.split(parts.tokens().detach(), widths, 1)
    return Ledger(
        method=attribution.get_name(),
        value=value,
        entries=tuple(entries),
        attributions=_captum.format_output(_captum.is_tuple(inputs), attributions),
    )
