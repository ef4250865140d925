"""The attention weights that a model has used, read from the graph of its pass.

Most attention implementations never return their weights (SDPA does not even hold them). The node
of a matrix product has saved them; those of a kernel are computed from the queries and keys that
its node has saved, for the rows that are asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx.parallel import Split

__all__ = [
    "AttentionWeights",
    "MaterializedWeights",
    "ScoredWeights",
    "attention_of",
    "attention_weights",
    "in_order",
]


class AttentionWeights(ABC):
    """The attention weights of one module for a batch, ``[B, H, T, T]``."""

    @abstractmethod
    def of(self, example: int, rows: slice | Tensor) -> Tensor:
        """The weights of some query rows of one example.

        Args:
            example: Which example.
            rows: A slice of positions, or their indices ``[R]``.

        Returns:
            ``[H, R, T]``, in float32 or wider; rows that attend to nothing are 0.
        """

    @abstractmethod
    def joined(self, split: Split) -> AttentionWeights:
        """The weights of the heads of all processes."""


@dataclass(frozen=True, eq=False)
class MaterializedWeights(AttentionWeights):
    """Weights that the module computed itself.

    Attributes:
        weights: ``[B, H, T, T]``.
    """

    weights: Tensor

    def of(self, example: int, rows: slice | Tensor) -> Tensor:
        """Select the rows."""
        return _wide(self.weights[example][:, rows])

    def joined(self, split: Split) -> MaterializedWeights:
        """Those of all heads."""
        return MaterializedWeights(split.joined(self.weights, 1))


@dataclass(frozen=True, eq=False)
class ScoredWeights(AttentionWeights):
    """Weights that follow from what SDPA was called with.

    Attributes:
        query: ``[B, H, T, z]``.
        key: ``[B, G, T, z]`` with ``G`` key/value heads.
        mask: Broadcastable to ``[B, H, T, T]``: True where attention is allowed, or added to the
            scores; or None.
        causal: Whether no position attends to a later one.
        scale: Factor on the scores.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    causal: bool
    scale: float

    def of(self, example: int, rows: slice | Tensor) -> Tensor:
        """Compute the rows."""
        query, key = _wide(self.query[example][:, rows]), _wide(self.key[example])
        return attention_weights(query, key, self._mask(example, rows), self.scale)

    def joined(self, split: Split) -> ScoredWeights:
        """What those of all heads follow from."""
        by_head = self.mask is not None and self.mask.shape[1] > 1
        return replace(
            self,
            query=split.joined(self.query, 1),
            key=split.joined(self.key, 1),
            mask=split.joined(self.mask, 1) if by_head and self.mask is not None else self.mask,
        )

    def _mask(self, example: int, rows: slice | Tensor) -> Tensor | None:
        if self.mask is not None:
            mask = self.mask[example if self.mask.shape[0] > 1 else 0]
            return mask[:, rows] if mask.shape[1] > 1 else mask
        if not self.causal:
            return None
        position = torch.arange(self.key.shape[-2], device=self.key.device)
        return (position[rows].unsqueeze(1) >= position).unsqueeze(0)


def attention_of(node: Any, name: str, rows: Tensor) -> tuple[AttentionWeights, Tensor] | None:
    """The weights and values that a node of a graph has mixed.

    Args:
        node: The node of a matrix product or of an attention kernel.
        name: Its operator.
        rows: For each example, head and position its row among those of the node ``[B, H, T]``.

    Returns:
        The weights, and values ``[..., T, z]``; None if the node does not show them.
    """
    if name in ("Bmm", "Mm"):
        weights, values = node._saved_self, node._saved_mat2  # noqa: SLF001 - no public names
        return MaterializedWeights(_gathered(weights, rows)), values
    if not all(hasattr(node, f"_saved_{each}") for each in ("query", "key", "value")):
        return None
    query, key, values = node._saved_query, node._saved_key, node._saved_value  # noqa: SLF001
    mask = getattr(node, "_saved_attn_mask", getattr(node, "_saved_attn_bias", None))
    if mask is not None:
        mask = mask.detach()[(None,) * (4 - mask.ndim)]
        if not in_order(rows):
            whole = mask.expand(*query.shape[:3], key.shape[-2])
            mask = _gathered(whole, rows)
    scale = getattr(node, "_saved_scale", None)
    weights = ScoredWeights(
        _gathered(query, rows),
        key.detach(),
        mask,
        bool(getattr(node, "_saved_is_causal", False)),
        query.shape[-1] ** -0.5 if scale is None else scale,
    )
    return weights, values


def in_order(rows: Tensor) -> bool:
    """Whether the rows of a node are examples, heads and positions in this order."""
    return bool((rows.flatten() == torch.arange(rows.numel(), device=rows.device)).all())


def _gathered(rows_of: Tensor, rows: Tensor) -> Tensor:
    """``[..., R, n]`` by examples, heads and positions ``[B, H, T, n]``."""
    flat = rows_of.detach().reshape(-1, rows_of.shape[-1])
    return flat.view(*rows.shape, -1) if in_order(rows) else flat[rows]


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
    *lead, heads, rows, _ = query.shape
    groups, length = key.shape[-3:-1]
    grouped = (query * scale).reshape(*lead, groups, -1, query.shape[-1])
    scores = (grouped @ key.transpose(-1, -2)).view(*lead, heads, rows, length)
    if mask is None:
        return torch.softmax(scores, -1)
    is_open = mask if mask.dtype == torch.bool else mask > -math.inf
    # A row without any allowed position has no weights; softmax would give NaN.
    attends = is_open.any(-1, keepdim=True)
    if mask.dtype == torch.bool:
        mask = scores.new_zeros(mask.shape).masked_fill_(~mask, -math.inf)
    scores += mask.masked_fill(~attends, 0.0)
    return torch.softmax(scores, -1).mul_(attends)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
