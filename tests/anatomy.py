"""Where the tiny families of :mod:`models` keep their parts, for the tests alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    Features = slice | Tensor | None


@dataclass(frozen=True)
class _Paths:
    """Paths in the model, and in a block.

    Attributes:
        blocks: The list of blocks.
        attention: The attention of a block.
        projections: For query, key and value; one path if they are fused.
        mixed: The linear layer that mixes the heads.
        norms: Of attention and MLP.
        activation: Of the MLP.
        inputs: The linear layers that an MLP begins with, the gate first.
        output: The one that it ends with.
        positions: The table of positions.
    """

    blocks: str
    attention: str
    projections: tuple[str, ...]
    mixed: str
    norms: tuple[str, str]
    activation: str
    inputs: tuple[str, ...]
    output: str
    positions: str | None = None


_BERT = _Paths(
    "bert.encoder.layer",
    "attention.self",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    ("attention.output.LayerNorm", "output.LayerNorm"),
    "intermediate.intermediate_act_fn",
    ("intermediate.dense",),
    "output.dense",
    "bert.embeddings.position_embeddings",
)
_LLAMA = _Paths(
    "model.layers",
    "self_attn",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj",
    ("input_layernorm", "post_attention_layernorm"),
    "mlp.act_fn",
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
)
_FAMILIES = {
    "bert": _BERT,
    "roberta": replace(
        _BERT, blocks="roberta.encoder.layer", positions="roberta.embeddings.position_embeddings"
    ),
    "distilbert": _Paths(
        "distilbert.transformer.layer",
        "attention",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.out_lin",
        ("sa_layer_norm", "output_layer_norm"),
        "ffn.activation",
        ("ffn.lin1",),
        "ffn.lin2",
        "distilbert.embeddings.position_embeddings",
    ),
    "gpt2": _Paths(
        "transformer.h",
        "attn",
        ("attn.c_attn",),
        "attn.c_proj",
        ("ln_1", "ln_2"),
        "mlp.act",
        ("mlp.c_fc",),
        "mlp.c_proj",
        "transformer.wpe",
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    "opt": _Paths(
        "model.decoder.layers",
        "self_attn",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.out_proj",
        ("self_attn_layer_norm", "final_layer_norm"),
        "activation_fn",
        ("fc1",),
        "fc2",
        "model.decoder.embed_positions",
    ),
    "bloom": _Paths(
        "transformer.h",
        "self_attention",
        ("self_attention.query_key_value",),
        "self_attention.dense",
        ("input_layernorm", "post_attention_layernorm"),
        "mlp.gelu_impl",
        ("mlp.dense_h_to_4h",),
        "mlp.dense_4h_to_h",
    ),
}


class Projection(NamedTuple):
    """A projection, and which of its output features are meant."""

    module: nn.Module
    features: Features

    def part(self, tensor: Tensor) -> Tensor:
        """The features of a tensor ``[..., F]`` that it gave, or its relevance."""
        return tensor if self.features is None else tensor[..., self.features]


class Block(NamedTuple):
    """The parts of a block; ``gate`` is None where the MLP has none."""

    module: nn.Module
    attention: nn.Module
    query: Projection
    key: Projection
    value: Projection
    mixed: nn.Module
    norms: tuple[nn.Module, ...]
    gate: nn.Module | None
    up: nn.Module
    activation: nn.Module
    output: nn.Module


def blocks_of(model: Any) -> list[Block]:
    """The blocks of a tiny model, with their parts."""
    paths = _FAMILIES[model.config.model_type]
    return [_block(model, paths, module) for module in model.get_submodule(paths.blocks)]


def positions_of(model: Any) -> nn.Module | None:
    """The table of absolute positions; None if a family has none."""
    path = _FAMILIES[model.config.model_type].positions
    return None if path is None else model.get_submodule(path)


def _block(model: Any, paths: _Paths, module: nn.Module) -> Block:
    part = module.get_submodule
    if len(paths.projections) == 3:
        projections = [Projection(part(path), None) for path in paths.projections]
    else:
        fused = part(paths.projections[0])
        projections = [Projection(fused, each) for each in _thirds(model)]
    *gate, up = (part(path) for path in paths.inputs)
    return Block(
        module,
        part(paths.attention),
        *projections,
        mixed=part(paths.mixed),
        norms=tuple(part(path) for path in paths.norms),
        gate=gate[0] if gate else None,
        up=up,
        activation=part(paths.activation),
        output=part(paths.output),
    )


def _thirds(model: Any) -> list[Features]:
    """The features of queries, keys and values among those of a fused projection."""
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    if model.config.model_type == "gpt2":
        return [slice(width * third, width * (third + 1)) for third in range(3)]
    by_head = torch.arange(3 * width).view(heads, 3, -1)  # BLOOM: query, key and value of a head
    return [by_head[:, third].flatten() for third in range(3)]
