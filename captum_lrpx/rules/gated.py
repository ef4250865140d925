"""The gated product ``activation(gate(x)) * up(x)`` as one operation with one backward slope.

Rule by rule, the product keeps both of its factors and the activation its slope: three tensors of
the width of the MLP for each layer. As one operation ``z * up * [act(z) / z]`` two are enough.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from captum_lrpx.onlookers import all_modules_are_hooked
from captum_lrpx.rules import functional
from captum_lrpx.rules.linear_patches import ScaleInputGradient
from captum_lrpx.rules.patches import Attachment, SecantPatch
from captum_lrpx.rules.sparse import is_transformed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captum_lrpx.rules.patches import Forward
    from captum_lrpx.sites import GatedProductSite

__all__ = ["fused_product"]


def fused_product(site: GatedProductSite) -> Sequence[Attachment]:
    """The identity rule of a gate's activation and the uniform rule of the product, in one.

    Formula: :func:`captum_lrpx.rules.functional.gated_product`. Where somebody looks at one of the
    modules between, or the product is another one than declared, the rules are attached one by one.
    """
    product = _Product(site, SecantPatch(site.activation))
    halved = _Output(functional.UNIFORM_SHARE, site.output, product)
    return [
        Attachment(site.activation, product.activation),
        Attachment(site.up, product.up),
        Attachment(site.output, halved),
    ]


@dataclass(frozen=True, eq=False)
class _Output(ScaleInputGradient):
    """The consumer of the product: half of its gradient, and from there to both factors."""

    product: _Product

    def __call__(self, forward: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Give the product its slope, and run the module."""
        return super().__call__(forward, self.product.close(x), *args, **kwargs)


@dataclass(eq=False)
class _Call:
    """What one call of the MLP has computed so far."""

    function: Forward
    z: Tensor
    value: Tensor
    signal: Tensor | None = None


@dataclass(eq=False)
class _Product:
    """The three modules around one gated product.

    Attributes:
        site: Where they are.
        secant: The rule of the activation alone.
        as_declared: Whether what the third module takes is the product of what the first two gave,
            once that is known.
    """

    unseen: ClassVar[tuple[tuple[str, str], ...]] = (
        ("activation", "_forward_hooks"),
        ("activation", "_forward_pre_hooks"),
        ("up", "_forward_hooks"),
        ("output", "_forward_pre_hooks"),
    )

    site: GatedProductSite
    secant: SecantPatch
    as_declared: bool | None = None
    _calls: threading.local = field(default_factory=threading.local)

    def activation(self, forward: Forward, z: Tensor) -> Tensor:
        """Run the activation."""
        self.forget()
        if not self._applies(z):
            return self.secant(forward, z)
        with torch.no_grad():
            value: Tensor = forward(z)
        self._calls.call = _Call(forward, z, value)
        return value if self.as_declared else self.secant.with_slope(z, value, forward)

    def up(self, forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        """Run the linear layer beside the gate."""
        signal: Tensor = forward(*args, **kwargs)
        call = self._call()
        if call is None:
            return signal
        call.signal = signal
        return signal.detach() if self.as_declared else signal

    def close(self, product: Tensor) -> Tensor:
        """Give what the output layer takes the slope of the rules."""
        call = self._call()
        self.forget()
        if call is None or call.signal is None:
            return product
        if self.as_declared is None:
            with torch.no_grad():
                self.as_declared = torch.equal(product, call.value * call.signal)
        if not self.as_declared:
            return product
        slope = self.secant.slope(call.z, call.value, call.function)
        return functional.gated_product(call.z, call.signal, product, call.value, slope)

    def forget(self) -> None:
        """Drop what a forward pass left that did not come as far as the output layer."""
        self._calls.call = None

    def _applies(self, z: Tensor) -> bool:
        modules = vars(self.site)
        seen = any(vars(modules[name])[hooks] for name, hooks in self.unseen)
        return (
            self.as_declared is not False
            and torch.is_grad_enabled()
            and z.requires_grad
            and not seen
            and not all_modules_are_hooked()
            and not self.site.activation.training  # dropout might stand between
            and not getattr(self.site.activation, "inplace", False)
            and not is_transformed(z)
        )

    def _call(self) -> _Call | None:
        call: _Call | None = getattr(self._calls, "call", None)
        return call
