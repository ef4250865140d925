"""Norms and activations as people write them, each a function of one tensor ``[B, T, D]``."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

WIDTH: Final = 8
"""The size of what a norm is over."""

# Norms --------------------------------------------------------------------------------------------


def layer_norm(x: Tensor) -> Tensor:
    """With the biased variance."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)


def layer_norm_by_var(x: Tensor) -> Tensor:
    """With ``torch.var``."""
    variance = x.var(-1, unbiased=False, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) / (variance + 1e-5) ** 0.5


def layer_norm_by_std(x: Tensor) -> Tensor:
    """As the Annotated Transformer writes it."""
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


def layer_norm_by_var_mean(x: Tensor) -> Tensor:
    """With both moments from one call."""
    variance, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
    return (x - mean) * (variance + 1e-5).rsqrt()


def layer_norm_by_std_mean(x: Tensor) -> Tensor:
    """The same with the standard deviation."""
    deviation, mean = torch.std_mean(x, -1, unbiased=False, keepdim=True)
    return (x - mean) / (deviation + 1e-6)


def scaled_by_norm_of_mean(x: Tensor) -> Tensor:
    """A mean beside its variance that is not taken off, but added."""
    variance, mean = torch.var_mean(x, -1, keepdim=True)
    return (x + mean) / torch.sqrt(variance + 1e-5)


def rms_norm(x: Tensor) -> Tensor:
    """As LLaMA writes it."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def rms_norm_by_norm(x: Tensor) -> Tensor:
    """By the norm of a vector."""
    return x / (x.norm(dim=-1, keepdim=True) * WIDTH**-0.5 + 1e-6)


def rms_norm_by_product(x: Tensor) -> Tensor:
    """By the product of a vector with itself."""
    return x / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt()


def rms_norm_by_matmul(x: Tensor) -> Tensor:
    """By the dot product of a vector with itself."""
    squared = torch.einsum("btd,btd->bt", x, x)
    return x / (squared / WIDTH + 1e-6).sqrt().unsqueeze(-1)


NORMS: Final = {
    **{
        norm.__name__: norm
        for norm in (
            layer_norm, layer_norm_by_var, layer_norm_by_std, layer_norm_by_var_mean,
            layer_norm_by_std_mean, scaled_by_norm_of_mean, rms_norm, rms_norm_by_norm,
            rms_norm_by_product, rms_norm_by_matmul,
        )
    },
    "F.normalize": lambda x: F.normalize(x, dim=-1),
    "F.normalize-l1": lambda x: F.normalize(x, p=1, dim=-1),
    "F.layer_norm": lambda x: F.layer_norm(x, (WIDTH,)),
    "F.rms_norm": lambda x: F.rms_norm(x, (WIDTH,)),
    "F.instance_norm": lambda x: F.instance_norm(x.transpose(1, 2)).transpose(1, 2),
    "F.group_norm": lambda x: F.group_norm(x.transpose(1, 2), 2).transpose(1, 2),
}  # fmt: skip

# Activations --------------------------------------------------------------------------------------


def gelu_erf(z: Tensor) -> Tensor:
    """GELU, written out."""
    return z * 0.5 * (1.0 + torch.erf(z / math.sqrt(2.0)))


def gelu_tanh(z: Tensor) -> Tensor:
    """Its approximation, as nanoGPT had it."""
    return 0.5 * z * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * torch.pow(z, 3))))


def quick_gelu(z: Tensor) -> Tensor:
    """CLIP's."""
    return z * torch.sigmoid(1.702 * z)


def mish(z: Tensor) -> Tensor:
    """Mish, written out."""
    return z * torch.tanh(F.softplus(z))


def squared_relu(z: Tensor) -> Tensor:
    """Primer's."""
    return F.relu(z).square()


def relu_times_relu(z: Tensor) -> Tensor:
    """The same as a product."""
    z = F.relu(z)
    return z * z


def swiglu(z: Tensor) -> Tensor:
    """SwiGLU by chunk."""
    gate, up = z.chunk(2, dim=-1)
    return F.silu(gate) * up


def silu_glu_written_out(z: Tensor) -> Tensor:
    """The same with its SiLU written out."""
    gate, up = z.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def geglu(z: Tensor) -> Tensor:
    """GEGLU, activated half last."""
    up, gate = z.split(z.shape[-1] // 2, dim=-1)
    return up * F.gelu(gate)


def glu(z: Tensor) -> Tensor:
    """One operator."""
    return F.glu(z, dim=-1)


def glu_by_hand(z: Tensor) -> Tensor:
    """The same, by hand."""
    up, gate = z.chunk(2, dim=-1)
    return up * torch.sigmoid(gate)


def tanh_overwritten(z: Tensor) -> Tensor:
    """An activation whose input is used for something else afterwards."""
    y = torch.tanh(z)
    z.mul_(3)
    return y + 0.1 * z


ACTIVATIONS: Final = {
    "gelu_erf": gelu_erf,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "mish": mish,
    "squared_relu": squared_relu,
    "relu_times_relu": relu_times_relu,
    "swiglu": swiglu,
    "silu_glu_written_out": silu_glu_written_out,
    "geglu": geglu,
    "glu": glu,
    "glu_by_hand": glu_by_hand,
    "tanh": torch.tanh,
    "softsign": F.softsign,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "clamp": lambda z: z.clamp(-0.4, 0.7),
    "hardswish": F.hardswish,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "silu_in_place": lambda z: F.silu(2 * z, inplace=True),
    "tanh_in_place": lambda z: (2 * z).tanh_(),
    "relu_in_place": lambda z: F.relu(z, inplace=True),
    "tanh_overwritten": tanh_overwritten,
}


HIDING: Final = {
    "tanhshrink": F.tanhshrink,
    "silu": lambda z: F.silu(z, inplace=True),
    "tanh_": lambda z: z.tanh_(),
    "scatter_reduce": lambda z: torch.zeros_like(z).scatter_reduce(
        -1, torch.zeros_like(z, dtype=torch.long), z, "prod", include_self=False
    ),
    "renorm": lambda z: torch.renorm(z, 2, 0, 0.1),
    "sin": lambda z: z + torch.sin(z),
    "var_mean": lambda z: z + torch.var_mean(z, -1, keepdim=True)[0],
    "batch_norm": lambda z: torch.batch_norm(z, None, None, None, None, True, 0.1, 1e-5, False),
}
"""Functions that cannot be seen through, by the name that a refusal has."""
