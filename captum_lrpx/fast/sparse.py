"""Matrix products that skip zeros of a gradient.

The gradient at logits ``[B, T, V]`` is zero except at explained positions, and mostly zero except
at explained tokens; after the last attention it is zero at all other positions. A fused projection
with constant queries and keys gets a gradient in the features of its values alone, and a fused
branch and gate in the features of the branch.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from captum_lrpx.fast.least import Least

_WORTH_A_LOOK: Final = Least(1 << 13, 1 << 22)
"""Size of a gradient below which the search for zeros takes longer than the product."""

_SPARSE_BELOW: Final = 0.25
"""Share of rows or columns up to which selecting them is worth it."""

_SPARSE_RUN_UP_TO: Final = 0.5
"""The same for contiguous columns, such as the values or one branch of a fused layer."""


def is_worth_a_look(grad: Tensor) -> bool:
    """Whether a gradient is large enough for its zeros to matter."""
    return grad.numel() >= _WORTH_A_LOOK.of(grad.device.type)


def product_of_sparse(grad: Tensor, weight: Tensor, ends: Tensor | None = None) -> Tensor:
    """``grad @ weight`` for a gradient that may be zero in most rows or columns.

    Args:
        grad: ``[..., O]``, in the precision of the weights or, under autocast, in a lower one.
        weight: ``[O, I]``, or ``[E, O, I]`` for ``E`` groups of rows.
        ends: End of each group of rows, ``[E]``; None if there are no groups.

    Returns:
        ``[..., I]``.
    """
    if _is_transformed(grad):  # vmap allows no decisions that depend on values
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
    if not grad.shape[0]:  # no rows: there is no maximum over them
        return _product(grad, weight, ends)
    columns = _not_zero(grad, 0)
    if columns.numel():
        first, last = int(columns[0]), int(columns[-1]) + 1
        if ends is not None:  # grouped kernels require rows aligned to 16 bytes
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
    # Without a temporary as large as the gradient, and faster than a norm; NaN counts as not 0.
    found = (grad.amax(dim) != 0) | (grad.amin(dim) != 0)
    return found.nonzero().squeeze(1)


def _is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a transform of ``torch.func``, which may hide a batch."""
    functorch = torch._C._functorch  # noqa: SLF001 - no public names
    # The second kind comes from is_grads_batched.
    return bool(
        functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)
    )
