"""Runs of activation patching: several nodes in a batch, each run starting at its first layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.checks import CheckedForward
from captum_lrpx.attr.selection import check_target
from captum_lrpx.components.changes import changed, of_first
from captum_lrpx.components.nodes import Nodes, by_row
from captum_lrpx.components.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum_lrpx._captum import TargetType
    from captum_lrpx.attr.protocol import LRPRules


class Patch(NamedTuple):
    """The patch of one layer.

    Attributes:
        layer: The layer.
        nodes: Division of its tensor into nodes.
        clean: The tensor ``[B, ...]`` for clean inputs.
        other: Its replacement.
        only: Indices of the nodes to measure; None for all.
    """

    layer: nn.Module
    nodes: Nodes
    clean: Tensor
    other: Tensor
    only: Tensor | None = None

    def asked(self) -> Tensor:
        """Mask of the nodes to measure ``[N]``.

        Raises:
            IndexError: If an index is out of range.
        """
        count = self.nodes.cut(self.clean).shape[2]
        if self.only is None:
            return torch.ones(count, dtype=torch.bool, device=self.clean.device)
        if len(self.only) and not 0 <= int(self.only.min()) <= int(self.only.max()) < count:
            raise IndexError(f"`only` holds indices of nodes, from 0 to {count - 1} here.")
        asked = torch.zeros(count, dtype=torch.bool, device=self.clean.device)
        asked[self.only.to(asked.device)] = True
        return asked

    def differing(self) -> Tensor:
        """Indices of the nodes to measure whose value changes in some row."""
        differs = self.nodes.cut((self.clean != self.other).to(torch.uint8)).amax((0, 1, 3)) > 0
        return (differs & self.asked()).nonzero().squeeze(1)

    def measured(self, effects: Tensor) -> Tensor:
        """Effects, with NaN for nodes that were not measured."""
        return effects if self.only is None else effects.masked_fill(~self.asked(), torch.nan)


class Runs:
    """Runs of a forward function with nodes replaced, one in each copy of the inputs.

    Args:
        attribution: Forward function and model.
        inputs: Clean inputs.
        target: Target within the output.
        arguments: Further arguments of the forward function.
        at_input: Whether nodes are in the inputs of layers.
    """

    def __init__(
        self,
        attribution: LRPRules,
        inputs: tuple[Tensor, ...],
        target: TargetType,
        arguments: object | None,
        *,
        at_input: bool,
    ) -> None:
        self._model = attribution.model
        self._forward = CheckedForward(attribution.forward_func, attribution.model)  # type: ignore[attr-defined]
        self._finite = attribution.finite(inputs, arguments)
        self._inputs = inputs
        self._target = target
        self._arguments = _captum.format_additional_forward_args(arguments)
        self._at_input = at_input

    @torch.no_grad()
    def effects(self, patches: Sequence[Patch], at_once: int) -> list[Tensor]:
        """Drop of the explained value for each node.

        A run holds nodes of several layers where one layer has fewer than fit, since a short text
        takes hardly longer in many copies than in a few.

        Args:
            patches: The layers, each with its nodes.
            at_once: Largest number of nodes patched in one run.

        Returns:
            For each layer ``[B, N]``, or ``[B]`` where its output is one node.
        """
        wanted = [patch.differing() for patch in patches]
        size = _size(sum(map(len, wanted)), at_once)
        layers = [patch.layer for patch in patches]
        replay = Replay(self._model, layers, at_input=self._at_input)
        # The same number of rows as later: what a row gives may depend on it in its last digit.
        with replay.recorded():
            before = self._explained(size)
        self._finite.require(before[0])
        order = sorted(range(len(patches)), key=lambda number: replay.start(layers[number]))
        nodes = [(number, node) for number in order for node in wanted[number].tolist()]
        found = [
            before.new_zeros(before.shape[1], patch.nodes.cut(patch.clean).shape[2])
            for patch in patches
        ]
        for first in range(0, len(nodes), size):
            some = nodes[first : first + size]
            changes = []
            for number in dict.fromkeys(number for number, _ in some):
                chosen = [node if each == number else -1 for each, node in some]
                chosen += [-1] * (size - len(some))
                changes.append((layers[number], self._patch(patches[number], chosen)))
            with (
                replay.resumed(layers[some[0][0]]),
                changed(changes, at_input=self._at_input),
            ):
                after = self._explained(size)
            for (number, node), lost in zip(some, before - after, strict=False):
                found[number][:, node] = lost
        return [patch.nodes.shaped(each) for patch, each in zip(patches, found, strict=True)]

    def _explained(self, size: int) -> Tensor:
        """Explained value of each row in each copy of the batch, ``[K, B]``."""
        rows = len(self._inputs[0])
        inputs = tuple(each.repeat(size, *[1] * (each.ndim - 1)) for each in self._inputs)
        args = _captum.expand_additional_forward_args(self._arguments, size)
        output: Any = _captum.run_forward(self._forward, inputs, None, args)
        if not isinstance(output, Tensor) or not output.ndim or len(output) != size * rows:
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"The forward function returns {shape} for {size * rows} rows, not one or more "
                "numbers for each: return a tensor [B] or [B, ...]."
            )
        target = _captum.expand_target(self._target, size)
        check_target(output, target)
        explained: Tensor = _captum.select_targets(output, target)
        return explained.reshape(size, rows)

    def _patch(self, patch: Patch, chosen: Sequence[int]) -> Callable[[Any], Any]:
        """A change of a layer that replaces one node in each copy of the batch; none for -1."""
        rows = len(chosen) * len(self._inputs[0])

        def replaced(tensor: Tensor) -> Tensor:
            values = by_row(tensor, rows, patch.layer)
            new = patch.nodes.replaced(values, patch.clean, patch.other, chosen)
            return new.reshape(tensor.shape)

        return of_first(replaced)


def _size(count: int, at_once: int) -> int:
    """Nodes per run, so that runs have one size with little left over."""
    return math.ceil(count / math.ceil(count / at_once)) if count else 1
