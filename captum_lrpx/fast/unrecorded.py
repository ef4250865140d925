"""Tensors of residual streams, read from the nodes that have saved them for their gradients.

For a short input, recording these tensors takes as long as the forward pass itself. But nearly
always a norm has saved them, and then nothing needs to be recorded.

Measured on models of 16 layers of width 32 with 8 tokens: 25 to 30 % of ALTI-Logit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.trace.graph import Edge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from captum_lrpx.trace.graph import Graph

Places = dict[Edge, tuple[int, str]]
"""For each tensor a node that has saved it, and under which name."""

_OPERANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "Mul": ("self", "other"),
    "Pow": ("self",),
    "NativeLayerNorm": ("input",),
    "FusedRmsNorm": ("input",),
}
"""Names under which nodes save their operands."""

_RESULT: Final = "result"
"""Replaces such a name for the result of a layer norm, which is computed again."""


def places_of(graph: Graph) -> Places:
    """Find the tensors of a graph that can be read from its nodes.

    Args:
        graph: The graph.
    """
    found: Places = {}
    for number, (name, edges) in enumerate(zip(graph.names, graph.operands, strict=True)):
        if None in edges[:2] and name == "Mul":
            continue  # a factor of a constant is not saved
        for edge, attribute in zip(edges, _OPERANDS.get(name, ()), strict=False):
            if edge is not None:
                found[edge] = number, attribute
    nodes: list[Any] = graph.nodes
    for number, name in enumerate(graph.names):
        result, operand = Edge(number, 0), (*graph.operands[number], None)[0]
        if name == "NativeLayerNorm":
            found.setdefault(result, (number, _RESULT))
        elif name == "ToCopy" and operand is not None and result in found:
            given = nodes[operand.node]._input_metadata[operand.output]  # noqa: SLF001
            copied = nodes[number]._input_metadata[0]  # noqa: SLF001
            wider = torch.promote_types(given.dtype, copied.dtype) == copied.dtype
            if wider and given.device == copied.device:
                found.setdefault(operand, found[result])
    return found


def tensor_of(
    graph: Graph, places: Places, edge: Edge, need: Callable[[int], None]
) -> Tensor | None:
    """A tensor of a graph, perhaps in a wider precision.

    Args:
        graph: The graph.
        places: Its tensors that can be read.
        edge: The tensor.
        need: Called with a node before what it has saved is read.

    Returns:
        The tensor; None if no node has saved it.
    """
    if edge not in places:
        return None
    number, name = places[edge]
    need(number)
    node: Any = graph.nodes[number]
    if name == _RESULT:
        return _normed(node)
    found: Tensor = getattr(node, f"_saved_{name}")
    return found.detach()


def _normed(node: Any) -> Tensor:
    """Result of a layer norm."""
    mean, scale = node._saved_result1.detach(), node._saved_result2.detach()  # noqa: SLF001
    weight, bias = node._saved_weight, node._saved_bias  # noqa: SLF001
    found: Tensor = (node._saved_input.detach() - mean) * scale  # noqa: SLF001
    found = found if weight is None else found * weight.detach()
    return found if bias is None else found + bias.detach()
