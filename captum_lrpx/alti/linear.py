"""Linear layers: what they compute, and a backward pass where few positions are explained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.rules.linear import weight_and_bias

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["constant_part", "is_plain", "linear_map", "product_of_sparse", "row_sparse_linear"]

_PLAIN: Final = frozenset({"Linear", "NonDynamicallyQuantizableLinear", "Conv1D"})
"""Classes that are exactly ``x W^T + b``: not adapters or quantized layers derived from them."""

_SPARSE_BELOW: Final = 0.25


def is_plain(module: nn.Module) -> bool:
    """Whether a layer is nothing but its weight and bias: no adapter, no quantization."""
    return type(module).__name__ in _PLAIN


def linear_map(module: nn.Module) -> Tensor:
    """The matrix ``[out, in]`` that a linear layer applies, adapters and quantization included."""
    if is_plain(module):
        return weight_and_bias(module, type(module).__name__)[0]
    unit = torch.eye(_input_size(module))
    return (_response(module, unit) - _response(module, torch.zeros_like(unit[:1]))).t()


def constant_part(module: nn.Module) -> Tensor | None:
    """The bias ``[out]`` of a linear layer, adapters and quantization included."""
    if is_plain(module):
        return weight_and_bias(module, type(module).__name__)[1]
    zero = torch.zeros(1, _input_size(module))
    constant = _response(module, zero)[0]
    return constant if constant.any() else None


def _response(module: nn.Module, x: Tensor) -> Tensor:
    parameter = next(p for p in module.parameters() if p.is_floating_point())
    with torch.no_grad():
        output: Tensor = module(x.to(parameter))
    return output


def _input_size(module: nn.Module) -> int:
    return int(getattr(module, "in_features"))  # noqa: B009 - typed as Tensor | Module otherwise


def row_sparse_linear(module: nn.Module, x: Tensor, value: Tensor) -> Tensor:
    """Return the value of a linear layer, with a backward pass that skips zeros of the gradient.

    The gradient at logits ``[B, T, V]`` is zero but for the explained positions, and mostly but for
    the explained tokens. An ordinary backward pass multiplies all of it with the weights
    ``[V, D]``, which costs as much as a good part of the model.

    Args:
        module: The layer.
        x: Its input ``[..., I]``.
        value: Its output ``[..., O]``; no gradient flows into it.

    Returns:
        A tensor equal to ``value``.
    """
    weight, _ = weight_and_bias(module, type(module).__name__)
    output: Tensor = _RowSparseLinear.apply(x, value, weight)  # type: ignore[no-untyped-call]
    return output


class _RowSparseLinear(torch.autograd.Function):
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


def product_of_sparse(grad: Tensor, weight: Tensor) -> Tensor:
    """``grad @ weight`` for a gradient that is zero in most rows, and mostly in most columns.

    Args:
        grad: ``[..., O]``.
        weight: ``[O, I]``.

    Returns:
        ``[..., I]``.
    """
    flat = grad.flatten(0, -2)
    # The largest magnitude needs no temporary of the size of the logits; NaN is not equal to 0.
    rows = (torch.linalg.vector_norm(flat, float("inf"), -1) != 0).nonzero().squeeze(1)
    chosen = flat[rows]
    columns = (chosen != 0).any(0).nonzero().squeeze(1)
    if columns.numel() < _SPARSE_BELOW * flat.shape[1]:
        product = chosen[:, columns] @ weight[columns]
    else:
        product = chosen @ weight
    result = flat.new_zeros(flat.shape[0], weight.shape[1])
    result[rows] = product
    return result.view(*grad.shape[:-1], -1)
