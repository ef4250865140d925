"""Several targets explained with one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx import _captum
from captum_lrpx.attr.backward import at_once_of, gradients
from captum_lrpx.attr.engine import forward_pass

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from captum_lrpx._captum import TargetType
    from captum_lrpx.attr.input import LRPx


def relevances_by_target(
    attribution: LRPx,
    inputs: tuple[Tensor, ...],
    targets: Sequence[TargetType] | None,
    arguments: tuple[Any, ...] | None,
    at_once: int | None,
) -> tuple[Tensor, ...]:
    """Relevances of inputs for each of several targets: one graph, several backward passes.

    Args:
        attribution: Forward function and rules.
        inputs: Token ids ``[B, T]`` and floating inputs ``[B, ...]``.
        targets: Targets in Captum's forms, or None.
        arguments: Further arguments of the forward function, after the inputs.
        at_once: Number of targets per backward pass; None chooses by length.

    Returns:
        For each input ``[K, B, ...]``.

    Raises:
        AssertionError: Captum's errors for targets that do not fit.
        ValueError: If inputs or targets do not fit.
    """
    given = () if targets is None else targets
    at_once = at_once_of(at_once, _positions(inputs), inputs[0].device)
    with forward_pass(attribution, inputs, arguments, targets=given) as passed:
        chosen = all_targets(passed.output, targets)
        at_once = at_once if passed.output.ndim <= 2 else 1
        passed.explain(lambda run: run.output, at_once=at_once)
        finite = attribution.finite(inputs, arguments)
        parts = []
        for values, slopes in gradients_by_target(passed.output, chosen, passed.sources, at_once):
            finite.require(values.T)
            parts.append(passed.relevances(slopes))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _positions(inputs: tuple[Tensor, ...]) -> int:
    """Rows times positions of the first input."""
    return inputs[0].shape[:2].numel()


def all_targets(output: Tensor, targets: Sequence[TargetType] | None) -> Sequence[TargetType]:
    """The given targets, by default every output of each row.

    Args:
        output: ``[B, C]``; any shape where targets are given.
        targets: Targets in Captum's forms, or None.

    Raises:
        ValueError: If all outputs are wanted and the shape is not ``[B, C]``.
    """
    if targets is None:
        if output.ndim != 2:
            raise ValueError(
                f"The output has the shape {tuple(output.shape)}: without `targets` it must be "
                "[B, C], all of which is explained. Give `targets`."
            )
        return range(output.shape[1])
    return targets


def gradients_by_target(
    output: Tensor, targets: Sequence[TargetType], inputs: Sequence[Tensor], at_once: int
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Explained values and their gradients, with one backward pass per ``at_once`` targets.

    The gradient at logits of all positions is zero almost everywhere, which the head exploits
    in a backward pass of one target only: such outputs are explained one by one.

    Args:
        output: Output of the forward function ``[B, ...]``.
        targets: Targets in Captum's forms.
        inputs: Tensors of the graph ``[B, ...]``.
        at_once: Number of targets per backward pass.

    Yields:
        Values ``[k, B]``, and for each input the gradients ``[k, B, ...]``.

    Raises:
        AssertionError: Captum's errors for targets that do not fit.
    """
    at_once = at_once if output.ndim <= 2 else 1
    for start in range(0, len(targets), at_once):
        values = torch.stack(
            [_selected(output, target) for target in targets[start : start + at_once]]
        )
        count, rows = values.shape
        seeds = torch.eye(count, dtype=values.dtype, device=values.device)
        retain = start + at_once < len(targets)
        found = gradients(
            values, inputs, seeds.unsqueeze(2).expand(count, count, rows), retain=retain
        )
        yield values.detach(), found


def _selected(output: Tensor, target: TargetType) -> Tensor:
    values: Any = _captum.select_targets(output, target)
    selected: Tensor = values.reshape(-1)
    return selected
