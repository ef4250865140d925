"""Skips the computation of gradients that a rule replaces.

A rule acts after the node of its operation has computed its own gradients, some of which it then
replaces or drops. For large tensors this is wasted work: the derivative of an activation
with a secant slope, the gradients of constant queries and keys. Here the incoming gradient
intercepts the one function that the node calls, and computes the result of the rule instead.

Measured on the shape of bert-base at 1 x 128, on one core: 2 % of AttnLRPx, 6 % of LRPx.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.fast.least import Least
from captum_lrpx.parallel import is_spread
from captum_lrpx.rules import node_rules
from captum_lrpx.rules.answering import Answering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from captum_lrpx.graph_rules import Plan
    from captum_lrpx.trace.graph import Graph


_WORTH_IT: Final = Least(1 << 15, 1 << 22)
"""Size of a gradient below which the detour takes longer."""

_BUDGET: Final = 1 << 24
"""Number of attention weights computed at a time, at most."""

_ROWS: Final = 128
"""Rows of a causal attention at once: fewer waste less work, more need fewer products."""

_ACTIVATIONS: Final = {
    "Gelu": torch.ops.aten.gelu_backward.default,
    "Silu": torch.ops.aten.silu_backward.default,
}
_KERNEL: Final = "ScaledDotProductFlashAttentionForCpu"
_OF_KERNEL: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default  # noqa: SLF001


def direct(graph: Graph, plan: Plan) -> Iterator[RemovableHandle]:
    """Register hooks before large nodes whose own gradients are not needed.

    The hooks of the rule itself, after these nodes, keep the gradients as they are.

    Args:
        graph: The graph.
        plan: The actions of the rules.

    Yields:
        A handle that removes each hook.
    """
    all_nodes = graph.nodes
    for number, name, rule, factors in plan.actions:
        node: Any = all_nodes[number]
        result = node._input_metadata[0]  # noqa: SLF001 - no public name
        if math.prod(result.shape) < _WORTH_IT.of(result.device.type):
            continue
        if rule == "secant" and name in _ACTIVATIONS:
            slope = partial(_secant, node, name)
            yield node.register_prehook(partial(_knowing, _ACTIVATIONS[name], slope))
        elif name == _KERNEL and factors[:2] == (None, None):
            yield node.register_prehook(partial(_knowing, _OF_KERNEL, _values_only))


def _knowing(
    function: Any, answer: Callable[..., Any], taken: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...] | None:
    """A hook that wraps the incoming gradient; idle if the backward pass builds a graph itself."""
    if taken[0] is None or torch.is_grad_enabled() or is_spread(taken[0]):
        return None
    return (Answering(taken[0], {function: answer}, ruled=True), *taken[1:])


def _secant(node: Any, name: str, gradient: Tensor, z: Tensor, **_options: Any) -> Tensor:
    return node_rules.slope_of(node, name, z).mul_(gradient)


# Attention with constant weights ------------------------------------------------------------------


def _values_only(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    _value: Tensor,
    _out: Tensor,
    _logsumexp: Tensor,
    _dropout: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[None, None, Tensor]:
    """``A^T grad`` for the values, over chunks of rows of the weights that fit the budget."""
    batch, heads, rows, size = query.shape
    groups, length = key.shape[1:3]
    query = query * (size**-0.5 if scale is None else scale)
    found = gradient.new_zeros(batch, groups, length, gradient.shape[-1])
    step = max(1, _BUDGET // (batch * heads * length))
    if is_causal:
        step = min(step, _ROWS)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        seen = min(part.stop, length) if is_causal else length
        grouped = query[:, :, part].reshape(batch, groups, -1, size)
        scores = (grouped @ key[:, :, :seen].transpose(-1, -2)).view(batch, heads, -1, seen)
        if is_causal:  # adding is several times faster than masking
            scores[..., start:] += scores.new_full(
                (part.stop - start, seen - start), -torch.inf
            ).triu_(1)
        elif attn_mask is not None:
            scores += _rows_of(attn_mask, part)
        weights = torch.softmax(scores, -1)
        if attn_mask is not None:
            weights.nan_to_num_(nan=0.0)  # rows that may attend to nothing
        weights = weights.view(batch, groups, -1, seen).transpose(-1, -2)
        found[:, :, :seen] += weights @ gradient[:, :, part].reshape(
            batch, groups, -1, gradient.shape[-1]
        )
    return None, None, found


def _rows_of(mask: Tensor, rows: slice) -> Tensor:
    return mask[..., rows, :] if mask.shape[-2] > 1 else mask
