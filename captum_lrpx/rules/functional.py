r"""The backward rules as pure functions on tensors.

LRP is *modified Gradient x Input* (Arras et al. 2025, section 2.7 and appendix D): the forward
value of a layer stays what it is, a few layers get another backward slope, and the relevance of
any tensor is then ``value * gradient``. Everything here therefore has the same shape: a function
that returns the forward value unchanged, bit by bit, and whose gradient is that of the rule.

Notation in the docstrings: ``z`` the value of a layer, ``R_z = z * df/dz`` its relevance for the
explained value ``f``; ``[.]`` marks what is held constant in the backward pass.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx.rules.own_backward import OwnBackward

__all__ = [
    "CONSTANT_WEIGHTS",
    "UNIFORM_ATTENTION",
    "UNIFORM_SHARE",
    "AttentionShares",
    "alpha1_beta0",
    "epsilon",
    "frozen_norm",
    "gamma",
    "gated_product",
    "identity",
    "relay",
    "scale_gradient",
    "signed_ratio",
]

UNIFORM_SHARE: Final = 0.5
"""Uniform rule for a product ``z = a * b``: ``R_a = R_b = R_z / 2``.

The layer becomes ``0.5 a b + [0.5 a b]``: the gradient of the product is halved (Arras et al. 2025,
section 2.7; Achtibat et al. 2024, proposition 3.3). The product may be element-wise or a matrix
product. Conserves."""


class AttentionShares(NamedTuple):
    """What the gradients of the three projections of an attention are multiplied by.

    The rescaling of the scores, rotary embeddings and query/key norms with a frozen scale are
    linear, so the factors may be applied before or after them.

    Attributes:
        query: Factor of the query; 0 holds it constant.
        key: Factor of the key.
        value: Factor of the value.
    """

    query: float
    key: float
    value: float


CONSTANT_WEIGHTS: Final = AttentionShares(query=0.0, key=0.0, value=1.0)
"""Attention with its weights held constant, ``[A] V``: all relevance goes to the values.

Signal-take-all, ``R_signal = R_z`` and ``R_gate = 0`` for ``z = signal * [gate]``, at the product
of attention (Ali et al. 2022; Arras et al. 2017, 2019; Arras et al. 2025, appendix D.4).
Conserves."""

UNIFORM_ATTENTION: Final = AttentionShares(
    query=UNIFORM_SHARE**2, key=UNIFORM_SHARE**2, value=UNIFORM_SHARE
)
"""AttnLRP's attention (Achtibat et al. 2024): 1/4, 1/4 and 1/2.

The uniform rule at ``A V`` halves the gradient of both factors, and the uniform rule at ``Q K^T``
halves that of the query and of the key once more, while the softmax between them keeps its ordinary
gradient (Arras et al. 2025, appendix D.6). Does not conserve: the softmax has a bias-like term.
With ``s`` the scores and ``d`` gradients, what leaks per row is
``sum_k A_k dA_k - sum_k s_k ds_k``."""


class _Relay(OwnBackward):
    """The value of one tensor with the gradient of ``slope * (another tensor)``."""

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


class _ScaleGradient(OwnBackward):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(x: Tensor, _factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


class _FrozenNorm(OwnBackward):
    """The value of a normalization, with the gradient of its scale held constant."""

    @staticmethod
    def forward(
        x: Tensor,  # noqa: ARG004 - the tensor that receives the gradient
        value: Tensor,
        scale: Tensor,  # noqa: ARG004 - kept for the backward pass by setup_context
        weight: Tensor | None,  # noqa: ARG004
        bias: Tensor | None,  # noqa: ARG004 - the other tensor that receives a gradient
        center: int,  # noqa: ARG004
    ) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, _, scale, weight, bias, ctx.center = inputs
        ctx.dtype = x.dtype
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.save_for_backward(scale, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale, weight = ctx.saved_tensors
        bias_grad = grads[0].sum_to_size(ctx.bias_shape) if ctx.needs_input_grad[4] else None
        grad = grads[0].to(scale.dtype)
        grad = grad * scale if weight is None else (grad * weight).mul_(scale)
        if ctx.center:
            grad -= grad.mean(dim=tuple(range(-ctx.center, 0)), keepdim=True)
        return grad.to(ctx.dtype), None, None, None, bias_grad, None


class _GatedProduct(OwnBackward):
    """The value of a product with given slopes towards its two factors."""

    @staticmethod
    def forward(
        _z: Tensor, _signal: Tensor, product: Tensor, _value: Tensor, _of_z: Tensor
    ) -> Tensor:
        return product.view_as(product)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, of_z = ctx.saved_tensors
        return grads[0] * of_z, grads[0] * value, None, None, None


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


def scale_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """Return ``x`` unchanged, with its gradient multiplied by ``factor``.

    Args:
        x: Any tensor.
        factor: A number, or a tensor that broadcasts to ``x`` (one factor per feature).

    Returns:
        A tensor equal to ``x`` bit by bit.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x
    if isinstance(factor, Tensor):
        return relay(x, x, factor)
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


def identity(z: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Identity rule of an element-wise activation: ``R_z = R_g(z)``.

    The layer becomes ``z * [g(z) / z]`` (Arras et al. 2025, appendix D.3). Conserves wherever
    ``g(0) = 0``.

    Args:
        z: Pre-activation.
        value: ``g(z)`` as the model computed it.
        slope: The secant slope ``g(z) / z``, with its limit ``g'(0)`` at ``z = 0`` (see
            :mod:`captum_lrpx.rules.slopes`).

    Returns:
        ``value``, with the backward slope ``slope``.
    """
    return relay(z, value, slope)


def frozen_norm(
    x: Tensor,
    value: Tensor,
    *,
    weight: Tensor | None,
    eps: float,
    center: int,
    dims: int = 1,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """LayerNorm or RMSNorm with its scale held constant (Arras et al. 2025, appendix D.5).

    ``weight * (x - mean(x)) / [std(x)] + bias`` for LayerNorm, ``weight * x / [rms(x)]`` for
    RMSNorm: what is left is a linear layer. Conserves up to the share of the bias (the ``beta`` of
    LayerNorm). Ali et al. 2022 introduced the rule. A row of zero variance has the finite scale
    ``1 / sqrt(eps)``.

    Args:
        x: Input, the last ``dims`` dimensions are normalized.
        value: The output of the module itself.
        weight: The module's effective weight (``1 + w`` where the family computes it so), or None.
        eps: The module's epsilon, inside the square root.
        center: Number of trailing dimensions whose mean is subtracted; 0 for RMSNorm.
        dims: Number of trailing dimensions over which the scale is computed.
        bias: The module's bias, if its relevance is asked for: it gets its gradient.
        scale: ``1 / std`` or ``1 / rms``, one per normalized row, if it is known already.

    Returns:
        ``value``, with the gradient of the frozen normalization.
    """
    wanted = x.requires_grad or (bias is not None and bias.requires_grad)
    if not (torch.is_grad_enabled() and wanted):
        return value
    if scale is None:
        scale = _inverse_scale(x.detach(), eps, center=bool(center), dims=dims)
    frozen: Tensor = _FrozenNorm.apply(x, value.detach(), scale, weight, bias, center)
    return frozen


def _inverse_scale(x: Tensor, eps: float, *, center: bool, dims: int) -> Tensor:
    """``1 / sqrt(mean square + eps)`` over the last dimensions, kept as dimensions of size 1."""
    # Half precisions are normalized in float32 by PyTorch and by transformers alike.
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    over = tuple(range(-dims, 0))
    if center:
        wide = wide - wide.mean(dim=over, keepdim=True)
    size = math.prod(x.shape[-dims:])
    norm = torch.linalg.vector_norm(wide, dim=over, keepdim=True)  # one pass, no temporary
    scale: Tensor = norm.square_().div_(size).add_(eps).rsqrt_()
    return scale


def gated_product(
    z: Tensor, signal: Tensor, product: Tensor, value: Tensor, slope: Tensor
) -> Tensor:
    """A gated product ``g(z) * signal`` with the identity rule of its activation, in one operation.

    The layer becomes ``z * signal * [g(z) / z]``: each of ``z`` and ``signal`` gets the relevance
    of the product. With the uniform rule (:data:`UNIFORM_SHARE`) each gets half of it.

    Args:
        z: Pre-activation of the gate.
        signal: The other factor.
        product: ``g(z) * signal`` as the model computed it; its graph, if it has one, is kept
            for those who look, and no gradient flows into it.
        value: ``g(z)``.
        slope: The secant slope ``g(z) / z`` as in :func:`identity`.

    Returns:
        ``product``, with the gradients ``slope * signal`` and ``value``.
    """
    of_z = slope.detach() * signal.detach()
    gated: Tensor = _GatedProduct.apply(z, signal, product, value.detach(), of_z)
    return gated


def signed_ratio(numerator: Tensor, denominator: Tensor, stabilizer: float = 0.0) -> Tensor:
    """``numerator / (denominator + stabilizer * sign(denominator))`` with ``sign(0) = +1``.

    Where the stabilized denominator is exactly 0 the ratio is 0: there is nothing to distribute.
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
    return scale_gradient(z, signed_ratio(z.detach(), z.detach(), stabilizer))


def _signed_parts(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums of the positive and of the negative contributions ``x_i w_ij`` and ``b_j``."""
    positive_x, negative_x = x.clamp(min=0), x.clamp(max=0)
    positive_w, negative_w = weight.clamp(min=0), weight.clamp(max=0)
    positive_b = None if bias is None else bias.clamp(min=0)
    negative_b = None if bias is None else bias.clamp(max=0)
    positive = F.linear(positive_x, positive_w, positive_b) + F.linear(negative_x, negative_w)
    negative = F.linear(positive_x, negative_w, negative_b) + F.linear(negative_x, positive_w)
    return positive, negative


def alpha1_beta0(x: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """LRP-alpha1-beta0: ``R_i = sum_j (x_i w_ij)^+ / z_j^+ R_j``.

    The layer becomes ``z^+ * [z / z^+]`` with ``z_j^+ = sum_i (x_i w_ij)^+ + b_j^+``, and a
    constant where ``z_j^+ = 0`` (Bach et al. 2015; Arras et al. 2025, appendix D.2). Conserves up
    to the share of ``b^+``, and up to outputs without a positive contribution.

    Args:
        x: Input ``[..., I]``.
        value: Output ``[..., O]`` of the layer itself.
        weight: ``[O, I]``.
        bias: ``[O]`` or None.

    Returns:
        ``value``, with the gradient of the rule.
    """
    positive, _ = _signed_parts(x, weight, bias)
    return relay(positive, value, signed_ratio(value.detach(), positive.detach()))


def gamma(x: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None, strength: float) -> Tensor:
    """Generalized LRP-gamma: contributions of the sign of the output count ``1 + gamma`` times.

    ``R_i = sum_j (x_i w_ij + gamma (x_i w_ij)^s) / (z_j + gamma z_j^s) R_j`` where ``s`` is the
    sign of ``z_j`` and ``z_j^s`` the sum of the contributions of that sign, the bias among them
    (Montavon et al. 2019 for non-negative inputs; generalized to signed ones as in Achtibat et al.
    2024). The denominator has the sign of ``z_j`` and is never smaller, so no stabilizer is needed.
    Conserves up to the share of the bias.

    Args:
        x: Input ``[..., I]``.
        value: Output ``[..., O]`` of the layer itself.
        weight: ``[O, I]``.
        bias: ``[O]`` or None.
        strength: gamma >= 0; 0 is epsilon = 0, infinity is alpha1-beta0 for positive outputs.

    Returns:
        ``value``, with the gradient of the rule.
    """
    positive, negative = _signed_parts(x, weight, bias)
    favoured = torch.where(value.detach() >= 0, positive, negative)
    biased = positive + negative + strength * favoured
    return relay(biased, value, signed_ratio(value.detach(), biased.detach()))
