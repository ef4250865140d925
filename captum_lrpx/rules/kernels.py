"""Attention kernels with constant weights: the kernel's own forward, and only what is needed back.

The backward pass of a fused attention kernel computes the gradients of queries, keys and values
whether they are wanted or not. With constant weights only ``A^T dO`` is wanted, so the weights are
computed once more and the kernel's backward is not used.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from captum_lrpx.rules.own_backward import OwnBackward

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["ConstantWeightsMode", "attention_weights"]

_BUDGET: Final = 2**24
"""At most this many attention weights are held at once in the backward pass."""

_CAUSAL_ROWS: Final = 128
"""Rows of a causal attention at once: fewer compute less in vain, more need fewer products."""


@torch.no_grad()
def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax of the scaled scores.

    Args:
        query: ``[..., H, R, z]``.
        key: ``[..., G, S, z]``; each of the ``G`` heads serves ``H / G`` query heads.
        mask: Broadcastable to ``[..., H, R, S]``: True where attention is allowed, or added to the
            scores; or None.
        scale: Factor on the scores.

    Returns:
        ``[..., H, R, S]``, without a graph; rows that may attend to nothing are 0.
    """
    scores = _scores(query, key, scale)
    if mask is None:
        return torch.softmax(scores, -1)
    is_open = mask if mask.dtype == torch.bool else mask > -math.inf
    # A row without any allowed position has no weights; softmax would give NaN.
    attends = is_open.any(-1, keepdim=True)
    if mask.dtype == torch.bool:
        mask = scores.new_zeros(mask.shape).masked_fill_(~mask, -math.inf)
    scores += mask.masked_fill(~attends, 0.0)
    return torch.softmax(scores, -1).mul_(attends)


@torch.no_grad()
def _causal_weights(query: Tensor, key: Tensor, scale: float, first: int) -> Tensor:
    """The rows of a causal attention from the ``first`` on, for the keys that they may see."""
    scores = _scores(query, key, scale)
    block = scores[..., first:]  # what is left of it is seen by all rows
    # To add is several times as fast as to fill with a mask.
    block += block.new_full(block.shape[-2:], -math.inf).triu_(1)
    return torch.softmax(scores, -1)


def _scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Scaled scores ``[..., H, R, S]``, a new tensor."""
    *lead, heads, rows, size = query.shape
    groups, length = key.shape[-3:-1]
    grouped = (query * scale).reshape(*lead, groups, -1, size)
    return (grouped @ key.transpose(-1, -2)).view(*lead, heads, rows, length)


class ConstantWeightsMode(TorchFunctionMode):
    """Inside this context, PyTorch's SDPA holds its attention weights constant."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the backward pass of SDPA; everything else runs as it is."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _constant_sdpa(*args, **kwargs)
        return func(*args, **kwargs)


def _constant_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    query, key = query.detach(), key.detach()
    ours = value.requires_grad and torch.is_grad_enabled() and dropout_p == 0 and value.is_cpu
    # On an accelerator the fused backward beats explicit weights, although it computes too much.
    if not ours or value.ndim != 4:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    output: Tensor = _ConstantWeights.apply(
        value, query, key, attn_mask, is_causal, scale, enable_gqa
    )
    return output


class _ConstantWeights(OwnBackward):
    """SDPA with the gradient ``A^T grad`` for the values alone."""

    @staticmethod
    def forward(
        value: Tensor,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        value, query, key, mask, ctx.is_causal, scale, _ = inputs
        ctx.save_for_backward(query, key, mask)
        ctx.scale = query.shape[-1] ** -0.5 if scale is None else scale
        ctx.groups = value.shape[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, mask = ctx.saved_tensors
        found = _of_examples(query, key, mask, grads[0], ctx)
        return found, None, None, None, None, None, None


def _of_examples(query: Tensor, key: Tensor, mask: Tensor | None, grad: Tensor, ctx: Any) -> Tensor:
    """``A^T grad``, ``[B, G, S, d]``, from as many examples at once as memory is meant for."""
    batch, heads, rows, _ = query.shape
    at_once = max(1, _BUDGET // (heads * rows * key.shape[2]))
    if at_once >= batch:
        return _of_all_rows(query, key, mask, grad, ctx)
    chunks = (slice(start, start + at_once) for start in range(0, batch, at_once))
    parts = [
        _of_all_rows(query[part], key[part], _part(mask, 0, part), grad[part], ctx)
        for part in chunks
    ]
    return torch.cat(parts)


def _of_all_rows(query: Tensor, key: Tensor, mask: Tensor | None, grad: Tensor, ctx: Any) -> Tensor:
    """``A^T grad``, ``[B, G, S, d]``, from as many rows of ``A`` at once as memory is meant for.

    The rows of a causal attention see no later keys, which a chunk of rows need not compute.
    """
    heads, rows = query.shape[1:3]
    at_once = max(1, _BUDGET // (heads * key.shape[2]))
    if ctx.is_causal:
        at_once = min(at_once, _CAUSAL_ROWS)
    if at_once >= rows:
        return _of_rows(query, key, mask, grad, 0, ctx)
    parts = (
        _of_rows(query[:, :, chunk], key, _part(mask, 2, chunk), grad[:, :, chunk], start, ctx)
        for start in range(0, rows, at_once)
        for chunk in [slice(start, start + at_once)]
    )
    return reduce(torch.add, parts)


def _of_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, grad: Tensor, first: int, ctx: Any
) -> Tensor:
    """What the rows of ``A`` from the ``first`` on add to ``A^T grad``, ``[B, G, S, d]``."""
    if not ctx.is_causal:
        weights = attention_weights(query, key, mask, ctx.scale)
        return _transposed_product(weights, grad, ctx.groups)
    length = key.shape[2]
    seen = min(first + query.shape[2], length)
    weights = _causal_weights(query, key[:, :, :seen], ctx.scale, first)
    product = _transposed_product(weights, grad, ctx.groups)
    return product if seen == length else F.pad(product, (0, 0, 0, length - seen))


def _part(mask: Tensor | None, dim: int, chunk: slice) -> Tensor | None:
    """The part of a mask ``[B or 1, H or 1, R or 1, S]`` for some examples or rows."""
    if mask is None or mask.ndim < 4 - dim or mask.shape[dim - 4] == 1:
        return mask
    return mask[(slice(None),) * (dim + mask.ndim - 4) + (chunk,)]


def _transposed_product(weights: Tensor, grad: Tensor, groups: int) -> Tensor:
    """``A^T grad``, summed over the query heads that share a value head: ``[B, G, S, d]``."""
    batch, _, _, length = weights.shape
    weights = weights.reshape(batch, groups, -1, length)
    # Under autocast the kernel may have rounded queries and keys that are kept here as they were.
    grad = grad.to(weights.dtype)
    return weights.transpose(-1, -2) @ grad.reshape(batch, groups, -1, grad.shape[-1])
