"""The ledger of a pass whose rules are on its graph: what each function leaks, by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import torch

from captum_lrpx import _captum
from captum_lrpx.attr.engine import forward_pass
from captum_lrpx.attr.protocol import require_gradients, tensors_of
from captum_lrpx.conservation.book import Entry, Ledger
from captum_lrpx.conservation.flow import Flow
from captum_lrpx.conservation.tally import wide

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx._captum import TargetType
    from captum_lrpx.attr import LRPx
    from captum_lrpx.conservation.tally import Kind
    from captum_lrpx.coverage import Coverage

__all__ = ["layer_in", "observed"]

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block)\.(\d+)(?=\.|$)")
_Place = tuple["Kind", str]


def observed(
    attribution: LRPx,
    inputs: Tensor | tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: object | None,
) -> tuple[Ledger, Coverage]:
    """Account for an explained value by the operations of its graph, and list them.

    One watched forward pass, and one backward pass for each example: what flows along the edges of
    the graph is summed over everything that an operation works on. Arguments as of
    :func:`captum_lrpx.ledger`.
    """
    require_gradients()
    tensors = tensors_of(inputs)
    with forward_pass(
        attribution, tensors, additional_forward_args, targets=[target], values=True
    ) as passed:
        selected = passed.explain(
            lambda run: _captum.select_targets(run.output, target).reshape(-1)
        )
        flow = Flow(passed.rules, passed.sources)
        relevances = []
        for row in range(len(selected)):
            flow.start(selected, row)
            found = torch.autograd.grad(
                selected[row],
                passed.sources,
                allow_unused=True,
                retain_graph=row + 1 < len(selected),
            )
            relevances.append(passed.relevances(found))
            flow.stop()
        coverage = passed.rules.coverage(passed.sources)
    attributions = tuple(torch.stack(rows).sum(0) for rows in zip(*relevances, strict=True))
    value = wide(selected.detach())
    names = ["inputs"] if len(tensors) == 1 else [f"inputs.{n}" for n in range(len(tensors))]
    tokens = [
        Entry("tokens", name, None, _by_example(wide(each), len(value)))
        for name, each in zip(names, attributions, strict=True)
    ]
    book = Ledger(
        method=attribution.get_name(),
        value=value,
        entries=(*tokens, *_entries(flow, len(value))),
        attributions=_captum.format_output(_captum.is_tuple(inputs), attributions),
    )
    return book, coverage


def _by_example(relevances: Tensor, examples: int) -> Tensor:
    """The sum for each example; one input may hold all parts of a single one."""
    if examples == 1:
        return relevances.sum().reshape(1)
    return relevances.flatten(1).sum(1)


def _entries(flow: Flow, rows: int) -> list[Entry]:
    amounts: dict[_Place, list[Tensor]] = {}
    for row in range(rows):
        for leak in flow.found(row):
            if leak.kind is not None:
                place = leak.kind, leak.path or leak.function
                known = amounts.setdefault(place, [torch.zeros_like(leak.amount)] * rows)
                known[row] = known[row] + leak.amount
    return [
        Entry(kind, path, layer_in(path), torch.stack(each))
        for (kind, path), each in amounts.items()
    ]


def layer_in(path: str) -> int | None:
    """The number of the block that a module's path leads through."""
    match = _LAYER.search(path)
    return None if match is None else int(match[1])
