r"""Secant slopes ``g(z) / z`` of activation functions, exact at and around ``z = 0``.

A division ``g(z) / z`` is fragile near zero, above all in half precision, and undefined at zero.
For the usual activations the ratio has a closed form without a division. Everywhere else the
quotient is used, with its limit ``g'(0)`` at zero where ``g(0) = 0``, and 0 where ``g(0)`` is not 0
(no slope at zero can carry that value). A stabilizer ``z + 1e-10`` is never used: it ignores the
sign of ``z``, is wrong around zero, and vanishes in half precision.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_TANH_GELU_CUBIC: Final = 0.044715
_TINY: Final = 1e-150  # higher-order terms of a function vanish
_BLOOM_GELU_SCALE: Final = 0.79788456  # sqrt(2 / pi) as BLOOM rounds it


def gelu(z: Tensor) -> Tensor:
    """Secant slope of GELU, by erfc: ``1 + erf(z / sqrt(2))`` would cancel for very negative z."""
    return 0.5 * torch.erfc(z * -math.sqrt(0.5))


def tanh_gelu(z: Tensor) -> Tensor:
    """Secant slope of GELU's tanh approximation: ``0.5 (1 + tanh(u)) = sigmoid(2 u)``."""
    return torch.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (z + _TANH_GELU_CUBIC * z.pow(3)))


def bloom_gelu(z: Tensor) -> Tensor:
    """Secant slope of BLOOM's GELU."""
    return torch.sigmoid(2.0 * _BLOOM_GELU_SCALE * (z + _TANH_GELU_CUBIC * z.pow(3)))


def tanh(z: Tensor) -> Tensor:
    """Secant slope of tanh."""
    return torch.where(z == 0, 1.0, torch.tanh(z) / torch.where(z == 0, 1.0, z))


def limit_at_zero(function: Callable[[Tensor], Tensor]) -> float:
    """Limit of ``g(z) / z`` at zero from above: ``g'(0)`` where ``g(0) = 0``, else 0.

    Args:
        function: ``g``, element-wise, with a small relative error around zero.
    """
    # Without autograd, which is unavailable in a backward pass under torch.func.vmap.
    z = torch.tensor([0.0, _TINY], dtype=torch.float64, device="cpu")
    of_zero, of_tiny = function(z).tolist()
    return of_tiny / _TINY if of_zero == 0 else 0.0


def ratio(z: Tensor, value: Tensor, limit: float | Tensor) -> Tensor:
    """``g(z) / z``, with a known limit at zero.

    In float32 and float64 it is as exact as ``value``, and several times faster than a closed
    form with its transcendental functions. In half precision the quotient of two small rounded
    numbers is inexact: use the closed form there.

    Args:
        z: Pre-activation.
        value: ``g(z)``, of the same shape; overwritten.
        limit: The limit at 0: a number, or one per element.

    Returns:
        The slope, of the shape of ``z``.
    """
    # 0 / 0 is the only NaN, and infinity is g(0) / 0: no slope at zero carries that value.
    slope = value.div_(z)
    if isinstance(limit, torch.Tensor):
        return torch.where(z == 0, limit, slope)
    return slope.nan_to_num_(nan=limit, posinf=0.0, neginf=0.0)
