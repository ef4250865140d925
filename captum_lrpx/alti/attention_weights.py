"""Attention weights of a model, read from the autograd graph of its pass.

Most attention implementations never return their weights, and SDPA never holds them. The node
of a matrix product has saved them; for a kernel they are computed, for the rows needed, from the
queries and keys that its node has saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from captum_lrpx.parallel import Split


@dataclass(frozen=True, eq=False)
class MaterializedWeights:
    """Weights that the module computed as a tensor.

    Attributes:
        weights: ``[B, H, T, T]``.
    """

    weights: Tensor

    @property
    def form(self) -> tuple[object, ...]:
        """Key, equal for weights that :func:`stacked` joins."""
        return (self.weights.shape,)

    def of(self, example: int | slice, rows: slice | Tensor) -> Tensor:
        """Weights of some query rows of one example, or of several.

        Args:
            example: Index of the example, or a slice.
            rows: A slice of positions, or their indices ``[R]``.

        Returns:
            ``[H, R, T]``, or for a slice ``[B, H, R, T]``, in float32 or wider; rows that attend to
            nothing are 0.
        """
        return wide(self.weights[example][..., rows, :])

    def joined(self, split: Split) -> MaterializedWeights:
        """The weights with the heads of all processes."""
        return MaterializedWeights(split.joined(self.weights, 1))


@dataclass(frozen=True, eq=False)
class ScoredWeights:
    """Weights computed from the arguments of SDPA.

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

    @property
    def form(self) -> tuple[object, ...]:
        """Key, equal for weights that :func:`stacked` joins."""
        mask = None if self.mask is None else (self.mask.shape, self.mask.dtype)
        return self.query.shape, self.key.shape, mask, self.causal, self.scale

    def of(self, example: int | slice, rows: slice | Tensor) -> Tensor:
        """Weights of some query rows, as of :meth:`MaterializedWeights.of`."""
        query, key = wide(self.query[example][..., rows, :]), wide(self.key[example])
        return attention_weights(query, key, self._mask(example, rows), self.scale)

    def joined(self, split: Split) -> ScoredWeights:
        """The weights with the heads of all processes."""
        by_head = self.mask is not None and self.mask.shape[1] > 1
        return replace(
            self,
            query=split.joined(self.query, 1),
            key=split.joined(self.key, 1),
            mask=split.joined(self.mask, 1) if by_head and self.mask is not None else self.mask,
        )

    def _mask(self, example: int | slice, rows: slice | Tensor) -> Tensor | None:
        if self.mask is not None:
            mask = self.mask[example if self.mask.shape[0] > 1 else 0]
            return mask[..., rows, :] if mask.shape[-2] > 1 else mask
        if not self.causal:
            return None
        position = torch.arange(self.key.shape[-2], device=self.key.device)
        return (position[rows].unsqueeze(1) >= position).unsqueeze(0)


AttentionWeights = MaterializedWeights | ScoredWeights
"""Attention weights of one module for a batch, ``[B, H, T, T]``."""


def stacked(weights: Sequence[AttentionWeights]) -> AttentionWeights:
    """Weights of several attentions of the same form, as if of one with all of their examples."""
    first = weights[0]
    if len(weights) == 1:
        return first
    names = ("weights",) if isinstance(first, MaterializedWeights) else ("query", "key", "mask")
    batch = len(getattr(first, names[0]))
    joined: dict[str, Any] = {
        name: torch.cat([getattr(each, name).expand(batch, -1, -1, -1) for each in weights])
        for name in names
        if getattr(first, name) is not None
    }
    return replace(first, **joined)


class Mixed(NamedTuple):
    """Weights and values that a node multiplied.

    Attributes:
        weights: The weights.
        values: ``[B, G, S, z]``; each of the ``G`` serves ``H / G`` heads.
        places: Index of each among the node's matrices of values ``[B, G]``.
    """

    weights: AttentionWeights
    values: Tensor
    places: Tensor


class Order:
    """Places of heads and positions among the rows of a node that mixes tokens.

    It is the same in all passes of the same lengths, so derived places are cached.

    Args:
        rows: Row of each example, head and position ``[B, H, T]``.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.plain = _counts_up(rows)
        self._places: dict[tuple[int, int], tuple[Tensor, bool]] = {}

    @property
    def lengths(self) -> tuple[int, int]:
        """Examples and positions."""
        return self.rows.shape[0], self.rows.shape[2]

    def of_rows(self, tensor: Tensor) -> Tensor:
        """Reorder ``[..., R, n]`` by examples, heads and positions ``[B, H, T, n]``."""
        flat = tensor.detach().reshape(-1, tensor.shape[-1])
        return flat.view(*self.rows.shape, -1) if self.plain else flat[self.rows]

    def of_matrices(self, tensor: Tensor, queries: int) -> tuple[Tensor, Tensor]:
        """Reorder keys or values ``[..., S, z]`` by example and group of heads; also their places.

        Args:
            tensor: The keys or values.
            queries: Number of rows of each matrix of queries.

        Raises:
            ValueError: If the keys or values of a head are not one matrix.
        """
        flat = tensor.detach().reshape(-1, *tensor.shape[-2:])
        key = queries, len(flat)
        if key not in self._places:
            places = _places(self.rows, *key)
            self._places[key] = places, _counts_up(places)
        places, plain = self._places[key]
        return (flat.view(*places.shape, *flat.shape[1:]) if plain else flat[places]), places


def _counts_up(numbers: Tensor) -> bool:
    return bool((numbers.flatten() == torch.arange(numbers.numel(), device=numbers.device)).all())


def _places(rows: Tensor, queries: int, count: int) -> Tensor:
    """Indices of the keys or values, among ``count`` matrices, that each group reads ``[B, G]``."""
    shared, left = divmod(rows.numel() // queries, count)
    if left or not shared:
        raise ValueError("mixes something else than the tokens that are explained")
    of_rows = rows // queries // shared
    places = of_rows[..., 0]
    if (of_rows != places.unsqueeze(-1)).any():
        raise ValueError("reads different values at different positions of a head")
    batch, heads = places.shape
    groups = count // batch
    if groups and heads % groups == 0:
        by_group = places.view(batch, groups, -1)
        if (by_group == by_group[..., :1]).all():
            return by_group[..., 0]
    return places


def attention_of(node: Any, name: str, order: Order) -> Mixed | None:
    """Weights and values that a node of a graph multiplied.

    Args:
        node: The node of a matrix product or of an attention kernel.
        name: Its operator.
        order: Order of its heads and positions.

    Returns:
        The weights and values; None if the node does not show them.

    Raises:
        ValueError: If the values of a head are not one matrix; the message describes the node.
    """
    if name in ("Bmm", "Mm"):
        by_row, values = node._saved_self, node._saved_mat2  # noqa: SLF001 - no public names
        weights: AttentionWeights = MaterializedWeights(order.of_rows(by_row))
        return Mixed(weights, *order.of_matrices(values, by_row.shape[-2]))
    if not all(hasattr(node, f"_saved_{each}") for each in ("query", "key", "value")):
        return None
    query, key, values = node._saved_query, node._saved_key, node._saved_value  # noqa: SLF001
    queries, length = query.shape[-2], key.shape[-2]
    rows = order.rows
    ordered = query.shape[:-1] == rows.shape and order.plain
    mask = getattr(node, "_saved_attn_mask", getattr(node, "_saved_attn_bias", None))
    causal = bool(getattr(node, "_saved_is_causal", False))
    if mask is not None:
        mask = mask.detach()[(None,) * (4 - mask.ndim)]
        if not ordered:
            mask = order.of_rows(mask.expand(*query.shape[:-1], length))
    elif causal and not ordered:
        mask = (rows % queries).unsqueeze(-1) >= torch.arange(length, device=rows.device)
    scale = getattr(node, "_saved_scale", None)
    scored = ScoredWeights(
        order.of_rows(query),
        order.of_matrices(key, queries)[0],
        mask,
        causal,
        query.shape[-1] ** -0.5 if scale is None else scale,
    )
    return Mixed(scored, *order.of_matrices(values, queries))


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
    # A row without any allowed position gets no weights; softmax would give NaN.
    attends = is_open.any(-1, keepdim=True)
    if mask.dtype == torch.bool:
        mask = scores.new_zeros(mask.shape).masked_fill_(~mask, -math.inf)
    scores += mask.masked_fill(~attends, 0.0)
    return torch.softmax(scores, -1).mul_(attends)


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
