"""Linear layers: the matrix and the bias that they apply, adapters and quantization included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx.rules.linear_patches import weight_and_bias
from captum_lrpx.rules.sparse import is_linear_class

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["constant_part", "is_plain", "linear_map"]


def is_plain(module: nn.Module) -> bool:
    """Whether a layer is nothing but its weight and bias: no adapter, nothing quantized or away."""
    return is_linear_class(module) and not any(p.is_meta for p in module.parameters())


def linear_map(module: nn.Module) -> Tensor:
    """The matrix ``[out, in]`` that a linear layer applies, adapters and quantization included."""
    if is_plain(module):
        return weight_and_bias(module, type(module).__name__)[0]
    unit = torch.eye(_input_size(module), device="cpu")
    return (_response(module, unit) - _response(module, torch.zeros_like(unit[:1]))).t()


def constant_part(module: nn.Module) -> Tensor | None:
    """The bias ``[out]`` of a linear layer, adapters and quantization included."""
    if is_plain(module):
        return weight_and_bias(module, type(module).__name__)[1]
    zero = torch.zeros(1, _input_size(module), device="cpu")
    constant = _response(module, zero)[0]
    return constant if constant.any() else None


def _response(module: nn.Module, x: Tensor) -> Tensor:
    parameter = next((p for p in module.parameters() if p.is_floating_point()), x)
    # What is offloaded is fetched, and the input put beside it, by the module's own hook.
    x = x.to(parameter.dtype) if parameter.is_meta else x.to(parameter)
    with torch.no_grad():
        output: Tensor = module(x)
    return output


def _input_size(module: nn.Module) -> int:
    size: Any = getattr(module, "in_features", None)  # of transformers' Conv1D only the weight says
    return int(module.get_parameter("weight").shape[0] if size is None else size)
