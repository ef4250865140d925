"""Secant slopes ``g(z) / z`` against the ratio itself, in high precision where it is delicate."""

from __future__ import annotations

import mpmath
import pytest
import torch
from rule_cases import Function
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers.activations import ACT2FN

from captum_lrpx import propagation
from captum_lrpx.rules import slopes

HALF = [torch.float16, torch.bfloat16]

ELEMENT_WISE = {
    "CELU": nn.CELU(0.5),
    "ELU": nn.ELU(0.5),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU(approximate="tanh"),
    "Hardshrink": nn.Hardshrink(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Hardswish": nn.Hardswish(),
    "Hardtanh": nn.Hardtanh(-0.5, 2.0),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "LogSigmoid": nn.LogSigmoid(),
    "Mish": nn.Mish(),
    "PReLU": nn.PReLU(),
    "RReLU": nn.RReLU().eval(),
    "ReLU": nn.ReLU(),
    "ReLU6": nn.ReLU6(),
    "SELU": nn.SELU(),
    "SiLU": nn.SiLU(),
    "Sigmoid": nn.Sigmoid(),
    "Softplus": nn.Softplus(),
    "Softshrink": nn.Softshrink(),
    "Softsign": nn.Softsign(),
    "Tanh": nn.Tanh(),
    "Tanhshrink": nn.Tanhshrink(),
    "Threshold": nn.Threshold(0.5, 0.0),
}
"""The element-wise activations of torch.nn."""

REFUSED = ["Tanhshrink", "sqrtsoftplus"]
"""Those that hide what an activation inside of them is given, or take a root."""

ALL = {
    name: activation
    for name, activation in (ELEMENT_WISE | {name: ACT2FN[name] for name in ACT2FN}).items()
    if name not in REFUSED
}
SHIFTED = ["laplace"]
"""Those with a constant inside, which gets relevance as a bias does."""

NOT_ZERO_AT_ZERO = [
    "Hardsigmoid",
    "LogSigmoid",
    "Sigmoid",
    "Softplus",
    "laplace",
    "sigmoid",
    "xielu",  # -1e-6 * alpha, by its own guard
]
ZERO_AT_ZERO = [name for name in ALL if name not in NOT_ZERO_AT_ZERO]


# The definitions, in mpmath; names as in a model's config.
def phi(z):
    return mpmath.erfc(-z / mpmath.sqrt(2)) / 2


def tanh_gelu(z):
    u = mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3)
    return z * (1 + mpmath.tanh(u)) / 2


DEFINITIONS = {
    "gelu": lambda z: z * phi(z),
    "gelu_python": lambda z: z * phi(z),
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "gelu_python_tanh": tanh_gelu,
    "gelu_accurate": tanh_gelu,
    "quick_gelu": lambda z: z / (1 + mpmath.exp(-mpmath.mpf("1.702") * z)),
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
    "swish": lambda z: z / (1 + mpmath.exp(-z)),
    "relu": lambda z: max(z, mpmath.mpf(0)),
    "relu2": lambda z: max(z, mpmath.mpf(0)) ** 2,
    "tanh": mpmath.tanh,
}
LIMITS = {"tanh": 1.0, "relu": 0.0, "relu2": 0.0}
"""At zero; those that are not named are 1/2."""


def slope_of(activation, z):
    """The slope that an activation has under the identity rule."""
    leaf = z.detach().requires_grad_()
    with propagation(activation):
        (slope,) = torch.autograd.grad(activation(leaf), leaf, torch.ones_like(leaf))
    return slope


def grid(dtype=torch.float64):
    """Both signs, from 1e-6 over the origin to the tails, zero included."""
    sizes = torch.logspace(-6, 2, 200, dtype=dtype)
    return torch.cat([-sizes.flip(0), torch.zeros(1, dtype=dtype), sizes])


def exact_slope(name, z):
    """``g(z) / z`` of a definition, with digits enough for ``1 + tanh(u)`` in the far tail."""
    with mpmath.workdps(400):
        wide = mpmath.mpf(float(z))
        return LIMITS.get(name, 0.5) if wide == 0 else float(DEFINITIONS[name](wide) / wide)


def of_double(name):
    """The activation with parameters in float64."""
    return ALL[name].double()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_seen_through_is_refused(name):
    activation = (ELEMENT_WISE | {name: ACT2FN[name] for name in ACT2FN})[name]
    with pytest.raises(ValueError, match="that no rule of 'lrp' covers"):
        slope_of(activation, torch.ones(3))


@pytest.mark.parametrize("name", [name for name in ALL if name not in SHIFTED])
def test_the_slope_times_the_input_is_the_value(name):
    """Less the value at zero, which belongs to no input."""
    z, activation = grid(), of_double(name)
    with torch.no_grad():
        value = activation(z) - activation(torch.zeros_like(z))
    guard = 2e-6 if name == "xielu" else 1e-14
    torch.testing.assert_close(slope_of(activation, z) * z, value, rtol=1e-9, atol=guard)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_slopes_of_the_definitions(name):
    z = grid()
    expected = torch.tensor([exact_slope(name, value) for value in z], dtype=torch.float64)
    torch.testing.assert_close(slope_of(of_double(name), z), expected, rtol=1e-6, atol=1e-9)


CLOSED = {
    "gelu": slopes.gelu,
    "gelu_new": slopes.tanh_gelu,
    "silu": torch.sigmoid,
    "tanh": slopes.tanh,
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_exact_from_tail_to_tail(name):
    z = grid()
    expected = torch.tensor([exact_slope(name, value) for value in z], dtype=torch.float64)
    # Rounding of the argument of an exponential is relative to the argument: up to 1e4 here.
    torch.testing.assert_close(CLOSED[name](z), expected, rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_closed_forms_are_the_functions_of_the_library(name):
    """The definitions here are those that transformers computes."""
    z = grid()
    expected = torch.tensor([exact_slope(name, value) for value in z], dtype=torch.float64) * z
    torch.testing.assert_close(ACT2FN[name](z), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("name", ZERO_AT_ZERO)
def test_at_zero_the_slope_is_a_limit(name, zero):
    activation = of_double(name)
    z = torch.tensor([zero, 1.0, -1e-7, 1e-7], dtype=torch.float64)
    slope = slope_of(activation, z)
    with torch.no_grad():
        left, right = (activation(z) / z)[2:].tolist()
    assert min(left, right) - 1e-6 <= slope[0] <= max(left, right) + 1e-6
    assert slope_of(activation, z[:1]) == slope[0]  # whatever is around it


def test_limit_at_zero():
    assert slopes.limit_at_zero(torch.sin) == 1
    assert slopes.limit_at_zero(torch.cos) == 0
    assert slopes.limit_at_zero(lambda z: 3 * z) == 3
    assert slopes.limit_at_zero(lambda z: 2 * z + 1) == 0


@pytest.mark.parametrize(
    "function",
    [
        torch.sigmoid, torch.exp, torch.exp2, torch.erfc, F.hardsigmoid, F.logsigmoid, F.softplus,
        lambda z: F.softplus(z, beta=2), F.silu, F.mish, lambda z: F.celu(z, 0.3), torch.asinh,
    ],
)  # fmt: skip
def test_at_zero_the_slope_is_the_derivative(function):
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(function(zero), zero)
    torch.testing.assert_close(slope_of(Function(function), zero), expected, rtol=1e-7, atol=0)


def test_limits_for_each_feature():
    low, high = torch.tensor([-1.0, 0.5, -2.0]), torch.tensor([1.0, 2.0, -1.0])
    z = torch.tensor([[0.0, 0.0, 0.0], [4.0, 4.0, 4.0], [0.5, 0.6, -1.5]])
    clamp = Function(lambda z: z.clamp(low, high))
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.5, -0.25], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(slope_of(clamp, z), expected)


def test_a_slope_per_feature():
    activation = nn.PReLU(3)
    with torch.no_grad():
        activation.weight.copy_(torch.tensor([0.1, 0.2, 0.3]))
    z = torch.tensor([[0.0, -1.0, 2.0], [-1.0, 0.0, 0.0]])
    slope = slope_of(activation, z)
    torch.testing.assert_close(slope[:, 0], torch.tensor([0.1, 0.1]))
    assert slope[0, 2] == 1
    assert slope.isfinite().all()


@pytest.mark.parametrize("name", NOT_ZERO_AT_ZERO)
def test_the_slope_stays_finite_where_it_cannot_carry_the_value(name):
    z = torch.tensor([1e-7, -1e-7, 0.0], dtype=torch.float16)
    assert slope_of(ALL[name].to(torch.float16), z).isfinite().all()


def all_numbers(dtype):
    """Every finite number of a 16-bit type."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return numbers[numbers.isfinite()]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("laplace", "xielu")])
def test_half_precision_is_finite_and_close_for_every_number(name, dtype):
    z = all_numbers(dtype)
    activation = ALL[name].to(dtype)
    slope = slope_of(activation, z)
    with torch.no_grad():
        value = activation(z)
    assert slope.dtype == dtype
    assert slope[value.isfinite()].isfinite().all()
    # Where the value is too small to have all its digits, so is the ratio.
    digits = value.isfinite() & (z.abs() >= torch.finfo(dtype).smallest_normal * 2**12)
    exact = slope_of(activation.double(), z[digits].double())
    allowed = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(slope[digits].double(), exact, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_do_not_overflow_at_the_largest_numbers(name, dtype):
    largest = torch.finfo(dtype).max
    z = torch.tensor([-largest, largest], dtype=dtype)
    limits = [1 / largest, 1 / largest] if name == "tanh" else [0, 1]
    assert CLOSED[name](z).tolist() == pytest.approx(limits, rel=1e-2, abs=0)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("name", ["gelu", "mish"])
def test_any_shape(name, shape):
    z = torch.linspace(-1, 1, max(1, torch.Size(shape).numel()))[: torch.Size(shape).numel()]
    z = z.reshape(shape)
    assert slope_of(ACT2FN[name], z).shape == shape
