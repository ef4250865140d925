"""Checks on the first pass, by gradients, that nothing but attention mixes tokens.

A graph shows that an operation is a convolution, a recurrence or a product, but hardly along which
axis. The gradient at one position of a branch's output shows it exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.alti.attention_weights import wide
from captum_lrpx.alti.directions import Biases
from captum_lrpx.alti.examples import Example
from captum_lrpx.alti.pull import Pull, tolerance
from captum_lrpx.alti.streams import paths
from captum_lrpx.graph_rules import Plan
from captum_lrpx.trace.graph import Edge

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

    from captum_lrpx.alti.attention_parts import Part, Reader
    from captum_lrpx.alti.layout import Attention, Layout
    from captum_lrpx.fast.unrecorded import Places

_CHECKED: Final = 8
"""Number of positions at which the parts of an attention are compared."""


def probe(reader: Reader, layout: Layout, batch: int, tokens: Sequence[int]) -> None:
    """Refuse a model in which anything but attention mixes tokens.

    Args:
        reader: Reads the pass, whose tensors must all still exist.
        layout: Its parts.
        batch: Examples.
        tokens: Positions of each input.

    Raises:
        ValueError: If a branch reads other positions than its own, or values do.
    """
    for place, stream in layout.streams.items():
        shape = (batch, tokens[place])
        if not _is_positional(reader, {stream.source.node}, stream.start, shape, -1):
            reader.refuse(stream.start.node, "comes after a mixing of tokens without a softmax")
    for branch in layout.positional:
        if branch.constant:
            continue
        shape = (batch, tokens[branch.stream])
        if not _is_positional(reader, layout.kept, branch.operand, shape, -1):
            reader.refuse(branch.operand.node, "mixes tokens by something else than a softmax")
    for attention in layout.attentions:
        shape = (batch, tokens[attention.source])
        if not _is_positional(reader, layout.kept, attention.value, shape, -2):
            reader.refuse(
                attention.value.node, "computes values from several positions, without a softmax"
            )
        if not reader.dropout:
            _check(reader, attention, batch, tokens)


def is_saved(reader: Reader, layout: Layout, places: Places) -> bool:
    """Whether nodes have saved the tensors of the streams as they were recorded.

    Args:
        reader: Reads the pass, which has been recorded, and whose tensors must all still exist.
        layout: Its parts.
        places: Places of saved tensors.
    """
    edges = [stream.start for stream in layout.streams.values()]
    for each in layout.attentions:
        end = reader.result(each)
        if end is None:
            return False
        edges += [each.residual, end]
    for edge in edges:
        recorded, saved = reader.tensor(edge, None), reader.tensor(edge, places)
        if recorded is None or saved is None or saved.shape != recorded.shape:
            return False
        same = 4 * torch.finfo(recorded.dtype).eps * recorded.norm()
        if not (saved - recorded).norm() <= same:
            return False
    return True


def _check(reader: Reader, attention: Attention, batch: int, tokens: Sequence[int]) -> None:
    """Refuse an attention whose measured parts disagree with the graph.

    In some direction at some positions, its sum must be the same in three ways: in the model,
    by the gradients of its parts, and by the transformed vectors. The gradients that the attention
    passes to its values show the weights, number by number.
    """
    count = tokens[attention.stream]
    part = reader.part(attention, batch, count, tokens[attention.source])
    (stream,) = [
        edge
        for edge in reader.graph.operands[attention.addition]
        if edge is not None and edge != attention.operand
    ]
    rows = min(count, _CHECKED)
    direction = torch.zeros_like(wide(part.resultant))
    noise = torch.arange(direction[0, :rows].numel(), device=direction.device).sin()
    direction[0, :rows] = noise.view_as(direction[0, :rows]).to(direction)
    biases = Biases(reader, batch, lambda *_: "")
    found = reader.pull.back(
        (*attention.norms, attention.addition, *attention.region),
        {attention.end: direction.reshape_as(reader.seed(attention.end))},
        {stream, Edge(attention.mixing, 0)},
        biases,
    )
    one = Example(part, 0, 1 << 62, whole=False)
    gradient = part.found(found[Edge(attention.mixing, 0)])[0, :, :rows]
    at_stream = found[stream].reshape(batch, count, -1)[0, :rows]
    by_value = one.values.repeat_interleave(part.heads // len(one.values), 0)
    weights = one.weights(slice(0, rows))
    of_tokens = (gradient * (weights @ by_value)).sum()
    of_stream = (at_stream * wide(part.residual[0, :rows])).sum()
    folded, output, residual = one.folded(slice(0, rows))
    vectors = torch.einsum("hij,hjz,hzd->id", folded, by_value, output) + residual
    seen = direction[0, :rows]
    ways = (
        torch.stack(
            [
                (seen * wide(part.resultant[0, :rows])).sum(),
                of_tokens + of_stream + sum(amount[0] for amount in biases.amounts.values()),
            ]
        ),
        torch.stack([(seen * vectors).sum(), of_tokens + of_stream]),
    )
    size = (seen.abs() * wide(part.resultant[0, :rows]).abs()).sum()
    nodes = (*attention.norms, attention.addition, *attention.region, *attention.value_region)
    relative = 2 * tolerance(reader.graph, (*nodes, attention.mixing))
    given = _at_values(reader, attention, found[Edge(attention.mixing, 0)])
    expected = _handed(part, weights, gradient, given)
    same = (given - expected).norm() <= relative * expected.norm()
    if not same or any((one - other).abs() > relative * size for one, other in ways):
        reader.refuse(attention.mixing, "is not what its values, weights and output projection say")


def _handed(part: Part, weights: Tensor, gradient: Tensor, like: Tensor) -> Tensor:
    """Gradients that weights ``[h, T, S]`` pass to the matrices of values, of the shape of one."""
    handed = (weights.mT @ gradient.to(weights)).to(like)
    if part.split is not None:
        handed = part.split.own(handed, 0)
    of_head = part.places[0].repeat_interleave(len(handed) // len(part.places[0]))
    return torch.zeros_like(like).index_add_(0, of_head, handed)


def _at_values(reader: Reader, attention: Attention, gradient: Tensor) -> Tensor:
    """Gradients that the mixing node passes to its matrices of values ``[N, S, z]``."""
    graph = reader.graph
    number, edge = attention.mixing, attention.value
    metadata: Any = graph.nodes[number]
    metadata = metadata._input_metadata[0]  # noqa: SLF001 - no public name
    taken = (gradient.reshape(tuple(metadata.shape)), *[None] * (graph.results(number) - 1))
    given = Pull(graph, Plan(), {}, reader.pull.need).through(number, taken)
    of_values = given[graph.operands[number].index(edge)]
    assert of_values is not None  # noqa: S101 - the values depend on the input
    return wide(of_values).reshape(-1, *of_values.shape[-2:])


def _is_positional(
    reader: Reader, ends: Collection[int], edge: Edge, shape: tuple[int, int], axis: int
) -> bool:
    """Whether a tensor depends, at each position, on other tensors at this position only.

    Args:
        reader: Reads the pass.
        ends: The nodes of the other tensors.
        edge: The tensor: of shape ``[B, T, D]`` or ``[B T, D]``, or else values ``[..., T, z]``.
        shape: Examples and positions of the stream.
        axis: -1 for the first kind, -2 for values.
    """
    graph, (batch, tokens) = reader.graph, shape
    if tokens < 2 or edge.node in ends:
        return True
    node: Any = graph.nodes[edge.node]
    metadata = node._input_metadata[edge.output]  # noqa: SLF001 - no public name
    seed = torch.zeros(tuple(metadata.shape), dtype=metadata.dtype, device=metadata.device)
    if seed.shape[-2] != tokens if axis == -2 else seed.numel() % (batch * tokens):
        return False
    entries, order = paths(graph.operands, ends, edge)
    pull = Pull(graph, Plan(), {}, reader.pull.need)
    for position in {0, tokens // 2}:  # the middle one may be a fixed point of a permutation
        unit = torch.zeros_like(seed)
        if axis == -2:
            unit[..., position, :] = 1.0
            rows = {example * tokens + position for example in range(batch)}
        else:
            unit.view(batch * tokens, -1)[position] = 1.0
            rows = {position}
        found = pull.back(order, {edge: unit}, entries)
        if not all(_touched(each, batch * tokens) <= rows for each in found.values()):
            return False
    return True


def _touched(gradient: Tensor, rows: int) -> set[int]:
    if gradient.numel() % rows:
        return {-1}
    return set((gradient.reshape(rows, -1).nan_to_num() != 0).any(-1).nonzero().flatten().tolist())
