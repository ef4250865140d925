"""Backward passes for several targets at once, through one graph."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from captum_lrpx import _captum
from captum_lrpx.attr.engine import ForwardPass

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from captum_lrpx._captum import TargetType
    from captum_lrpx.attr.input import LRPx


_POSITIONS = {"cpu": 512}
"""Positions up to which targets share a backward pass: beyond them it is no faster.

Measured on a CPU (``benchmarks/continuation.py``); other devices take more to fill.
"""
_ELSEWHERE = 8192
_MOST = 8


def at_once_of(targets_per_backward: int | None, positions: int, device: torch.device) -> int:
    """Number of targets that one backward pass explains.

    Args:
        targets_per_backward: The number asked for; None chooses by length: targets of a short
            text share the overhead of a pass; with a long text they would only take memory.
        positions: Number of positions that a backward pass of one target goes through.
        device: Device of the backward pass.

    Raises:
        ValueError: If the number asked for is not positive.
    """
    if targets_per_backward is None:
        room = _POSITIONS.get(device.type, _ELSEWHERE) // max(positions, 1)
        return min(max(room, 1), _MOST)
    if targets_per_backward < 1:
        raise ValueError(f"targets_per_backward must be positive, not {targets_per_backward}.")
    return targets_per_backward


def gradients(
    outputs: Tensor, inputs: Sequence[Tensor], seeds: Tensor, *, retain: bool
) -> tuple[Tensor, ...]:
    """Compute gradients of weighted sums of outputs in one backward pass.

    Memory of the backward pass grows with the number of sums; one sum takes an ordinary pass.

    Args:
        outputs: ``[...]``.
        inputs: Tensors of the graph.
        seeds: Weights of the sums ``[K, ...]``.
        retain: Whether to keep the graph for further backward passes.

    Returns:
        For each input ``[K, ...]``, zero without a path to the outputs, as for a layer on a
        branch that is constant under the rules.

    Raises:
        RuntimeError: If an operation of the model cannot be batched.
    """

    def of_one(seed: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            outputs, tuple(inputs), seed, retain_graph=retain, materialize_grads=True
        )

    if len(seeds) == 1:
        return tuple(gradient.unsqueeze(0) for gradient in of_one(seeds[0]))
    try:
        with warnings.catch_warnings():
            # The backward pass of SDPA on a CPU runs once per target: no loss against single calls.
            warnings.filterwarnings("ignore", message=".*performance drop.*batching rule")
            # It covers more operations than autograd's is_grads_batched.
            found: tuple[Tensor, ...] = torch.func.vmap(of_one)(seeds)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(
            "The backward pass of this model could not be batched (the cause is above): pass "
            "`targets_per_backward=1`."
        ) from error
    return found


def relevances_by_target(
    attribution: LRPx,
    inputs: tuple[Tensor, ...],
    targets: Sequence[TargetType] | None,
    arguments: object | None,
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
    at_once = at_once_of(at_once, inputs[0].shape[:2].numel(), inputs[0].device)
    with ForwardPass(attribution, inputs, arguments, targets=given) as passed:
        chosen = _all_targets(passed.output, targets)
        # The gradient at logits of all positions is zero almost everywhere, which the head exploits
        # in a backward pass of one target only.
        at_once = at_once if passed.output.ndim <= 2 else 1
        passed.explain(lambda run: run.output, at_once=at_once)
        finite = attribution.finite(inputs, arguments)
        parts = []
        for values, slopes in _gradients_by_target(passed.output, chosen, passed.sources, at_once):
            finite.require(values.T)
            parts.append(passed.relevances(slopes))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _all_targets(output: Tensor, targets: Sequence[TargetType] | None) -> Sequence[TargetType]:
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


def _gradients_by_target(
    output: Tensor, targets: Sequence[TargetType], inputs: Sequence[Tensor], at_once: int
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Explained values and their gradients, with one backward pass per ``at_once`` targets.

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
    for start in range(0, len(targets), at_once):
        chosen = targets[start : start + at_once]
        values = torch.stack([_captum.select_targets(output, each).reshape(-1) for each in chosen])
        count, rows = values.shape
        seeds = torch.eye(count, dtype=values.dtype, device=values.device)
        retain = start + at_once < len(targets)
        found = gradients(
            values, inputs, seeds.unsqueeze(2).expand(count, count, rows), retain=retain
        )
        yield values.detach(), found
