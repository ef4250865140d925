"""``ledger(attribution, inputs, ...)``: the complete account of an explained value."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast

import torch

from captum_lrpx import _captum
from captum_lrpx.attr import ALTILogit, LRPx
from captum_lrpx.attr.engine import ForwardPass
from captum_lrpx.attr.protocol import require_gradients, tensors_of
from captum_lrpx.conservation.book import Entry, Ledger, wide
from captum_lrpx.conservation.flow import Flow
from captum_lrpx.wrappers import has_virtual_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx._captum import TargetType
    from captum_lrpx.conservation.book import Kind
    from captum_lrpx.coverage import Coverage

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block)\.(\d+)(?=\.|$)")


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
        return _of_relevance(attribution, inputs, target, additional_forward_args)
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
        return Entry(kind, path, _layer_in(path), wide(amount.detach()).to(value))

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


def _of_relevance(
    attribution: LRPx,
    inputs: Tensor | tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: object | None,
) -> tuple[Ledger, Coverage]:
    """The leak of each function of a graph, by name.

    One watched forward pass, and one backward pass for each example: relevance along the edges of
    the graph is summed over all elements of an operation.
    """
    require_gradients()
    tensors = tensors_of(inputs)
    with ForwardPass(
        attribution, tensors, additional_forward_args, targets=[target], values=True
    ) as passed:
        selected = passed.explain(lambda run: _flat(_captum.select_targets(run.output, target)))
        if selected.numel() != len(tensors[0]):
            raise ValueError(
                f"The forward function gave {selected.numel()} explained values for "
                f"{len(tensors[0])} examples: the ledger is an account of one value for each "
                "example."
            )
        value = wide(selected.detach())
        flow = Flow(passed.rules, passed.sources, selected)
        relevances = []
        for row in range(len(value)):
            flow.start(row)
            found = torch.autograd.grad(
                selected[row],
                passed.sources,
                allow_unused=True,
                retain_graph=row + 1 < len(value),
            )
            relevances.append(passed.relevances(found))
            flow.stop()
        coverage = passed.rules.coverage(passed.sources)
        paths = _paths(passed, tensors)
    attributions = tuple(torch.stack(rows).sum(0) for rows in zip(*relevances, strict=True))
    tokens = [
        Entry("tokens", path, _layer_in(path), _by_example(wide(each), len(value)))
        for path, each in zip(paths, attributions, strict=True)
    ]
    others = [
        Entry(kind, path, _layer_in(path), amount) for (kind, path), amount in flow.lines().items()
    ]
    book = Ledger(
        method=attribution.get_name(),
        value=value,
        entries=(*tokens, *others),
        attributions=_captum.format_output(_captum.is_tuple(inputs), attributions),
    )
    return book, coverage


def _flat(selected: Tensor) -> Tensor:
    return selected if selected.ndim == 1 else selected.reshape(-1)


def _paths(passed: ForwardPass, inputs: tuple[Tensor, ...]) -> list[str]:
    """Names of the inputs; for token ids alone, the path of their embedding table."""
    if len(inputs) > 1:
        return [f"inputs.{number}" for number in range(len(inputs))]
    watch, tables = passed.rules.watch, {}
    if watch is not None and watch.origins is not None and not inputs[0].is_floating_point():
        tables = {each.data_ptr(): module for module, each in watch.origins.embedded}
    table = tables.get(passed.sources[0].data_ptr())
    names = {module: path for path, module in passed.rules.model.named_modules()}
    return [names.get(table, "") or "inputs"] if table is not None else ["inputs"]


def _by_example(relevances: Tensor, examples: int) -> Tensor:
    """Sum for each example; if there is only one, an input may have any first dimension."""
    if examples == 1:
        return relevances.sum().reshape(1)
    return relevances.flatten(1).sum(1)


def _layer_in(path: str) -> int | None:
    """Number of the block in a module's path; None outside of the blocks."""
    match = _LAYER.search(path)
    return None if match is None else int(match[1])
