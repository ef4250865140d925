"""Rules on the nodes of an autograd graph: nothing is attached to the model.

The forward pass is the model's own and already over. A rule is a hook on the node of its operation,
which replaces the gradients that the node passes on; it reads the tensors that the node has saved
for its own gradient. An operand that a rule holds constant gets no gradient at all,
and PyTorch then computes nothing in its branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.autograd.function import BackwardCFunction
from torch.nn import functional as F  # noqa: N812

from captum_lrpx.rules import slopes
from captum_lrpx.rules.answering import has_ruled

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

_Gradients = tuple["Tensor | None", ...]
_Hook = Callable[[_Gradients, _Gradients], "_Gradients | None"]

HOMOGENEOUS: Final = frozenset(
    {"Relu", "LeakyRelu", "RreluWithNoise", "Prelu", "PreluKernel", "Abs"}
)
"""Activations whose own gradient is the secant slope: linear on either side of 0."""

_GATES: Final[Mapping[str, float]] = {
    "Sigmoid": 1 / 4,
    "Hardsigmoid": 1 / 6,
    "Softplus": 1 / 2,
    "LogSigmoid": 1 / 2,
    "Exp": 1.0,
    "Exp2": math.log(2),
    "Erfc": -2 / math.sqrt(math.pi),
}
"""Functions that are not 0 at 0, with their slopes there.

They matter as summands, not as factors.
"""

NEED_INPUT: Final = frozenset({"Tanh", "Sigmoid", "Exp", "Expm1", "Exp2"})
"""Functions whose nodes save the result, from which the input cannot be found exactly."""


def scaled(factors: tuple[float | None, ...], *, fresh: bool = False) -> _Hook:
    """Make a hook that multiplies each operand's gradient by a number; None holds it constant.

    Args:
        factors: One number for each operand.
        fresh: Whether the gradients own their memory, which may be overwritten.
    """

    def times(each: Tensor, factor: float) -> Tensor:
        return each.mul_(factor) if fresh and not each.requires_grad else each * factor

    def hook(given: _Gradients, _taken: _Gradients) -> _Gradients:
        return tuple(
            [  # a list is faster than a generator
                None
                if factor is None or each is None
                else each
                if factor == 1
                else times(each, factor)
                for each, factor in zip(given, factors, strict=True)
            ]
        )

    return hook


def is_of_python(node: object) -> bool:
    """Whether a node belongs to a ``torch.autograd.Function`` written in Python."""
    return isinstance(node, BackwardCFunction)


class Unasked:
    """Skips the backward function of a node written in Python if no gradient arrives.

    PyTorch passes zeros to such a function, also in a branch that a rule holds constant: its
    gradients would be computed all the way for nothing, and some functions cannot take zeros.

    Args:
        node: The node.
    """

    def __init__(self, node: Any) -> None:
        self._node = node
        node.set_materialize_grads(False)
        node.apply = self._apply

    def _apply(self, *taken: Tensor | None) -> Any:
        node = self._node
        if all(each is None for each in taken):
            return (None,) * len(node.needs_input_grad)
        every = (
            torch.zeros(form.shape, dtype=form.dtype, device=form.device) if each is None else each
            for each, form in zip(taken, node._input_metadata, strict=True)  # noqa: SLF001
        )
        return type(node).apply(node, *every)

    def remove(self) -> None:
        """Restore the node."""
        self._node.__dict__.pop("apply", None)


def contiguous(taken: _Gradients) -> _Gradients:
    """Make incoming gradients contiguous."""
    return tuple(None if each is None else each.contiguous() for each in taken)


# Activations --------------------------------------------------------------------------------------


_FUNCTIONS: Final[dict[str, Callable[[Any, Mapping[str, Any]], Callable[[Tensor], Tensor]]]] = {
    "Gelu": lambda _, s: partial(F.gelu, approximate=s["approximate"]),
    "Silu": lambda *_: F.silu,
    "Mish": lambda *_: F.mish,
    "Hardswish": lambda *_: F.hardswish,
    "Hardsigmoid": lambda *_: F.hardsigmoid,
    "Tanh": lambda *_: torch.tanh,
    "Sigmoid": lambda *_: torch.sigmoid,
    "Exp": lambda *_: torch.exp,
    "Exp2": lambda *_: torch.exp2,
    "Expm1": lambda *_: torch.expm1,
    "Erf": lambda *_: torch.erf,
    "Erfc": lambda *_: torch.erfc,
    "Sinh": lambda *_: torch.sinh,
    "Atan": lambda *_: torch.atan,
    "Asinh": lambda *_: torch.asinh,
    "Log1P": lambda *_: torch.log1p,
    "LogSigmoid": lambda *_: F.logsigmoid,
    "Softplus": lambda _, s: partial(F.softplus, beta=s["beta"], threshold=s["threshold"]),
    "Elu": lambda aten, s: partial(
        aten.elu, alpha=s["alpha"], scale=s["scale"], input_scale=s["input_scale"]
    ),
    "Celu": lambda _, s: partial(F.celu, alpha=s["alpha"]),
    "Hardtanh": lambda _, s: partial(F.hardtanh, min_val=s["min_val"], max_val=s["max_val"]),
    "Hardshrink": lambda _, s: partial(F.hardshrink, lambd=s["lambd"]),
    "Softshrink": lambda _, s: partial(F.softshrink, lambd=s["lambd"]),
    "Threshold": lambda _, s: lambda z: torch.where(z > s["threshold"], z, 0),
    "Clamp": lambda _, s: partial(torch.clamp, min=s["min"], max=s["max"]),
    "ClampMin": lambda _, s: partial(torch.clamp, min=s["min"]),
    "ClampMax": lambda _, s: partial(torch.clamp, max=s["max"]),
    "Pow": lambda _, s: lambda z: torch.pow(z, s["exponent"]),
    "GeLUFunction": lambda *_: lambda z: z * slopes.bloom_gelu(z),  # transformers' GELU for BLOOM
}


_CLOSED: Final[dict[str, Callable[[Mapping[str, Any]], Callable[[Tensor], Tensor]]]] = {
    "Silu": lambda _: torch.sigmoid,
    "Gelu": lambda s: slopes.tanh_gelu if s["approximate"] == "tanh" else slopes.gelu,
    "Tanh": lambda _: slopes.tanh,
    "Pow": lambda s: lambda z: torch.pow(z, s["exponent"] - 1),
    "GeLUFunction": lambda _: slopes.bloom_gelu,
}


_SHORT: Final = frozenset({"Pow", "Silu"})
"""Activations whose closed form is one function call."""


def has_secant(node: Node, name: str) -> bool:
    """Whether the secant slope of an activation can be computed from its node's saved tensors."""
    if name == "GeLUFunction":
        return True
    return name in _FUNCTIONS and (name in NEED_INPUT or hasattr(type(node), "_saved_self"))


def secant(node: Any, name: str, z: Tensor | None = None) -> _Hook:
    """Make a hook that gives an activation its secant slope ``g(z) / z`` (identity rule).

    Arras et al. 2025, D.3.

    Args:
        node: The node of the activation.
        name: Its operator.
        z: Its input, for an operator that does not save it.
    """

    def hook(given: _Gradients, taken: _Gradients) -> _Gradients | None:
        if taken[0] is None or given[0] is None or has_ruled(taken[0]):
            return None
        slope = slope_of(node, name, _input_of(node, name) if z is None else z)
        return (taken[0] * slope, *(None for _ in given[1:]))

    return hook


def _input_of(node: Any, name: str) -> Tensor:
    found: Tensor = node.saved_tensors[0] if name == "GeLUFunction" else node._saved_self  # noqa: SLF001
    return found


def slope_of(node: Any, name: str, z: Tensor) -> Tensor:
    """The secant slope of an activation at ``z``, of its shape, as a constant."""
    if torch.is_grad_enabled():  # in a backward pass that itself builds a graph
        with torch.no_grad():
            return slope_of(node, name, z)
    z = z.detach()
    saved = _arguments_of(node)
    closed = _CLOSED[name](saved) if name in _CLOSED else None
    if closed is not None and (name in _SHORT or z.dtype in (torch.float16, torch.bfloat16)):
        return closed(z)
    function = _FUNCTIONS[name](torch.ops.aten, saved)
    if name in _GATES:  # a constant part, as in 1 + tanh(z), belongs to no input
        wide = z.to(torch.float32 if z.device.type == "mps" else torch.float64)
        value = function(wide) - function(wide.new_zeros(()))
        return slopes.ratio(wide, value, _GATES[name]).to(z.dtype)
    return slopes.ratio(z, function(z), _limit(name, saved, function, z))


def _limit(
    name: str, saved: Mapping[str, Any], function: Callable[[Tensor], Tensor], z: Tensor
) -> float | Tensor:
    """Slope of an activation at 0."""
    if any(isinstance(each, torch.Tensor) for each in saved.values()):  # a clamp by tensors
        return (function(torch.zeros_like(z)) == 0).to(z.dtype)
    return _limit_of_all(name, tuple(saved.items()))


@cache
def _limit_of_all(name: str, saved: tuple[tuple[str, Any], ...]) -> float:
    return slopes.limit_at_zero(_FUNCTIONS[name](torch.ops.aten, dict(saved)))


def _arguments_of(node: Any) -> dict[str, Any]:
    """Arguments of an activation besides its input."""
    return {key.removeprefix("_saved_"): getattr(node, key) for key in _names_of(node.__class__)}


@cache
def _names_of(kind: type) -> tuple[str, ...]:
    """Names under which a class of nodes saves arguments that are no tensors of its function."""
    kept = (name for name in dir(kind) if name.startswith("_saved_"))
    return tuple(name for name in kept if name not in ("_saved_self", "_saved_result"))


def can_run_again(node: Node, name: str) -> bool:
    """Whether an activation can be computed again from its node's saved tensors."""
    return name in _FUNCTIONS and name not in NEED_INPUT and "_saved_self" in dir(node)


def function_of(node: Node, name: str) -> Callable[[Tensor], Tensor]:
    """The function of an activation that :func:`can_run_again`."""
    return _FUNCTIONS[name](torch.ops.aten, _arguments_of(node))


def gated(node: Any) -> _Hook:
    """Make a hook that holds the gate of ``F.glu``, the sigmoid of half of the input, constant."""
    dim = node._saved_dim  # noqa: SLF001
    dim = dim - (1 << 64) if dim >= 1 << 63 else dim  # saved as an unsigned number

    def hook(_given: _Gradients, taken: _Gradients) -> _Gradients | None:
        if taken[0] is None:
            return None
        gate = node._saved_self.chunk(2, dim)[1].detach()  # noqa: SLF001
        slope = taken[0] * torch.sigmoid(gate)
        return (torch.cat([slope, torch.zeros_like(slope)], dim),)

    return hook


# Norms --------------------------------------------------------------------------------------------


class Zeros:
    """Cache of zeros, one per shape, dtype and device, for a pass whose nodes only read them."""

    def __init__(self) -> None:
        self._found: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}

    def of(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros of a shape, dtype and device."""
        key = shape, dtype, device
        found = self._found.get(key)
        if found is None:
            with torch.no_grad():
                found = self._found[key] = torch.zeros(shape, dtype=dtype, device=device)
        return found

    def like(self, tensor: Tensor) -> Tensor:
        """Zeros like a tensor."""
        return self.of(tensor.shape, tensor.dtype, tensor.device)


def is_checkpointed(node: Any) -> bool:
    """Whether PyTorch recomputes the saved tensors of a node, which can be read only once."""
    kept = (getattr(getattr(node, name), "data", None) for name in _raw_names_of(node.__class__))
    return any(type(each).__module__ == "torch.utils.checkpoint" for each in kept)


@cache
def _raw_names_of(kind: type) -> tuple[str, ...]:
    """Names under which a class of nodes gives access to its saved tensors without unpacking."""
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def frozen_norm(node: Any, name: str, zeros: Zeros) -> _Hook:
    """Make a hook that holds a norm's scale constant (Ali et al. 2022; Arras et al. 2025, D.5).

    Args:
        node: The node of the norm.
        name: Its operator.
        zeros: Zeros of the pass.
    """
    slopes_of: dict[str, Callable[[Any, Tensor], Tensor]] = {
        "NativeLayerNorm": partial(_layer_norm, zeros),
        "NativeGroupNorm": _group_norm,
        "FusedRmsNorm": _rms_norm,
        "NativeBatchNorm": _norm_of_a_row,
        "CudnnBatchNorm": _norm_of_a_row,
    }
    slope = slopes_of[name]

    def hook(given: _Gradients, taken: _Gradients) -> _Gradients | None:
        if taken[0] is None or given[0] is None:
            return None
        # The weight is a part of the scale; the bias has its own gradient.
        return (slope(node, taken[0]).to(given[0].dtype), None, *given[2:])

    return hook


def _scaled_by(node: Any, gradient: Tensor, scale: Tensor) -> Tensor:
    weight = node._saved_weight  # noqa: SLF001
    wide = gradient.to(scale.dtype)
    return wide * scale if weight is None else wide * weight * scale


def _layer_norm(zeros: Zeros, node: Any, gradient: Tensor) -> Tensor:
    """The norm's own gradient at input 0, where the term of the scale's gradient vanishes."""
    shape, scale = node._saved_normalized_shape, node._saved_result2  # noqa: SLF001
    found: Tensor
    own = gradient.dtype == node._input_metadata[0].dtype  # noqa: SLF001
    if not own or torch.is_grad_enabled() or gradient.device.type == "mps":
        found = _scaled_by(node, gradient, scale)
        return found - found.mean(tuple(range(-len(shape), 0)), keepdim=True)
    found, *_ = torch.ops.aten.native_layer_norm_backward.default(
        gradient,
        zeros.like(gradient),
        shape,
        zeros.like(scale),
        scale,
        node._saved_weight,  # noqa: SLF001
        None,
        [True, False, False],
    )
    return found


def _rms_norm(node: Any, gradient: Tensor) -> Tensor:
    return _scaled_by(node, gradient, node._saved_result1)  # noqa: SLF001


def _group_norm(node: Any, gradient: Tensor) -> Tensor:
    groups = node._saved_group  # noqa: SLF001
    weight, scale = node._saved_weight, node._saved_result2  # noqa: SLF001
    wide = gradient.to(scale.dtype)
    if weight is not None:
        wide = wide * weight.view(-1, *([1] * (gradient.ndim - 2)))
    grouped = wide.reshape(gradient.shape[0], groups, -1) * scale.unsqueeze(-1)
    found: Tensor = grouped - grouped.mean(-1, keepdim=True)
    return found.view_as(gradient)


def _norm_of_a_row(node: Any, gradient: Tensor) -> Tensor:
    """Batch norm of one row, with a channel per row and channel: an instance norm."""
    over = [dim for dim in range(gradient.ndim) if dim != 1]
    weight, scale = node._saved_weight, node._saved_result2  # noqa: SLF001
    by_channel = scale if weight is None else scale * weight
    found: Tensor = gradient.to(scale.dtype) * by_channel.view(-1, *([1] * (gradient.ndim - 2)))
    return found - found.mean(over, keepdim=True)
