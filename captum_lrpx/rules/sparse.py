"""Backward through a linear layer whose output gradient is mostly zero.

The gradient at logits ``[B, T, V]`` is zero but for the explained positions, and mostly but for the
explained tokens. An ordinary backward pass multiplies all of it with the ``[V, D]`` weights, which
costs as much as a good part of the model. A fused projection whose queries and keys are constant is
the same with columns: only the part of the values has a gradient.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

__all__ = [
    "PLAIN_LINEAR",
    "feature_linear",
    "is_linear_class",
    "is_plain_linear",
    "row_sparse_linear",
]

PLAIN_LINEAR: Final = frozenset({"Linear", "NonDynamicallyQuantizableLinear", "Conv1D"})
"""Classes that are exactly ``x W^T + b``: not adapters or quantized layers derived from them."""

_SPARSE_BELOW: Final = 0.25


def is_linear_class(module: torch.nn.Module) -> bool:
    """Whether a layer is exactly ``x W^T + b``, by its class and the class of its weight."""
    kind = type(module)
    # Adapters and quantized layers are called Linear as well, but are classes of their own.
    known = kind.__module__.startswith(("torch.nn.modules.", "transformers."))
    weight = getattr(module, "weight", None)
    return (
        known
        and kind.__name__ in PLAIN_LINEAR
        and isinstance(weight, torch.nn.Parameter)
        and type(weight.data) is Tensor  # a quantized weight is a tensor of a class of its own
    )


def is_plain_linear(module: torch.nn.Module) -> bool:
    """Whether a layer is exactly ``x W^T + b``, with parameters that need no gradient now."""
    return is_linear_class(module) and not any(
        parameter.requires_grad for parameter in module.parameters(recurse=False)
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
    output: Tensor = _RowSparseLinear.apply(x, value, weight)  # type: ignore[no-untyped-call]
    return output


def feature_linear(x: Tensor, value: Tensor, weight: Tensor, start: int, stop: int) -> Tensor:
    """The value of a linear layer, with a gradient from the features ``start:stop`` alone.

    Args:
        x: Input ``[..., I]``.
        value: Output ``[..., O]``; no gradient flows into it.
        weight: ``[O, I]``.
        start: First feature that has a gradient.
        stop: Behind the last one.

    Returns:
        A tensor equal to ``value``.
    """
    part = weight[start:stop]
    output: Tensor = _FeatureLinear.apply(x, value, part, start)  # type: ignore[no-untyped-call]
    return output


class _RowSparseLinear(torch.autograd.Function):
    """The value of a linear layer with the gradient ``grad @ weight``."""

    generate_vmap_rule = True

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


class _FeatureLinear(torch.autograd.Function):
    """The value of a linear layer with the gradient of a part of its features."""

    generate_vmap_rule = True

    @staticmethod
    def forward(_x: Tensor, value: Tensor, _part: Tensor, _start: int) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, _, part, ctx.start = inputs
        ctx.save_for_backward(part)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (part,) = ctx.saved_tensors
        kept = grads[0].narrow(-1, ctx.start, part.shape[0]).to(part.dtype)
        return kept @ part, None, None, None


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a transform of ``torch.func``, which may hide a batch."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # noqa: SLF001 - no public name
    return bool(wrapped)


def product_of_sparse(grad: Tensor, weight: Tensor) -> Tensor:
    """``grad @ weight`` for a gradient that is zero in most rows, and mostly in most columns.

    Args:
        grad: ``[..., O]``, of the precision of the weights or, under autocast, of a lower one.
        weight: ``[O, I]``.

    Returns:
        ``[..., I]``.
    """
    if is_transformed(grad):  # which zeros there are is a question that vmap cannot ask
        return grad.to(weight.dtype) @ weight
    flat = grad.flatten(0, -2)
    # The largest magnitude needs no temporary of the size of the logits; NaN is not equal to 0.
    rows = (torch.linalg.vector_norm(flat, float("inf"), -1) != 0).nonzero().squeeze(1)
    chosen = flat[rows].to(weight.dtype)
    columns = (chosen != 0).any(0).nonzero().squeeze(1)
    if columns.numel() < _SPARSE_BELOW * flat.shape[1]:
        product = chosen[:, columns] @ weight[columns]
    else:
        product = chosen @ weight
    result = product.new_zeros(flat.shape[0], weight.shape[1])
    result[rows] = product
    return result.view(*grad.shape[:-1], -1)
