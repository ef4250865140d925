"""Small modules that no library declares, written as people write them.

Every parameter is random; ``zero_biases`` makes everything zero that a module adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from plain_functions import ACTIVATIONS, HIDING, NORMS, WIDTH
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH: Final = 5
VOCABULARY: Final = 11


@dataclass(frozen=True)
class Plain:
    """A module with what it is called with.

    Attributes:
        build: Makes the module.
        inputs: ``"embeddings"``, ``"ids"`` or ``"pixels"``.
        target: An index into its output, without the batch.
        arguments: What it takes after the inputs.
    """

    build: Callable[[], nn.Module]
    inputs: str = "embeddings"
    target: Any = (-1, 3)
    arguments: tuple[Any, ...] = ()

    def module(self, *, zero_biases: bool = False) -> nn.Module:
        """The module, with random parameters in float64, in evaluation mode."""
        module = self.build()
        randomize(module, zero_biases=zero_biases)
        return module.double().eval()

    def batch(self) -> Tensor:
        """Two examples."""
        generator = torch.Generator().manual_seed(1)
        if self.inputs == "ids":
            return torch.randint(0, VOCABULARY, (2, LENGTH), generator=generator)
        shape = (2, 3, 8, 8) if self.inputs == "pixels" else (2, LENGTH, WIDTH)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


def randomize(module: nn.Module, *, zero_biases: bool) -> None:
    """Give every parameter and running statistic a value of a sensible size, in place."""
    generator = torch.Generator().manual_seed(0)
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name, tensor in state.items():
            if not tensor.is_floating_point() or "mask" in name:
                continue
            value = torch.randn(tensor.shape, generator=generator)
            if "bias" in name or name.endswith("running_mean"):
                value *= 0.0 if zero_biases else 0.3
            elif name.endswith("running_var"):
                value = 0.5 + value.abs()
            elif tensor.ndim == 1:
                value = 1 + 0.3 * value
            else:
                value *= tensor[0].numel() ** -0.5
            tensor.copy_(value)


# Attention ----------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """``nn.MultiheadAttention`` on one sequence."""

    def __init__(self, *, need_weights: bool, **options: Any) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **options)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend from ``[B, T, D]`` to itself."""
        y, _ = self.attention(x, x, x, need_weights=self.need_weights, key_padding_mask=padding)
        return y


class FunctionalAttention(nn.Module):
    """``F.multi_head_attention_forward``, with weights that belong to no module of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * WIDTH, WIDTH))
        self.bias = nn.Parameter(torch.empty(3 * WIDTH))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from ``[B, T, D]`` to itself."""
        x = x.transpose(0, 1)
        y, _ = F.multi_head_attention_forward(
            x, x, x, WIDTH, 2, self.weight, self.bias, None, None, False, 0.0,
            self.out.weight, self.out.bias, training=False,
        )  # fmt: skip
        return y.transpose(0, 1)


class EinsumAttention(nn.Module):
    """Attention by einsum, over a norm written out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(WIDTH))
        self.qkv = nn.Parameter(torch.empty(3, 2, WIDTH, WIDTH // 2))
        self.out = nn.Parameter(torch.empty(2, WIDTH // 2, WIDTH))
        self.out_bias = nn.Parameter(torch.empty(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Attend causally, beside a residual connection."""
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale
        q, k, v = torch.einsum("btd,nhde->nbhte", normed, self.qkv)
        scores = torch.einsum("bhqe,bhke->bhqk", q, k) / math.sqrt(WIDTH // 2)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        mixed = torch.einsum("bhqk,bhke->bhqe", weights, v)
        return x + torch.einsum("bhqe,hed->bqd", mixed, self.out) + self.out_bias


# Blocks -------------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        with torch.no_grad():
            inner = function(torch.zeros(1, 12)).shape[-1]
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(inner, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it beside a residual connection."""
        return x + self.down(self.function(self.up(x)))


class Normed(nn.Module):
    """A linear layer over a norm."""

    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(torch.empty(WIDTH))
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it beside a residual connection."""
        return x + self.linear(self.norm(x) * self.weight)


# Models -------------------------------------------------------------------------------------------


class NanoBlock(nn.Module):
    """A block of a small GPT with everything inline."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = Mlp(function)
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH).tril().bool(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then the MLP."""
        batch, length, width = x.shape
        heads = self.qkv(self.norms[0](x)).view(batch, length, 6, width // 2).transpose(1, 2)
        q, k, v = heads.split(2, dim=1)
        scores = q @ k.transpose(-2, -1) * (width // 2) ** -0.5
        scores = scores.masked_fill(self.mask[:length, :length] == 0, float("-inf"))
        mixed = F.dropout(F.softmax(scores, dim=-1), 0.1, self.training) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norms[1](x))


class NanoGpt(nn.Module):
    """A small GPT whose head is its embedding; ids in, logits out."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.bias_of_positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(NanoBlock(function) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[B, T, V]``."""
        x = self.tokens(ids) + self.bias_of_positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class SentenceCnn(nn.Module):
    """Convolutions of several widths over embeddings, as for sentiment; ids in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv2d(1, 6, (width, WIDTH)) for width in (2, 3, 4))
        self.fc, self.dropout = nn.Linear(18, 2), nn.Dropout(0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[B, 2]``."""
        embedded = self.embedding(ids).unsqueeze(1)
        maps = [F.relu(conv(embedded)).squeeze(3) for conv in self.convs]
        pooled = [F.max_pool1d(each, each.shape[2]).squeeze(2) for each in maps]
        return self.fc(self.dropout(torch.cat(pooled, dim=1)))


class ResidualBlock(nn.Module):
    """Two convolutions, batch norms and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """As in a ResNet."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)


class ResNet(nn.Module):
    """A small one; pixels in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(ResidualBlock(4, 6, 2), ResidualBlock(6, 6, 1))
        self.fc = nn.Linear(6, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[B, 4]``."""
        x = self.blocks(self.pool(self.stem(pixels)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class StyleNet(nn.Module):
    """Convolutions with norms of single images, with weights and without, of rows and of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.norms = nn.ModuleList([nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm2d(4)])
        self.kept = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """Channels ``[B, 4]``."""
        x = F.relu(self.norms[0](self.first(pixels)))
        x = F.gelu(self.norms[1](self.second(x)))
        return self.kept(x.flatten(2)).amax(-1)


class Mixer(nn.Module):
    """An MLP along the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(LENGTH, 6), nn.GELU(), nn.Linear(6, LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it beside a residual connection."""
        return x + self.mlp(self.norm(x).transpose(1, 2)).transpose(1, 2)


class SqueezeExcitation(nn.Module):
    """Channels gated by what all pixels say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, 2)
        self.gate = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4), nn.Sigmoid())

    def forward(self, pixels: Tensor) -> Tensor:
        """Channels ``[B, 4]``."""
        x = self.conv(pixels)
        return (x * self.gate(x.mean((2, 3)))[..., None, None]).amax((2, 3))


class AdditiveAttention(nn.Module):
    """Scores by a tanh, as before transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 6), nn.Linear(6, 1)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from ``[B, T, D]`` to itself."""
        scores = self.v(torch.tanh(self.q(x)[:, :, None] + self.k(x)[:, None])).squeeze(-1)
        return self.out(scores.softmax(-1) @ x)


class LinearAttention(nn.Module):
    """Attention without a softmax: features of queries and keys, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from ``[B, T, D]`` to itself."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        mixed = torch.einsum("btd,bde->bte", q, torch.einsum("bsd,bse->bde", k, v))
        return self.out(mixed / torch.einsum("btd,bd->bt", q, k.sum(1))[..., None])


class Recurrent(nn.Module):
    """A recurrent cell, step by step."""

    def __init__(self, kind: type[nn.LSTMCell | nn.GRUCell | nn.RNNCell]) -> None:
        super().__init__()
        self.cell = kind(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """The state ``[B, D]`` after the last step."""
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class Unrolled(nn.Module):
    """A recurrent layer as a whole."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU | nn.RNN], **options: Any) -> None:
        super().__init__()
        self.layer = kind(WIDTH, WIDTH, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Its outputs ``[B, T, D]``."""
        return self.layer(x)[0]


def encoder(**options: Any) -> nn.TransformerEncoder:
    """Two layers of PyTorch's own encoder."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


PADDING: Final = torch.tensor([[False] * LENGTH, [False] * 3 + [True] * 2])

PLAIN: Final[dict[str, Plain]] = {
    "encoder": Plain(encoder, target=(0, 3)),
    "encoder-pre-norm-gelu": Plain(lambda: encoder(norm_first=True, activation="gelu")),
    "encoder-padded": Plain(
        lambda: encoder(activation="gelu"), target=(0, 3), arguments=(None, PADDING)
    ),
    "encoder-padded-pre-norm": Plain(
        lambda: encoder(norm_first=True), target=(0, 3), arguments=(None, PADDING)
    ),
    "encoder-of-two": Plain(lambda: nn.TransformerEncoder(encoder().layers[0], 2)),
    "mixer": Plain(Mixer),
    "squeeze-excitation": Plain(SqueezeExcitation, "pixels", 1),
    "additive-attention": Plain(AdditiveAttention),
    "linear-attention": Plain(LinearAttention),
    "attention": Plain(lambda: SelfAttention(need_weights=False)),
    "attention-weights": Plain(lambda: SelfAttention(need_weights=True)),
    "attention-padded": Plain(
        lambda: SelfAttention(need_weights=False), target=(0, 3), arguments=(PADDING,)
    ),
    "functional-attention": Plain(FunctionalAttention),
    "einsum-attention": Plain(EinsumAttention),
    "sentence-cnn": Plain(SentenceCnn, "ids", 1),
    "resnet": Plain(ResNet, "pixels", 2),
    "instance-norms": Plain(StyleNet, "pixels", 2),
    "rnn-relu": Plain(lambda: Unrolled(nn.RNN, nonlinearity="relu")),
    **{
        f"nano-gpt-{name}": Plain(lambda name=name: NanoGpt(ACTIVATIONS[name]), "ids")
        for name in ("gelu_erf", "gelu_tanh", "squared_relu", "swiglu")
    },
    **{
        f"mlp-{name}": Plain(lambda function=function: Mlp(function))
        for name, function in ACTIVATIONS.items()
    },
    **{f"norm-{name}": Plain(lambda norm=norm: Normed(norm)) for name, norm in NORMS.items()},
}

REFUSED: Final[dict[str, Plain]] = {
    "lstm_cell": Plain(lambda: Recurrent(nn.LSTMCell), target=3),
    "gru_cell": Plain(lambda: Recurrent(nn.GRUCell), target=3),
    "rnn_tanh_cell": Plain(lambda: Recurrent(nn.RNNCell), target=3),
    "lstm": Plain(lambda: Unrolled(nn.LSTM)),
    "gru": Plain(lambda: Unrolled(nn.GRU)),
    "rnn_tanh": Plain(lambda: Unrolled(nn.RNN)),
    **{name: Plain(lambda function=function: Mlp(function)) for name, function in HIDING.items()},
}
"""What a refusal names -> a module that does it."""
