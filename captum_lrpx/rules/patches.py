"""What a rule does to one module: the module's own forward value, the rule's slope backward.

A patch wraps the forward of one module *instance*. It is called with that forward and the
arguments of the call, and returns what the module returns, bit by bit. The module computes without
a graph of its own where the rule replaces its slope, so nothing is saved that is not needed.

Some patches stand at a module on behalf of a product that comes later and has no module of its
own. A hook on the module then sees a gradient without the factor: such patches say by
``output_scale`` or ``input_scale`` what it has to be multiplied by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from captum_lrpx.rules import functional, slopes, sparse
from captum_lrpx.rules.kernels import ConstantWeightsMode

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Attachment",
    "Constant",
    "ConstantWeightsPatch",
    "Forward",
    "FrozenNormPatch",
    "InlineSecant",
    "Patch",
    "RequireGradient",
    "ScaleFeatureGradients",
    "ScaleInputGradient",
    "ScaleOutputGradient",
    "SecantPatch",
    "SparseRows",
    "weight_and_bias",
]

Forward = Callable[..., Any]
Patch = Callable[..., Any]
"""``patch(forward, *args, **kwargs)`` returns what ``forward(*args, **kwargs)`` returns."""


class Attachment(NamedTuple):
    """A patch and the module whose forward it wraps."""

    module: nn.Module
    patch: Patch


@dataclass(frozen=True, eq=False)
class Constant:
    """The module's output is a constant: no gradient, no graph."""

    output_scale: ClassVar[float] = 0.0

    def __call__(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the module without a graph."""
        with torch.no_grad():
            return forward(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class ScaleOutputGradient:
    """The gradient of the module's output is multiplied by a factor."""

    factor: float

    @property
    def output_scale(self) -> float:
        """What a gradient caught behind the module lacks."""
        return self.factor

    def __call__(self, forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module and scale the gradient of what it returns."""
        return functional.scale_gradient(forward(*args, **kwargs), self.factor)


@dataclass(frozen=True, eq=False)
class ScaleFeatureGradients:
    """The gradient of each output feature of a linear layer is multiplied by a factor of its own.

    Attributes:
        factors: One factor per output feature.
        module: The layer.
    """

    factors: Tensor
    module: nn.Module
    _kept: tuple[int, int] | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kept", _one_range(self.factors))

    @property
    def output_scale(self) -> Tensor:
        """What a gradient caught behind the module lacks."""
        return self.factors

    def __call__(self, forward: Forward, x: Tensor) -> Tensor:
        """Run the layer and scale the gradient of what it returns."""
        if self._kept is not None and x.requires_grad and sparse.is_plain_linear(self.module):
            with torch.no_grad():
                value: Tensor = forward(x)
            weight, _ = weight_and_bias(self.module)
            return sparse.feature_linear(x, value, weight, *self._kept)
        output: Tensor = forward(x)
        factors = self.factors.to(device=output.device, dtype=output.dtype)
        return functional.scale_gradient(output, factors)


def _one_range(factors: Tensor) -> tuple[int, int] | None:
    """The range of features with factor 1, if all others have factor 0 and it is one range."""
    kept = factors.nonzero().flatten()
    if not kept.numel() or not bool((factors[kept] == 1).all()):
        return None
    start, stop = int(kept[0]), int(kept[-1]) + 1
    return (start, stop) if stop - start == kept.numel() else None


@dataclass(frozen=True, eq=False)
class ConstantWeightsPatch:
    """The attention's kernel, if it is PyTorch's SDPA, holds its weights constant."""

    def __call__(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the attention."""
        with ConstantWeightsMode():
            return forward(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class SparseRows:
    """The output layer of a language model: its backward pass skips what is not explained."""

    module: nn.Module

    def __call__(self, forward: Forward, x: Tensor) -> Tensor:
        """Run the layer."""
        value: Tensor
        wanted = torch.is_grad_enabled() and x.requires_grad
        if not wanted or not sparse.is_plain_linear(self.module):
            value = forward(x)
            return value
        with torch.no_grad():
            value = forward(x)
        return sparse.row_sparse_linear(x, value, weight_and_bias(self.module)[0])


@dataclass(frozen=True, eq=False)
class RequireGradient:
    """A linear layer of a class of its own must have a gradient: not all quantized ones have.

    Attributes:
        path: Of the layer.
        module: The layer.
    """

    path: str
    module: nn.Module

    def __call__(self, forward: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer and look whether its output has a graph back to its input."""
        output = forward(x, *args, **kwargs)
        if torch.is_grad_enabled() and x.requires_grad and not _has_gradient(output, x):
            kind = type(self.module)
            raise RuntimeError(
                f"The layer {self.path!r} ({kind.__module__}.{kind.__name__}) has no backward "
                "pass in PyTorch, as layers with dynamic int8 quantization have none: all "
                "relevance would be lost there. Explain the model before it is quantized, or "
                "quantize its weights only."
            )
        return output


def _has_gradient(output: Tensor, x: Tensor) -> bool:
    """Whether all operations between two tensors have a backward pass.

    For those that have none PyTorch records one that warns and gives zeros.
    """
    if not output.requires_grad:
        return False
    seen = {get_gradient_edge(x).node}
    nodes = [get_gradient_edge(output).node]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if "NotImplemented" in node.name():
            return False
        nodes += [before for before, _ in node.next_functions if before is not None]
    return True


@dataclass(frozen=True, eq=False)
class ScaleInputGradient:
    """The gradient of the module's first input is multiplied by a factor."""

    factor: float

    @property
    def input_scale(self) -> float:
        """What a gradient caught before the module has too much."""
        return 1.0 / self.factor

    def __call__(self, forward: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Scale the gradient of ``x`` and run the module."""
        return forward(functional.scale_gradient(x, self.factor), *args, **kwargs)


@dataclass(frozen=True, eq=False)
class SecantPatch:
    """The activation has its secant slope ``g(z) / z``."""

    module: nn.Module

    def __call__(self, forward: Forward, z: Tensor) -> Tensor:
        """Run the activation without a graph and give it the secant slope."""
        with torch.no_grad():
            # An activation that overwrites its input (inplace=True) gets a copy.
            inplace = getattr(self.module, "inplace", False)
            value: Tensor = forward(z.clone() if inplace else z)
            if not z.requires_grad:
                return value
            slope = self._slope(z, value, forward)
        return functional.identity(z, value, slope)

    def _slope(self, z: Tensor, value: Tensor, forward: Forward) -> Tensor:
        closed = slopes.closed_form(self.module)
        if closed is None:
            return slopes.secant(z, value, forward)
        if z.dtype in (torch.float16, torch.bfloat16):
            return closed(z)
        at_zero = torch.zeros((), dtype=z.dtype, device=z.device)  # not batched by vmap
        return slopes.ratio(z, value, limit=float(closed(at_zero)))


@dataclass(frozen=True, eq=False)
class InlineSecant:
    """The two ends of an activation that is a function between two modules.

    ``before`` remembers its output, the pre-activation; ``after`` takes the activated value and
    gives it the secant slope towards that. Dropout between the two is element-wise as well, hence
    part of the ratio.

    Attributes:
        function: Name of the activation, for its slope at zero.
    """

    function: str
    _calls: threading.local = field(default_factory=threading.local)

    def before(self, forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module before the activation."""
        output: Tensor = forward(*args, **kwargs)
        self._calls.pre_activation = output
        return output

    def forget(self) -> None:
        """Drop what a forward pass left that did not come as far as ``after``."""
        self._calls.pre_activation = None

    def after(self, forward: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module after the activation."""
        z: Tensor | None = getattr(self._calls, "pre_activation", None)
        self.forget()
        if z is None:
            return forward(x, *args, **kwargs)
        if z.shape != x.shape:
            raise RuntimeError(
                f"The activation {self.function!r} was declared to stand between two modules, but "
                f"the first returned the shape {tuple(z.shape)} and the second took "
                f"{tuple(x.shape)}: the declaration of this architecture does not fit the model."
            )
        with torch.no_grad():
            closed = slopes.closed_form(self.function)
            at_zero = 0.0 if closed is None else closed(torch.zeros_like(z))
            slope = torch.where(z == 0, at_zero, x / torch.where(z == 0, 1.0, z))
        return forward(functional.identity(z, x, slope), *args, **kwargs)


@dataclass(frozen=True, eq=False)
class FrozenNormPatch:
    """The norm is linear: its scale is held constant.

    Attributes:
        module: LayerNorm or RMSNorm, with ``weight`` and an epsilon.
        centered: Whether the mean is subtracted.
        weight_offset: What is added to the stored weight.
    """

    module: nn.Module
    centered: bool
    weight_offset: float

    def __call__(self, forward: Forward, x: Tensor) -> Tensor:
        """Run the norm without a graph and give it the slope of the frozen norm."""
        with torch.no_grad():
            value, scale = self._run(forward, x)
        weight = getattr(self.module, "weight", None)
        if weight is not None:
            weight = weight.detach()
            if self.weight_offset:
                weight = weight + self.weight_offset
        dims = len(getattr(self.module, "normalized_shape", (1,)))
        return functional.frozen_norm(
            x,
            value,
            weight=weight,
            eps=norm_epsilon(self.module, x),
            center=dims if self.centered else 0,
            dims=dims,
            bias=getattr(self.module, "bias", None),
            scale=scale,
        )

    def _run(self, forward: Forward, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The norm's output, and its scale if the kernel gives it away."""
        if getattr(forward, "__func__", None) is not nn.LayerNorm.forward:
            return forward(x), None
        norm = cast("nn.LayerNorm", self.module)
        value, _, scale = torch.native_layer_norm(
            x, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        # Some kernels round the scale of a half precision input to that precision.
        return value, None if scale.dtype in (torch.float16, torch.bfloat16) else scale


def norm_epsilon(module: nn.Module, x: Tensor) -> float:
    """The epsilon of a norm module, under whichever of the usual names it has."""
    for name in ("eps", "variance_epsilon"):
        if hasattr(module, name):
            value = getattr(module, name)
            # torch.nn.RMSNorm: None is the machine epsilon of what it computes in.
            wide = torch.promote_types(x.dtype, torch.float32)
            return torch.finfo(wide).eps if value is None else float(value)
    raise TypeError(
        f"The norm {type(module).__name__} has neither `eps` nor `variance_epsilon`: declare its "
        "rule with an override for this module."
    )


def weight_and_bias(module: nn.Module, path: str = "a layer") -> tuple[Tensor, Tensor | None]:
    """Weight ``[out, in]`` and bias of a linear layer.

    Args:
        module: ``torch.nn.Linear``, or transformers' ``Conv1D``, which stores its weight
            transposed.
        path: For the error message.

    Raises:
        TypeError: If the layer keeps no plain weight (a quantized layer, a LoRA adapter): rules
            that
            split the weights by sign cannot be applied to it.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    plain = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    if not plain or not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        raise TypeError(
            f"The rule needs the weight of {path!r}, but {type(module).__name__} has no plain "
            "floating-point weight: use Epsilon for this layer, or merge the adapter."
        )
    if type(module).__name__ == "Conv1D":
        weight = weight.t()
    return weight, bias
