"""``ledger(attribution, inputs, ...)``: the complete account of an explained value."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from captum_lrpx import _captum
from captum_lrpx.attr import ALTILogit, LRPx
from captum_lrpx.attr.protocol import tensors_of
from captum_lrpx.conservation.book import Entry, Ledger
from captum_lrpx.conservation.leaks import layer_in, observed
from captum_lrpx.conservation.tally import wide
from captum_lrpx.wrappers import has_virtual_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx._captum import TargetType
    from captum_lrpx.conservation.tally import Kind
    from captum_lrpx.coverage import Coverage

__all__ = ["ledger", "observed_ledger"]


def ledger(
    attribution: LRPx | ALTILogit,
    inputs: Tensor | tuple[Tensor, ...],
    target: TargetType = None,
    additional_forward_args: object | None = None,
) -> Ledger:
    """Account for all of an explained value, with one forward and one backward pass.

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
        ValueError: As ``attribute``; if the forward function does not return one value for each
            example.
        RuntimeError: Under ``torch.inference_mode``, where no gradient exists.

    Examples:
        >>> book = ledger(LRPx(model), ids, target=(-1, are))
        >>> book.closes(1e-4)
        True
        >>> print(book.explanation())
    """
    return observed_ledger(attribution, inputs, target, additional_forward_args)[0]


def observed_ledger(
    attribution: LRPx | ALTILogit,
    inputs: Tensor | tuple[Tensor, ...],
    target: TargetType = None,
    additional_forward_args: object | None = None,
) -> tuple[Ledger, Coverage]:
    """The ledger, and the operations of the same pass.

    Arguments and errors as of :func:`ledger`.
    """
    if has_virtual_tokens(getattr(attribution, "forward_func", None)):
        raise ValueError(
            "The model has virtual tokens of its own (prompt or prefix tuning), whose relevance "
            "has no line in a ledger: it is in the convergence delta."
        )
    if isinstance(attribution, ALTILogit):
        return _of_alti_logit(attribution, inputs, target, additional_forward_args)
    if isinstance(attribution, LRPx):
        return observed(attribution, inputs, target, additional_forward_args)
    raise TypeError(
        f"There is a ledger of LRPx, AttnLRPx and ALTILogit, not of {type(attribution).__name__}: "
        "pass one of these attributions."
    )


def _of_alti_logit(
    attribution: ALTILogit,
    inputs: Tensor | tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: object | None,
) -> tuple[Ledger, Coverage]:
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
    if parts.output.any():
        entries.append(entry("output", "", parts.output))
    widths = [each.shape[1] for each in tensors_of(inputs)]
    attributions = torch.split(parts.tokens().detach(), widths, 1)
    book = Ledger(
        method=attribution.get_name(),
        value=value,
        entries=tuple(entries),
        attributions=_captum.format_output(_captum.is_tuple(inputs), attributions),
    )
    return book, parts.coverage
