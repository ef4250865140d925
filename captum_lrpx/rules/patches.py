"""What a rule does to one module: the module's own forward value, the rule's slope backward.

A patch wraps the forward of one module *instance*. It is called with that forward and the
arguments of the call, and returns what the module returns, bit by bit. The module computes without
a graph of its own where the rule replaces its slope, so nothing is saved that is not needed.

Some patches stand at a module on behalf of a product that comes later and has no module of its
own. A hook on the module then sees a gradient without the factor: such patches say by
``output_scale`` or ``input_scale`` what it has to be multiplied by.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, cast

import torch
from torch import nn

from captum_lrpx.rules import functional, slopes
from captum_lrpx.rules.kernels import ConstantWeightsMode
from captum_lrpx.rules.verified import (
    FirstCall,
    agrees,
    leaves_others_alone,
    require_inline,
    require_norm,
)

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
    "SecantPatch",
]

Forward = Callable[..., Any]
Patch = Callable[..., Any]
"""``patch(forward, *args, **kwargs)`` returns what ``forward(*args, **kwargs)`` returns."""


_FEW_TOKENS: Final = 64
"""Up to so many the kernel's own backward pass is faster than one that does only what is needed."""


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
            output = forward(*args, **kwargs)
        # A module may return its very input (nn.Identity), which has a graph.
        return output.detach() if isinstance(output, torch.Tensor) else output


@dataclass(frozen=True, eq=False)
class ConstantWeightsPatch:
    """The attention's kernel, if it is PyTorch's SDPA, holds its weights constant.

    Attributes:
        detached: Whether queries and keys have no graph anyway, so that the kernel's own backward
            pass gives the same and only takes longer, but for a few tokens.
    """

    detached: bool

    def __call__(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the attention."""
        if self.detached and _tokens(args, kwargs) <= _FEW_TOKENS:
            return forward(*args, **kwargs)
        with ConstantWeightsMode():
            return forward(*args, **kwargs)


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Rows times positions of the hidden states that an attention takes; many if unknown."""
    hidden = args[0] if args else kwargs.get("hidden_states")
    return hidden.shape[:-1].numel() if isinstance(hidden, torch.Tensor) else math.inf


@dataclass(frozen=True, eq=False)
class SecantPatch:
    """The activation has its secant slope ``g(z) / z``.

    Attributes:
        module: The activation.
        path: Where it is, for messages.
    """

    module: nn.Module
    path: str = ""
    _first: FirstCall = field(default_factory=FirstCall)
    _own_form: list[bool] = field(default_factory=lambda: [True])

    def __call__(self, forward: Forward, z: Tensor) -> Tensor:
        """Run the activation without a graph and give it the secant slope."""
        with torch.no_grad():
            # An activation that overwrites its input (inplace=True) gets a copy.
            inplace = getattr(self.module, "inplace", False)
            value: Tensor = forward(z.clone() if inplace else z)
        return self.with_slope(z, value, forward)

    def with_slope(self, z: Tensor, value: Tensor, forward: Forward) -> Tensor:
        """What the activation gave, with its secant slope."""
        if not z.requires_grad:
            return value
        self.verify(z, value, forward)
        return functional.identity(z, value, self.slope(z, value, forward))

    @torch.no_grad()
    def verify(self, z: Tensor, value: Tensor, forward: Forward) -> None:
        """Refuse, on the first call, a module that is no element-wise function.

        Raises:
            ValueError: If it is none.
        """
        if self.module.training or not self._first.is_due(z, value):
            return
        if not leaves_others_alone(forward, z, value):
            kind = type(self.module).__name__
            raise ValueError(
                f"The activation {self.path!r} ({kind}) is not element-wise, as its rule takes it "
                "to be: its relevance would be wrong. Override its rule (ActivationGradient takes "
                "its ordinary gradient)."
            )
        closed = slopes.closed_form(self.module)
        self._own_form[0] = closed is not None and agrees(value, z * closed(z), z)
        self._first.done = True

    @torch.no_grad()
    def slope(self, z: Tensor, value: Tensor, forward: Forward) -> Tensor:
        """The secant slope, as a new tensor."""
        closed = slopes.closed_form(self.module)
        if closed is None or not self._own_form[0]:  # a class may have the name of another one
            return slopes.secant(z, value, forward)
        if z.dtype in (torch.float16, torch.bfloat16):
            return closed(z)
        return slopes.ratio(z, value, limit=slopes.at_zero(closed, z.dtype))


@dataclass(frozen=True, eq=False)
class InlineSecant:
    """The two ends of an activation that is a function between two modules.

    ``before`` remembers its output, the pre-activation; ``after`` takes the activated value and
    gives it the secant slope towards that. Dropout between the two is element-wise as well, hence
    part of the ratio.

    Attributes:
        function: Name of the activation, for its slope at zero.
        path: Of the module before it, for messages.
        before_module: That module.
    """

    function: str
    path: str = ""
    before_module: nn.Module | None = None
    _first: FirstCall = field(default_factory=FirstCall)
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
            at_zero = 0.0 if closed is None else slopes.at_zero(closed, z.dtype)
            drops = self.before_module is not None and self.before_module.training
            if closed is not None and not drops and self._first.is_due(z, x):
                require_inline(self.path, self.function, x, z * closed(z))
                self._first.done = True
            slope = torch.where(z == 0, at_zero, x / torch.where(z == 0, 1.0, z))
        return forward(functional.identity(z, x, slope), *args, **kwargs)


@dataclass(frozen=True, eq=False)
class FrozenNormPatch:
    """The norm is linear: its scale is held constant.

    Attributes:
        module: LayerNorm or RMSNorm, with ``weight`` and an epsilon.
        centered: Whether the mean is subtracted.
        weight_offset: What is added to the stored weight.
        path: Where it is, for messages.
    """

    module: nn.Module
    centered: bool
    weight_offset: float
    path: str = ""
    _first: FirstCall = field(default_factory=FirstCall)

    def __call__(self, forward: Forward, x: Tensor) -> Tensor:
        """Run the norm without a graph and give it the slope of the frozen norm.

        Raises:
            ValueError: On the first call, if it is another norm than declared.
        """
        with torch.no_grad():
            value, scale = self._run(forward, x)
            if self._first.is_due(x, value):
                declared = (self.centered, self.weight_offset)
                require_norm(self.path, self.module, x, value, self._formula, declared)
                self._first.done = True
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

    def _formula(self, x: Tensor, centered: bool, weight_offset: float) -> Tensor:
        """The norm of rows ``[N, ...]``, as the rule takes it to be."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        over = tuple(range(1, wide.ndim))
        wide = wide - wide.mean(over, keepdim=True) if centered else wide
        square = wide.square().mean(over, keepdim=True)
        result = wide * (square + norm_epsilon(self.module, x)).rsqrt()
        weight, bias = (getattr(self.module, name, None) for name in ("weight", "bias"))
        result = result if weight is None else result * (weight.to(wide) + weight_offset)
        return result if bias is None else result + bias.to(wide)

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
