"""The attention weights that an attention module uses, taken beside its own computation.

Most attention implementations never return their weights (SDPA does not even hold them). Here the
module computes as it always does, and PyTorch's function mode, which is local to the thread and
leaves no trace, sees the one call that makes or implies the weights: a softmax, or SDPA, whose
weights are computed from the same arguments for the rows that are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know
from torch.overrides import TorchFunctionMode

from captum_lrpx.rules.kernels import attention_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = [
    "AttentionWeights",
    "MaterializedWeights",
    "ScoredWeights",
    "WeightCapture",
    "attention_of",
    "in_order",
]

_SDPA = F.scaled_dot_product_attention
_SOFTMAX = frozenset({F.softmax, torch.softmax, torch.Tensor.softmax})


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


class WeightCapture(TorchFunctionMode):
    """Inside this context, softmax and SDPA calls of the thread leave their weights in ``found``.

    Attributes:
        found: The weights of each call that has the shape of a self-attention's.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.found: list[AttentionWeights] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _SDPA:
            self.found.append(self._scored(*args, **(kwargs or {})))
        elif func in _SOFTMAX:
            weights = result.detach()
            tokens = weights.shape[-1]
            if weights.ndim > 2 and weights.shape[-2] == tokens:
                self.found.append(
                    MaterializedWeights(weights.reshape(-1, self.heads, tokens, tokens))
                )
        return result

    def _scored(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,  # noqa: ARG002 - SDPA's signature
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: ARG002
    ) -> ScoredWeights:
        tokens, size = key.shape[-2:]
        if query.shape[-2] != tokens:
            # transformers packs the query heads of a group into rows where there is one token.
            query = query.reshape(query.shape[0], -1, tokens, size)
            attn_mask = attn_mask if attn_mask is None else _unpack(attn_mask, tokens)
        if attn_mask is not None:
            attn_mask = attn_mask.detach()[(None,) * (4 - attn_mask.ndim)]
        factor = size**-0.5 if scale is None else scale
        return ScoredWeights(query.detach(), key.detach(), attn_mask, is_causal, factor)


def _unpack(mask: Tensor, tokens: int) -> Tensor:
    return mask if mask.shape[-3] == 1 else mask.reshape(mask.shape[0], -1, tokens, tokens)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
