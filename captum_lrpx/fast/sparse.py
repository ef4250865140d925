"""Products that leave out what is zero.

The gradient at logits ``[B, T, V]`` is zero but for the explained positions, and mostly but for the
explained tokens; after the last attention it is zero at all other positions. A fused projection
whose queries and keys are constant gets one in the features of its values alone, and one of a
branch and its gate in those of the branch.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from captum_lrpx.fast.least import Least

__all__ = ["is_worth_a_look", "product_of_sparse"]

_WORTH_A_LOOK: Final = Least(1 << 13, 1 << 22)
"""Numbers in a gradient below which a look at them takes longer than the product."""

_SPARSE_BELOW: Final = 0.25
"""Share of rows or columns up to which picking them is worth it."""

_SPARSE_RUN_UP_TO: Final = 0.5
"""The same for columns side by side, as those of the values or of one branch of a fused layer."""


def is_worth_a_look(grad: Tensor) -> bool:
    """Whether a gradient is large enough for its zeros to matter."""
    return grad.numel() >= _WORTH_A_LOOK.of(grad.device.type)


def product_of_sparse(grad: Tensor, weight: Tensor, ends: Tensor | None = None) -> Tensor:
    """``grad @ weight`` for a gradient that may be zero in most rows, and in most columns.

    Args:
        grad: ``[..., O]``, of the precision of the weights or, under autocast, of a lower one.
        weight: ``[O, I]``, or ``[E, O, I]`` for as many groups of rows.
        ends: Where each group of rows ends, ``[E]``; None if there is one.

    Returns:
        ``[..., I]``.
    """
    if _is_transformed(grad):  # which zeros there are is a question that vmap cannot ask
        return _product(grad.to(weight.dtype), weight, ends)
    flat = grad.flatten(0, -2)
    rows = _not_zero(flat, -1)
    if rows.numel() > _SPARSE_BELOW * flat.shape[0] and rows.numel() > 1:
        return _product_of_columns(flat.to(weight.dtype), weight, ends).view(*grad.shape[:-1], -1)
    if ends is not None:
        ends = torch.searchsorted(rows, ends.to(rows.dtype), out_int32=True)
    product = _product_of_columns(flat[rows].to(weight.dtype), weight, ends)
    result = product.new_zeros(flat.shape[0], weight.shape[-1])
    result[rows] = product
    return result.view(*grad.shape[:-1], -1)


def _product_of_columns(grad: Tensor, weight: Tensor, ends: Tensor | None) -> Tensor:
    """``[N, O] @ [O, I]`` for a gradient that may be zero in most columns."""
    if not grad.shape[0]:  # nothing is explained; no maximum over no rows
        return _product(grad, weight, ends)
    columns = _not_zero(grad, 0)
    if columns.numel():
        first, last = int(columns[0]), int(columns[-1]) + 1
        if ends is not None:  # kernels of groups want rows that begin at multiples of 16 bytes
            step = 16 // weight.element_size()
            first, last = first // step * step, -(-last // step) * step
        if last - first <= _SPARSE_RUN_UP_TO * grad.shape[1]:  # no copy of the weights
            return _product(grad[:, first:last], weight[..., first:last, :], ends)
    if columns.numel() < _SPARSE_BELOW * grad.shape[1] and ends is None:
        return grad[:, columns] @ weight[columns]
    return _product(grad, weight, ends)


def _product(grad: Tensor, weight: Tensor, ends: Tensor | None) -> Tensor:
    if ends is None:
        return grad @ weight
    found: Tensor = torch.ops.aten._grouped_mm(grad, weight, ends)  # noqa: SLF001 - its only name
    return found


def _not_zero(grad: Tensor, dim: int) -> Tensor:
    """Indices of the rows or columns, reduced over ``dim``, that are not zero everywhere."""
    # No temporary of the size of the gradient, and several times faster than a norm; NaN is not 0.
    found = (grad.amax(dim) != 0) | (grad.amin(dim) != 0)
    return found.nonzero().squeeze(1)


def _is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a transform of ``torch.func``, which may hide a batch."""
    functorch = torch._C._functorch  # noqa: SLF001 - no public names
    # The second is what is_grads_batched makes.
    return bool(
        functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)
    )
