"""The direction in which each branch of a recorded model moves an explained value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx.alti.recording import Recording

__all__ = ["Directions", "directions_of", "wide"]


@dataclass(frozen=True, eq=False)
class Directions:
    """Gradients of one explained value per example, and the terms that follow from them alone.

    Attributes:
        value: The explained values ``[B]``.
        examples: The example of each explained row ``[N]``: of each position with a gradient.
        rows: Its position ``[N]``.
        attention: For each block, the gradient at the output of its attention ``[N, D]``.
        start: ``<u, x>`` at the input of the first block, at the explained positions ``[B, T]``.
        mlps: ``<u, m>`` of the output of each MLP ``[B, L]``.
        biases: ``<u, b>`` of each bias that is added outside of the MLPs ``[B]``, by its path.
    """

    value: Tensor
    examples: Tensor
    rows: Tensor
    attention: list[Tensor]
    start: Tensor
    mlps: Tensor
    biases: dict[str, Tensor]

    def of(self, example: int, block: int) -> tuple[Tensor, Tensor]:
        """Explained rows ``[R]`` of an example and their directions at a block ``[R, D]``."""
        chosen = self.examples == example
        return self.rows[chosen], self.attention[block][chosen]


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def directions_of(recording: Recording, output: Tensor, *, retain_graph: bool) -> Directions:
    """One backward pass through the residual stream.

    Args:
        recording: A complete recording.
        output: The explained values of the same forward pass ``[B]``.
        retain_graph: Whether there will be another call.

    Returns:
        The directions.

    Raises:
        ValueError: If there is not one value for each example, or if it does not depend on the
            blocks of the model.
    """
    batch = recording.blocks[0].residual.shape[0]
    if output.numel() != batch:
        raise ValueError(
            f"The forward function gave {output.numel()} explained values for {batch} examples: "
            "ALTI-Logit explains one value for each example."
        )
    if not output.requires_grad:
        raise ValueError(
            "The explained value does not depend on the model by a gradient: the forward function "
            "must return what it computes from the model's output, not detached."
        )
    gradients = _Gradients(recording, output, retain_graph=retain_graph)
    with torch.no_grad():
        return _terms(recording, gradients, output.detach())


def _terms(recording: Recording, gradients: _Gradients, output: Tensor) -> Directions:
    first = recording.blocks[0].residual
    batch, tokens, _ = first.shape
    explained = gradients.explained()
    examples, rows = explained // tokens, explained % tokens
    zeros = wide(output).new_zeros(batch)

    def by_example(terms: Tensor) -> Tensor:
        return zeros.index_add(0, examples.to(zeros.device), terms.to(zeros))

    def at_rows(x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        return wide(flat[explained.to(flat.device)])

    attention = [at_rows(gradient).to(zeros) for gradient in gradients.attention]
    mlps = [
        (at_rows(gradient) * at_rows(record.mlp)).sum(-1)
        for gradient, record in zip(gradients.mlps, recording.blocks, strict=True)
    ]
    start = zeros.new_zeros(batch * tokens)
    start[explained.to(start.device)] = (
        (at_rows(gradients.start) * at_rows(first)).sum(-1).to(start)
    )
    biases = {
        record.bias_name: by_example(direction @ record.bias.to(direction))
        for record, direction in zip(recording.blocks, attention, strict=True)
        if record.bias is not None
    }
    for bias, gradient in zip(recording.biases, gradients.biases, strict=True):
        total = wide(gradient).reshape(batch, -1, gradient.shape[-1]).sum(1)
        biases[bias.name] = (total @ bias.bias.to(total)).to(zeros)
    return Directions(
        value=wide(output).reshape(batch),
        examples=examples,
        rows=rows,
        attention=attention,
        start=start.view(batch, tokens),
        mlps=torch.stack([by_example(terms) for terms in mlps], 1),
        biases=biases,
    )


class _Gradients:
    """The gradient at every source and behind every bias of a recording."""

    def __init__(self, recording: Recording, output: Tensor, *, retain_graph: bool) -> None:
        blocks = recording.blocks
        self.device = output.device
        edges = [
            recording.start_edge,
            *(record.attention_edge for record in blocks),
            *(record.mlp_edge for record in blocks),
            *(record.edge for record in recording.biases),
        ]
        found = torch.autograd.grad(
            torch.unbind(output),
            edges,
            allow_unused=True,
            materialize_grads=False,
            retain_graph=retain_graph,
        )
        shape = blocks[0].residual
        count = len(blocks)
        sources = [shape.new_zeros(shape.shape) if g is None else g for g in found[: 2 * count + 1]]
        self.start: Tensor = sources[0]
        self.attention: list[Tensor] = sources[1 : count + 1]
        self.mlps: list[Tensor] = sources[count + 1 :]
        self.biases: list[Tensor] = [
            record.bias.new_zeros(shape.shape[0], record.bias.shape[-1]) if g is None else g
            for g, record in zip(found[2 * count + 1 :], recording.biases, strict=True)
        ]

    def explained(self) -> Tensor:
        """Flat indices of the positions at which any source has a gradient ``[N]``."""
        # In a pre-norm model all sources have one and the same gradient.
        distinct = {g.data_ptr(): g for g in (self.start, *self.attention, *self.mlps)}
        seen = [(g != 0).any(-1).flatten().to(self.device) for g in distinct.values()]
        return torch.stack(seen).any(0).nonzero().squeeze(1)
