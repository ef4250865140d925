"""What a rule does to one module: the module's own forward value, the rule's slope backward.

A patch wraps the forward of one module *instance*. It is called with that forward and the
arguments of the call, and returns what the module returns, bit by bit. The module computes without
a graph of its own where the rule replaces its slope, so nothing is saved that is not needed.

Some patches stand at a module on behalf of a product that comes later and has no module of its
own. A hook on the module then sees a gradient without the factor: such patches say by
``output_scale`` or ``input_scale`` what it has to be multiplied by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from captum_lrpx.rules import functional, slopes

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Attachment",
    "Constant",
    "Forward",
    "FrozenNormPatch",
    "InlineSecant",
    "Patch",
    "ScaleInputGradient",
    "ScaleOutputGradient",
    "SecantPatch",
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
    """The gradient of the module's output is multiplied by a factor.

    Attributes:
        factor: A number, or a tensor with one factor per output feature.
    """

    factor: float | Tensor

    @property
    def output_scale(self) -> float | Tensor:
        """What a gradient caught behind the module lacks."""
        return self.factor

    def __call__(self, forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module and scale the gradient of what it returns."""
        output: Tensor = forward(*args, **kwargs)
        factor = self.factor
        if isinstance(factor, torch.Tensor):
            factor = factor.to(device=output.device, dtype=output.dtype)
        return functional.scale_gradient(output, factor)


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
            closed = slopes.closed_form(self.module)
            slope = slopes.secant(z, value, forward) if closed is None else closed(z)
        return functional.identity(z, value, slope)


@dataclass(frozen=True, eq=False)
class InlineSecant:
    """The two ends of an activation that is a function between two modules.

    ``before`` remembers its output, the pre-activation; ``after`` takes the activated value and
    gives it the secant slope towards that. Dropout between the two is element-wise as well, hence
    part of the ratio.

    Attributes:
        function: Name of the activation, for its slope at zero.
        pending: The pre-activations of calls whose ``after`` has not come yet.
    """

    function: str
    pending: list[Tensor] = field(default_factory=list)

    def before(self, forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module before the activation."""
        self.pending.clear()
        output: Tensor = forward(*args, **kwargs)
        self.pending.append(output)
        return output

    def after(self, forward: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module after the activation."""
        if not self.pending:
            return forward(x, *args, **kwargs)
        z = self.pending.pop()
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
            value: Tensor = forward(x)
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
        )


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
