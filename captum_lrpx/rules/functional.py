r"""Rules of linear layers as pure functions of tensors.

LRP is *modified Gradient x Input* (Arras et al. 2025, section 2.7 and appendix D): the forward
value of a layer is unchanged, a few layers get another backward slope, and the relevance of
any tensor is then ``value * gradient``. All functions here therefore have the same shape: they
return the forward value unchanged, bit by bit, with the gradient of the rule.

Notation in the docstrings: ``z`` the value of a layer, ``R_z = z * df/dz`` its relevance for the
explained value ``f``; ``[.]`` marks a factor held constant in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Relay(torch.autograd.Function):
    """The value of one tensor with the gradient of ``slope * (another tensor)``."""

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run the function, without looking up the signature of ``forward``.

        PyTorch's own ``apply`` looks it up at each call to bind the
        arguments, which takes several times as long as the rest, and does nothing else outside
        of transforms.
        """
        if torch._C._are_functorch_transforms_active():  # noqa: SLF001 - no public name
            return super().apply(*args)  # type: ignore[no-untyped-call]
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]

    @staticmethod
    def forward(_source: Tensor, value: Tensor, _slope: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None, None


def relay(source: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Return ``value`` unchanged, with the backward slope ``slope`` towards ``source``.

    Args:
        source: The tensor that receives ``grad * slope``.
        value: The forward value, of the same shape; no gradient flows into it.
        slope: Constant factor, broadcastable to ``source``.

    Returns:
        A tensor equal to ``value`` bit by bit.
    """
    if not (torch.is_grad_enabled() and source.requires_grad):
        return value
    relayed: Tensor = _Relay.apply(source, value.detach(), slope.detach())
    return relayed


def signed_ratio(numerator: Tensor, denominator: Tensor, stabilizer: float = 0.0) -> Tensor:
    """``numerator / (denominator + stabilizer * sign(denominator))`` with ``sign(0) = +1``.

    Where the stabilized denominator is exactly 0 the ratio is 0: nothing is left to distribute.
    """
    sign = torch.where(denominator >= 0, 1.0, -1.0).to(denominator.dtype)
    stabilized = denominator + stabilizer * sign
    zero = stabilized == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, stabilized))


def epsilon(z: Tensor, stabilizer: float) -> Tensor:
    """LRP-epsilon of a linear layer: ``R_i = sum_j x_i w_ij / (z_j + eps sign(z_j)) R_j``.

    The layer becomes ``z * [z / (z + eps sign(z))]`` (Bach et al. 2015; Arras et al. 2025, appendix
    D.1), which damps the relevance of small outputs. With epsilon = 0 the layer is left alone:
    Gradient x Input of a linear layer *is* the rule, up to the share of its bias.

    Args:
        z: Output of the linear layer, with its ordinary gradient.
        stabilizer: epsilon >= 0, in units of ``z``.

    Returns:
        ``z``, with the damped gradient.
    """
    if stabilizer == 0:
        return z
    return relay(z, z, signed_ratio(z.detach(), z.detach(), stabilizer))


Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``apply(x, weight, bias)``: a linear layer or convolution as a function of all three."""


def _signed_parts(
    apply: Apply, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sums of the positive and of the negative contributions ``x_i w_ij`` and ``b_j``."""
    positive_x = x.relu()  # unlike clamp or where, it needs no rule itself
    negative_x = x - positive_x
    positive_w, negative_w = weight.clamp(min=0), weight.clamp(max=0)
    positive_b = None if bias is None else bias.clamp(min=0)
    negative_b = None if bias is None else bias.clamp(max=0)
    positive = apply(positive_x, positive_w, positive_b) + apply(negative_x, negative_w, None)
    negative = apply(positive_x, negative_w, negative_b) + apply(negative_x, positive_w, None)
    return positive, negative


def alpha1_beta0(
    apply: Apply, x: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """LRP-alpha1-beta0: ``R_i = sum_j (x_i w_ij)^+ / z_j^+ R_j``.

    The layer becomes ``z^+ * [z / z^+]`` with ``z_j^+ = sum_i (x_i w_ij)^+ + b_j^+``, and a
    constant where ``z_j^+ = 0`` (Bach et al. 2015; Arras et al. 2025, appendix D.2). Conserves up
    to the share of ``b^+``, and up to outputs without a positive contribution.

    Args:
        apply: Computes the layer from input, weight and bias.
        x: Its input.
        value: Its output.
        weight: Its weight.
        bias: Its bias, or None.

    Returns:
        ``value``, with the gradient of the rule.
    """
    positive, _ = _signed_parts(apply, x, weight, bias)
    return relay(positive, value, signed_ratio(value.detach(), positive.detach()))


def gamma(
    apply: Apply,
    x: Tensor,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strength: float,
) -> Tensor:
    """Generalized LRP-gamma: contributions of the sign of the output count ``1 + gamma`` times.

    ``R_i = sum_j (x_i w_ij + gamma (x_i w_ij)^s) / (z_j + gamma z_j^s) R_j`` where ``s`` is the
    sign of ``z_j`` and ``z_j^s`` the sum of the contributions of that sign, the bias among them
    (Montavon et al. 2019 for non-negative inputs; generalized to signed ones as in Achtibat et al.
    2024). The denominator has the sign of ``z_j`` and is never smaller, so no stabilizer is needed.
    Conserves up to the share of the bias.

    Args:
        apply: Computes the layer from input, weight and bias.
        x: Its input.
        value: Its output.
        weight: Its weight.
        bias: Its bias, or None.
        strength: gamma >= 0; 0 is epsilon = 0, infinity is alpha1-beta0 for positive outputs.

    Returns:
        ``value``, with the gradient of the rule.
    """
    positive, negative = _signed_parts(apply, x, weight, bias)
    favoured = torch.where(value.detach() >= 0, positive, negative)
    biased = positive + negative + strength * favoured
    return relay(biased, value, signed_ratio(value.detach(), biased.detach()))
