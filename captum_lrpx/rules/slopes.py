r"""Secant slopes ``g(z) / z`` of activation functions, exact at and around ``z = 0``.

A division ``g(z) / z`` is fragile near zero, above all in half precision, and undefined at zero.
For the usual activations the ratio has a closed form without a division. Everywhere else the ratio
is used with its limit ``g'(0)`` at zero where ``g(0) = 0``, and 0 where ``g(0)`` is not 0 (then no
slope at zero carries the value). There is never a ``z + 1e-10``: that is blind to the sign of
``z``, wrong around zero, and vanishes in half precision.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["at_zero", "closed_form", "is_known_activation", "limit_at_zero", "ratio", "secant"]

_TANH_GELU_CUBIC: Final = 0.044715
_QUICK_GELU_SCALE: Final = 1.702
_BLOOM_GELU_SCALE: Final = 0.79788456  # sqrt(2 / pi) as BLOOM rounds it


def _gelu(z: Tensor) -> Tensor:
    # Phi(z), by erfc: 1 + erf(z / sqrt(2)) would cancel for very negative z.
    return 0.5 * torch.erfc(z * -math.sqrt(0.5))


def _tanh_gelu(z: Tensor) -> Tensor:
    # 0.5 (1 + tanh(u)) = sigmoid(2 u)
    return torch.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (z + _TANH_GELU_CUBIC * z.pow(3)))


def _bloom_gelu(z: Tensor) -> Tensor:
    return torch.sigmoid(2.0 * _BLOOM_GELU_SCALE * (z + _TANH_GELU_CUBIC * z.pow(3)))


def _quick_gelu(z: Tensor) -> Tensor:
    return torch.sigmoid(_QUICK_GELU_SCALE * z)


def _relu(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


def _tanh(z: Tensor) -> Tensor:
    return torch.where(z == 0, 1.0, torch.tanh(z) / torch.where(z == 0, 1.0, z))


# The keys are class names (of torch.nn and of transformers.activations) and names of functions, so
# that neither library has to be imported to look one up.
_CLOSED_FORMS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "SiLU": torch.sigmoid,
    "SiLUActivation": torch.sigmoid,
    "silu": torch.sigmoid,
    "swish": torch.sigmoid,
    "GELUActivation": _gelu,
    "gelu": _gelu,
    "GELUTanh": _tanh_gelu,
    "PytorchGELUTanh": _tanh_gelu,
    "NewGELUActivation": _tanh_gelu,
    "AccurateGELUActivation": _tanh_gelu,
    "FastGELUActivation": _tanh_gelu,
    "BloomGelu": _bloom_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "QuickGELUActivation": _quick_gelu,
    "quick_gelu": _quick_gelu,
    "ReLU": _relu,
    "relu": _relu,
    "ReLUSquaredActivation": torch.relu,
    "relu2": torch.relu,
    "Tanh": _tanh,
    "tanh": _tanh,
}

# Element-wise activations without a closed form here; the ratio is used for them.
_OTHER_ACTIVATIONS: Final = frozenset(
    {
        "GELU",
        "CELU",
        "ELU",
        "Hardshrink",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
        "LeakyReLU",
        "LogSigmoid",
        "Mish",
        "PReLU",
        "RReLU",
        "ReLU6",
        "SELU",
        "Sigmoid",
        "Softplus",
        "Softshrink",
        "Softsign",
        "Tanhshrink",
        "Threshold",
        "ClippedGELUActivation",
        "LaplaceActivation",
        "LinearActivation",
        "MishActivation",
        "SqrtSoftplusActivation",
        "XIELUActivation",
    }
)


def closed_form(activation: str | nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The closed form of ``g(z) / z``, or None where there is none.

    Args:
        activation: An activation module, or the name of a function as in a model's config
            (``"gelu"``).

    Returns:
        A function from ``z`` to the slope of the same shape.
    """
    if isinstance(activation, str):
        return _CLOSED_FORMS.get(activation)
    name = type(activation).__name__
    if name == "GELU":  # torch.nn.GELU is two functions
        return _tanh_gelu if getattr(activation, "approximate", "none") == "tanh" else _gelu
    return _CLOSED_FORMS.get(name)


@cache
def at_zero(closed: Callable[[Tensor], Tensor], dtype: torch.dtype) -> float:
    """The value of a closed form at ``z = 0``, computed once: reading it waits for a device.

    Args:
        closed: One of those that :func:`closed_form` gives.
        dtype: In which precision.
    """
    return float(closed(torch.zeros((), dtype=dtype, device="cpu")))


def is_known_activation(module: nn.Module) -> bool:
    """Whether the module's class is an element-wise activation that this package knows."""
    name = type(module).__name__
    return name in _CLOSED_FORMS or name in _OTHER_ACTIVATIONS


def limit_at_zero(function: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The limit of ``g(z) / z`` at zero: ``g'(0)`` where ``g(0) = 0``, else 0.

    Args:
        function: ``g``; it may have parameters of its own per feature.
        like: A tensor of the shape that ``g`` takes.

    Returns:
        The limits, of the shape of ``like``.
    """
    with torch.enable_grad():
        zero = torch.zeros_like(like).requires_grad_()
        value = function(zero)
        if not value.requires_grad:
            return torch.zeros_like(like)
        (slope,) = torch.autograd.grad(value.sum(), zero)
    return torch.where(value.detach() == 0, slope, 0.0)


def ratio(z: Tensor, value: Tensor, limit: float) -> Tensor:
    """The ratio ``g(z) / z`` with a known limit at zero.

    In float32 and float64 it is as exact as ``value`` is, and several times faster than a closed
    form with its transcendental functions. In half precision the quotient of two small rounded
    numbers is not exact any more: use the closed form there.

    Args:
        z: Pre-activation.
        value: ``g(z)``, of the same shape, which is written over.
        limit: ``g'(0)``.

    Returns:
        The slope, of the shape of ``z``.
    """
    # 0 / 0 is the only NaN, and infinity is g(0) / 0: no slope at zero carries that value.
    return value.div_(z).nan_to_num_(nan=limit, posinf=0.0, neginf=0.0)


def secant(z: Tensor, value: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The ratio ``g(z) / z`` with its limit at zero, for activations without a closed form.

    Args:
        z: Pre-activation.
        value: ``g(z)``, of the same shape, which is written over.
        function: ``g``, evaluated at 0 when a zero occurs.

    Returns:
        The slope, of the shape of ``z``.
    """
    slope = ratio(z, value, limit=0.0)
    zero = z == 0
    return torch.where(zero, limit_at_zero(function, z), slope) if zero.any() else slope
