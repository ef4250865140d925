"""Linear layers with a backward pass of their own: what is zero or constant costs nothing.

The gradient at logits ``[B, T, V]`` is zero but for the explained positions, and mostly but for the
explained tokens; behind the last attention it is zero at all other positions. An ordinary backward
pass multiplies all of it with the weights, which costs as much as a good part of the model. A
projection whose gradient a rule scales needs no pass over that gradient: the matrix product takes
the factor. Features with the factor 0 (queries and keys that are constant) need no product at all.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from captum_lrpx.rules.own_backward import OwnBackward

__all__ = [
    "PLAIN_LINEAR",
    "Part",
    "is_linear_class",
    "is_plain_linear",
    "is_transformed",
    "product_of_sparse",
    "row_sparse_linear",
    "scaled_linear",
]

PLAIN_LINEAR: Final = frozenset({"Linear", "NonDynamicallyQuantizableLinear", "Conv1D"})
"""Classes that are exactly ``x W^T + b``: not adapters or quantized layers derived from them."""

_SPARSE_BELOW: Final = 0.25
"""Share of rows or columns up to which picking them is worth it."""

_SPARSE_RUN_BELOW: Final = 0.5
"""The same for columns side by side, which need no copy of the weights."""


class Part(NamedTuple):
    """Output features of a linear layer whose gradient is multiplied by one factor.

    Attributes:
        start: First feature.
        stop: Behind the last one.
        factor: What the gradient is multiplied by.
    """

    start: int
    stop: int
    factor: float


def is_linear_class(module: torch.nn.Module) -> bool:
    """Whether a layer is exactly ``x W^T + b``, by its class and the class of its weight."""
    if not _is_linear(type(module)):  # type: ignore[arg-type] # mypy takes it for unhashable
        return False
    # A quantized weight is a tensor of a class of its own, also as a parameter; while a compiler
    # looks on, one of PyTorch's stands for an ordinary tensor.
    weight = type(module.weight)
    return weight is torch.nn.Parameter or weight.__module__.startswith("torch._subclasses.")


@cache
def _is_linear(kind: type[torch.nn.Module]) -> bool:
    # Adapters and quantized layers are called Linear as well, but are classes of their own.
    known = kind.__module__.startswith(("torch.nn.modules.", "transformers."))
    return known and kind.__name__ in PLAIN_LINEAR


def is_plain_linear(module: torch.nn.Module) -> bool:
    """Whether a layer is exactly ``x W^T + b``, with parameters that need no gradient now."""
    return is_linear_class(module) and not any(
        parameter is not None and parameter.requires_grad
        for parameter in module._parameters.values()  # noqa: SLF001 - parameters() is slow
    )


def row_sparse_linear(x: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The value of a linear layer, with a backward pass that skips zeros of the gradient.

    Args:
        x: Input ``[..., I]``.
        value: Output ``[..., O]``; no gradient flows into it.
        weight: ``[O, I]``.

    Returns:
        A tensor equal to ``value``.
    """
    output: Tensor = _RowSparseLinear.apply(x, value, weight)
    return output


def scaled_linear(x: Tensor, value: Tensor, weight: Tensor, parts: tuple[Part, ...]) -> Tensor:
    """The value of a linear layer, with the gradient of each part of its features scaled.

    Args:
        x: Input ``[..., I]``.
        value: Output ``[..., O]``; no gradient flows into it.
        weight: ``[O, I]``.
        parts: Features that have a gradient, with its factor; at least one.

    Returns:
        A tensor equal to ``value``.
    """
    output: Tensor = _ScaledLinear.apply(x, value, weight, parts)
    return output


class _RowSparseLinear(OwnBackward):
    """The value of a linear layer with the gradient ``grad @ weight``."""

    @staticmethod
    def forward(_x: Tensor, value: Tensor, _weight: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return product_of_sparse(grads[0], weight), None, None


class _ScaledLinear(OwnBackward):
    """The value of a linear layer with the gradient ``sum over parts: factor * grad @ weight``."""

    @staticmethod
    def forward(_x: Tensor, value: Tensor, _weight: Tensor, _parts: tuple[Part, ...]) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.parts = inputs[3]
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        grad = grads[0].to(weight.dtype)  # under autocast it may be of a lower precision
        flat = grad.reshape(-1, weight.shape[0])
        result = flat.new_zeros(1)
        for index, (start, stop, factor) in enumerate(ctx.parts):
            whole = stop - start == weight.shape[0]
            part, rows = (flat, weight) if whole else (flat[:, start:stop], weight[start:stop])
            # The factor goes into the product: no pass over the gradient, no copy of it.
            result = torch.addmm(result, part, rows, beta=int(index > 0), alpha=factor)
        return result.view(*grad.shape[:-1], -1), None, None, None


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a transform of ``torch.func``, which may hide a batch."""
    functorch = torch._C._functorch  # noqa: SLF001 - no public names
    # The second is what is_grads_batched makes.
    return bool(
        functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)
    )


def product_of_sparse(grad: Tensor, weight: Tensor) -> Tensor:
    """``grad @ weight`` for a gradient that may be zero in most rows, and in most columns.

    Args:
        grad: ``[..., O]``, of the precision of the weights or, under autocast, of a lower one.
        weight: ``[O, I]``.

    Returns:
        ``[..., I]``.
    """
    if is_transformed(grad):  # which zeros there are is a question that vmap cannot ask
        return grad.to(weight.dtype) @ weight
    flat = grad.flatten(0, -2)
    rows = _not_zero(flat, -1)
    if rows.numel() > _SPARSE_BELOW * flat.shape[0] and rows.numel() > 1:
        return _product_of_columns(flat.to(weight.dtype), weight).view(*grad.shape[:-1], -1)
    product = _product_of_columns(flat[rows].to(weight.dtype), weight)
    result = product.new_zeros(flat.shape[0], weight.shape[1])
    result[rows] = product
    return result.view(*grad.shape[:-1], -1)


def _product_of_columns(grad: Tensor, weight: Tensor) -> Tensor:
    """``[N, O] @ [O, I]`` for a gradient that may be zero in most columns."""
    if not grad.shape[0]:  # nothing is explained; no maximum over no rows
        return grad @ weight
    columns = _not_zero(grad, 0)
    if 0 < columns.numel() < _SPARSE_RUN_BELOW * grad.shape[1]:
        first, last = int(columns[0]), int(columns[-1]) + 1
        if last - first == columns.numel():  # as of the values in a fused projection: no copy
            return grad[:, first:last] @ weight[first:last]
    if columns.numel() < _SPARSE_BELOW * grad.shape[1]:
        return grad[:, columns] @ weight[columns]
    return grad @ weight


def _not_zero(grad: Tensor, dim: int) -> Tensor:
    """Indices of the rows or columns, reduced over ``dim``, that are not zero everywhere."""
    # No temporary of the size of the gradient, and several times faster than a norm; NaN is not 0.
    found = (grad.amax(dim) != 0) | (grad.amin(dim) != 0)
    return found.nonzero().squeeze(1)
