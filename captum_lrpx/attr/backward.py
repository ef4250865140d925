"""Backward passes for several targets at once, through one graph."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


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
    batched = len(seeds) > 1
    try:
        found = (
            _batched(outputs, inputs, seeds, retain=retain)
            if batched
            else _of(outputs, inputs, seeds[0], retain=retain)
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not batched:
            raise
        raise RuntimeError(
            "The backward pass of this model could not be batched (the cause is above): pass "
            "`targets_per_backward=1`."
        ) from error
    return found if batched else tuple(gradient.unsqueeze(0) for gradient in found)


def _of(
    outputs: Tensor, inputs: Sequence[Tensor], seed: Tensor, *, retain: bool
) -> tuple[Tensor, ...]:
    found = torch.autograd.grad(
        outputs, tuple(inputs), seed, retain_graph=retain, allow_unused=True
    )
    return tuple(
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(inputs, found, strict=True)
    )


def _batched(
    outputs: Tensor, inputs: Sequence[Tensor], seeds: Tensor, *, retain: bool
) -> tuple[Tensor, ...]:
    # torch.func.vmap covers more operations than autograd's is_grads_batched.
    def of_one(seed: Tensor) -> tuple[Tensor, ...]:
        return _of(outputs, inputs, seed, retain=retain)

    with warnings.catch_warnings():
        # The backward pass of SDPA on a CPU runs once per target: no loss against single calls.
        warnings.filterwarnings("ignore", message=".*performance drop.*batching rule")
        found: tuple[Tensor, ...] = torch.func.vmap(of_one)(seeds)
    return found
