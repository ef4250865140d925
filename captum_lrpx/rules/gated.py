"""The gated product ``activation(gate(x)) * up(x)`` as one operation with one backward slope.

Rule by rule, the product keeps both of its factors and the activation its slope: three tensors of
the width of the MLP for each layer. As one operation ``z * up * [act(z) / z]`` two are enough.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

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

__all__ = ["Comparison", "fused_product"]


@dataclass(eq=False)
class Comparison:
    """Whether what the output layer of a gated MLP takes is the declared product, once known."""

    equal: bool | None = None


def fused_product(
    site: GatedProductSite,
    comparison: Comparison | None = None,
    *,
    known: bool = False,
    activation_path: str = "",
) -> Sequence[Attachment]:
    """The identity rule of a gate's activation and the uniform rule of the product, in one.

    Formula: :func:`captum_lrpx.rules.functional.gated_product`. Where somebody looks at one of the
    modules between, or the product is another one than declared, the rules act one by one.

    Args:
        site: The gated MLP.
        comparison: What is known about the product, and where to put what is found out.
        known: Whether the product is known to be as declared, so that its factors need no graph.
            One propagation does not change its mind: a block that is computed again must do what
            it did before.
        activation_path: Where the activation is, for messages.
    """
    comparison = Comparison() if comparison is None else comparison
    product = _Product(site, SecantPatch(site.activation, activation_path), comparison, known)
    halved = _Output(functional.UNIFORM_SHARE, site.output, product)
    return [
        Attachment(site.activation, product.activation),
        Attachment(site.up, product.up),
        Attachment(site.output, halved),
    ]


_SEEN: Final = (
    ("activation", "_forward_hooks"),
    ("activation", "_forward_pre_hooks"),
    ("up", "_forward_hooks"),
    ("output", "_forward_pre_hooks"),
)


def _is_seen(site: GatedProductSite) -> bool:
    """Whether a hook sees, and may change, what is between the modules of a product."""
    modules = vars(site)
    return all_modules_are_hooked() or any(
        bool(vars(modules[name])[hooks]) for name, hooks in _SEEN
    )


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
        comparison: What is known about the product, for later propagations.
        known: Whether the factors need no graph.
    """

    site: GatedProductSite
    secant: SecantPatch
    comparison: Comparison
    known: bool
    _calls: threading.local = field(default_factory=threading.local)

    def activation(self, forward: Forward, z: Tensor) -> Tensor:
        """Run the activation."""
        self.forget()
        if not self._applies(z):
            return self.secant(forward, z)
        with torch.no_grad():
            value: Tensor = forward(z)
        self._calls.call = _Call(forward, z, value)
        self.secant.verify(z, value, forward)
        return value if self.known else self.secant.with_slope(z, value, forward)

    def up(self, forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        """Run the linear layer beside the gate."""
        signal: Tensor = forward(*args, **kwargs)
        call = self._call()
        if call is None:
            return signal
        call.signal = signal
        return signal.detach() if self.known else signal

    def close(self, product: Tensor) -> Tensor:
        """Give what the output layer takes the slope of the rules."""
        call = self._call()
        self.forget()
        if call is None or call.signal is None:
            return product
        if not self.known and self.comparison.equal is None:
            with torch.no_grad():
                self.comparison.equal = torch.equal(product, call.value * call.signal)
        if not self.comparison.equal:
            return product
        slope = self.secant.slope(call.z, call.value, call.function)
        return functional.gated_product(call.z, call.signal, product, call.value, slope)

    def forget(self) -> None:
        """Drop what a forward pass left that did not come as far as the output layer."""
        self._calls.call = None

    def _applies(self, z: Tensor) -> bool:
        return (
            self.comparison.equal is not False
            and torch.is_grad_enabled()
            and z.requires_grad
            and not _is_seen(self.site)
            and not self.site.activation.training  # dropout might stand between
            and not getattr(self.site.activation, "inplace", False)
            and not is_transformed(z)
        )

    def _call(self) -> _Call | None:
        call: _Call | None = getattr(self._calls, "call", None)
        return call
