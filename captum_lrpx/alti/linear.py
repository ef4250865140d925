"""Linear layers: the matrix and the bias that they apply, adapters and quantization included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from captum_lrpx.rules.patches import weight_and_bias
from captum_lrpx.rules.sparse import PLAIN_LINEAR

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["constant_part", "is_plain", "linear_map"]


def is_plain(module: nn.Module) -> bool:
    """Whether a layer is nothing but its weight and bias: no adapter, no quantization."""
    return type(module).__name__ in PLAIN_LINEAR


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
