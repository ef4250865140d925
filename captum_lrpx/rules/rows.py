"""Some positions of a batch only: what stands behind the last attention is read nowhere else.

The patches here make modules compute at chosen positions ``[B, P]`` what they would compute at all
``T``. What they return has the usual shape, with zeros elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from captum_lrpx.rules.own_backward import OwnBackward

if TYPE_CHECKING:
    from collections.abc import Callable

    from captum_lrpx.rules.patches import Forward

__all__ = ["AttentionRowsPatch", "Rows", "RowsPatch"]


@dataclass(frozen=True, eq=False)
class Rows:
    """The positions of each example that are read.

    Attributes:
        positions: ``[B, P]``, not negative; the same one may occur several times.
        length: Number ``T`` of all positions.
    """

    positions: Tensor
    length: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(B, T)``."""
        return self.positions.shape[0], self.length

    def take(self, x: Tensor, dim: int = 1) -> Tensor:
        """The rows of ``x``, ``T`` along a dimension, that are read: ``P`` along it."""
        return x.gather(dim, self._index(x, dim))

    def put(self, y: Tensor, dim: int = 1) -> Tensor:
        """The inverse of :meth:`take`, with zeros at all other positions."""
        shape = list(y.shape)
        shape[dim] = self.length
        if y.requires_grad and torch.is_grad_enabled():
            y = self._once(y, dim)
        return y.new_zeros(shape).scatter_(dim, self._index(y, dim), y)

    def mask(self, mask: Tensor | None, *, causal: bool) -> Tensor | None:
        """The rows of an attention mask that are read.

        Args:
            mask: ``[B or 1, H or 1, T or 1, T]`` or None.
            causal: Whether the attention is causal without a mask.

        Returns:
            ``[B or 1, H or 1, P or 1, T]`` or None.
        """
        if mask is None:
            if not causal:
                return None
            keys = torch.arange(self.length, device=self.positions.device)
            return (keys <= self.positions.unsqueeze(-1)).unsqueeze(1)
        if mask.shape[2] == 1:
            return mask
        return self.take(mask.expand(self.positions.shape[0], -1, -1, -1), 2)

    def _index(self, x: Tensor, dim: int) -> Tensor:
        """The positions as an index for ``gather`` along a dimension of ``x``."""
        shape = [self.positions.shape[0], *([1] * (x.ndim - 1))]
        shape[dim] = self.positions.shape[1]
        sizes = [-1 if axis in (0, dim) else size for axis, size in enumerate(x.shape)]
        return self.positions.to(x.device).view(shape).expand(sizes)

    def _once(self, y: Tensor, dim: int) -> Tensor:
        """Let a gradient at a position go to one of the rows that stand for it, not to each."""
        positions = self.positions
        if positions.shape[1] == 1:
            return y
        earlier = (positions.unsqueeze(2) == positions.unsqueeze(1)).tril(-1).any(-1)  # [B, P]
        if not bool(earlier.any()):
            return y
        shape = [1] * y.ndim
        shape[0], shape[dim] = earlier.shape
        once: Tensor = _Once.apply(y, earlier.to(y.device).view(shape))
        return once


class _Once(OwnBackward):
    """A tensor, part of which has no gradient."""

    @staticmethod
    def forward(y: Tensor, _earlier: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (earlier,) = ctx.saved_tensors
        return grads[0].masked_fill(earlier, 0.0), None


@dataclass(frozen=True, eq=False)
class RowsPatch:
    """A module that works on each position alone computes at some positions only."""

    rows: Rows

    def __call__(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the module on the rows that are read."""
        if not any(map(self._concerns, (*args, *kwargs.values()))):
            return forward(*args, **kwargs)
        args = tuple(map(self._taken, args))
        kwargs = {name: self._taken(value) for name, value in kwargs.items()}
        return self.rows.put(forward(*args, **kwargs))

    def _concerns(self, value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and value.ndim > 2
            and tuple(value.shape[:2]) == self.rows.shape
        )

    def _taken(self, value: Any) -> Any:
        return self.rows.take(value) if self._concerns(value) else value


@dataclass(frozen=True, eq=False)
class AttentionRowsPatch:
    """An attention whose kernel is PyTorch's SDPA asks for some positions only."""

    rows: Rows

    def __call__(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the attention."""
        with _RowsMode(self.rows):
            return forward(*args, **kwargs)


class _RowsMode(TorchFunctionMode):
    """Inside this context, PyTorch's SDPA computes some query positions only."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Narrow the queries of SDPA; everything else runs as it is."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _sdpa_of_rows(self.rows, *args, **kwargs)
        return func(*args, **kwargs)


def _sdpa_of_rows(
    rows: Rows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **keywords: Any,
) -> Tensor:
    batch, length = rows.shape
    square = query.ndim == 4 and query.shape[0] == batch and query.shape[2] == length
    known = attn_mask is None or (attn_mask.ndim == 4 and not is_causal)
    if not (square and known and key.shape[2] == length):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, **keywords
        )
    mask = rows.mask(attn_mask, causal=is_causal)
    output = F.scaled_dot_product_attention(
        rows.take(query, 2), key, value, mask, dropout_p, **keywords
    )
    return rows.put(output, 2)
