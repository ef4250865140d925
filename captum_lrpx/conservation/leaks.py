"""The ledger of a pass with rules on its graph: the leak of each function, by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import torch

from captum_lrpx import _captum
from captum_lrpx.attr.engine import ForwardPass
from captum_lrpx.attr.protocol import require_gradients, tensors_of
from captum_lrpx.conservation.book import Entry, Ledger
from captum_lrpx.conservation.flow import Flow
from captum_lrpx.conservation.tally import wide

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx._captum import TargetType
    from captum_lrpx.attr import LRPx
    from captum_lrpx.coverage import Coverage

__all__ = ["layer_in", "observed"]

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block)\.(\d+)(?=\.|$)")


def observed(
    attribution: LRPx,
    inputs: Tensor | tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: object | None,
) -> tuple[Ledger, Coverage]:
    """Account for an explained value by the operations of its graph, and list them.

    One watched forward pass, and one backward pass for each example: relevance along the edges of
    the graph is summed over all elements of an operation. Arguments as of
    :func:`captum_lrpx.ledger`.
    """
    require_gradients()
    tensors = tensors_of(inputs)
    with ForwardPass(
        attribution, tensors, additional_forward_args, targets=[target], values=True
    ) as passed:
        selected = passed.explain(lambda run: _flat(_captum.select_targets(run.output, target)))
        value = _value(selected, len(tensors[0]))
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
        Entry("tokens", path, layer_in(path), _by_example(wide(each), len(value)))
        for path, each in zip(paths, attributions, strict=True)
    ]
    others = [
        Entry(kind, path, layer_in(path), amount) for (kind, path), amount in flow.lines().items()
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


def _value(selected: Tensor, batch: int) -> Tensor:
    if selected.numel() != batch:
        raise ValueError(
            f"The forward function gave {selected.numel()} explained values for {batch} examples: "
            "the ledger is an account of one value for each example."
        )
    return wide(selected.detach())


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


def layer_in(path: str) -> int | None:
    """Number of the block in a module's path; None outside of the blocks."""
    match = _LAYER.search(path)
    return None if match is None else int(match[1])
