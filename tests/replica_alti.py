"""ALTI-Logit as its formulas are written, on three models: every transformed vector is held.

For GQA with sandwich norms (Gemma 2), parallel branches (GPT-NeoX) and an encoder with a decoder
(BART, norms after the additions). Hidden states come from the modules of the model, one by one;
attention weights from the model itself; everything else is written out. One example at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LayerNorm = torch.nn.LayerNorm


@dataclass
class Block:
    """One attention.

    Attributes:
        vectors: From each position that is read to each that reads, by heads ``[H, T, S, D]``.
        residual: ``[T, D]``.
        result: ``[T, D]``, biases included.
        added: Result of the attention ``[T, D]``, a leaf.
        norm: The norm after the addition, or None.
        cross: Whether it reads from the other stream.
    """

    vectors: Tensor
    residual: Tensor
    result: Tensor
    added: Tensor
    norm: LayerNorm | None = None
    cross: bool = False

    def shares(self) -> tuple[Tensor, Tensor]:
        """Shares of the own positions ``[T, T]`` and of those of the other stream ``[T, S]``."""
        t = self.vectors.sum(0)
        tokens = len(self.residual)
        own = torch.diag_embed(self.residual.t()).permute(1, 2, 0)  # [T, T, D]
        t = torch.cat([own, t], 1) if self.cross else t + own
        if self.norm is not None:
            before = self.residual + self.added
            scale = (before.var(-1, unbiased=False) + self.norm.eps).rsqrt()
            t = (t - t.mean(-1, keepdim=True)) * self.norm.weight * scale[:, None, None]
        size = self.result.abs().sum(-1, keepdim=True)
        mass = (size - (t - self.result[:, None]).abs().sum(-1)).clamp(min=0)
        shares = mass / mass.sum(-1, keepdim=True)
        return shares[:, :tokens], shares[:, tokens:]


def frozen(norm: LayerNorm, x: Tensor) -> Tensor:
    """A layer norm whose scale is held."""
    scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt().detach()
    return (x - x.mean(-1, keepdim=True)) * scale * norm.weight + norm.bias


def vectors(weights: Tensor, values: Tensor, output: Tensor) -> Tensor:
    """``A v W`` by heads ``[H, T, S, D]``, of values ``[S, G z]`` and a matrix ``[D, H z]``."""
    heads, _, sources = weights.shape
    size = output.shape[1] // heads
    by_group = values.view(sources, -1, size).transpose(0, 1)
    by_head = by_group.repeat_interleave(heads // len(by_group), 0)
    matrix = output.t().reshape(heads, size, -1)
    return torch.einsum("hij,hjz,hzd->hijd", weights, by_head, matrix)


def source(x: Tensor) -> Tensor:
    """A leaf of the same value."""
    return x.detach().clone().requires_grad_()


def carried(blocks: list[Block], value: Tensor) -> list[Tensor]:
    """Contributions of the tokens through each block ``[H, T]``, of one stream."""
    gradients = torch.autograd.grad(value, [each.added for each in blocks], retain_graph=True)
    found = []
    for index, (block, gradient) in enumerate(zip(blocks, gradients, strict=True)):
        row = torch.einsum("hijd,id->hj", block.vectors, gradient)
        for below in reversed(blocks[:index]):
            row = row @ below.shares()[0]
        found.append(row)
    return found


# Gemma 2 ------------------------------------------------------------------------------------------


def _rms(norm, x):
    return (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt()


def gemma2(model, ids: Tensor, position: int, token: int) -> tuple[list[Tensor], list[Tensor]]:
    """Contributions through each block, and matrices."""
    weights = model(ids, output_attentions=True).attentions
    inner = model.model
    x = source(inner.embed_tokens(ids)[0])
    blocks = []
    for layer, attention in zip(inner.layers, weights, strict=True):
        attn = layer.self_attn
        with torch.no_grad():
            values = attn.v_proj(layer.input_layernorm(x))
            sent = vectors(attention[0], values, attn.o_proj.weight)
            found = sent.sum((0, 2))
            norm = layer.post_attention_layernorm
            sent = sent * (1 + norm.weight) * _rms(norm, found)[None, :, None]
        added = source(sent.sum((0, 2)))
        blocks.append(Block(sent, x.detach(), (x + added).detach(), added))
        x = x + added
        mlp = layer.mlp(layer.pre_feedforward_layernorm(x))
        x = x + layer.post_feedforward_layernorm(mlp).detach()
    scale = _rms(inner.norm, x).detach()
    value = (x * scale * (1 + inner.norm.weight))[position] @ model.lm_head.weight[token]
    cap = model.config.final_logit_softcapping
    value = value * (torch.tanh(value / cap) * cap / value).detach()
    return carried(blocks, value), [each.shares()[0] for each in blocks]


# GPT-NeoX -----------------------------------------------------------------------------------------


def gpt_neox(model, ids: Tensor, position: int, token: int) -> tuple[list[Tensor], list[Tensor]]:
    """Contributions through each block, and matrices."""
    weights = model(ids, output_attentions=True).attentions
    inner = model.gpt_neox
    x = source(inner.embed_in(ids)[0])
    blocks = []
    for layer, attention in zip(inner.layers, weights, strict=True):
        attn = layer.attention
        heads = attention.shape[1]
        with torch.no_grad():
            fused = attn.query_key_value(layer.input_layernorm(x))
            values = fused.view(len(x), heads, 3, -1)[:, :, 2].flatten(1)
            sent = vectors(attention[0], values, attn.dense.weight)
        added = source(sent.sum((0, 2)) + attn.dense.bias)
        blocks.append(Block(sent, x.detach(), (x + added).detach(), added))
        mlp = layer.mlp(layer.post_attention_layernorm(x)).detach()
        x = x + added + mlp
    value = frozen(inner.final_layer_norm, x)[position] @ model.lm_head.weight[token]
    return carried(blocks, value), [each.shares()[0] for each in blocks]


# BART ---------------------------------------------------------------------------------------------


def _attend(attn, norm, x, read, weights, blocks, *, cross=False):
    with torch.no_grad():
        values = attn.v_proj(read)
        sent = vectors(weights[0], values, attn.out_proj.weight)
    added = source(sent.sum((0, 2)) + attn.out_proj.bias)
    after = frozen(norm, x + added)
    blocks.append(Block(sent, x.detach(), after.detach(), added, norm, cross))
    return after


def _mlp(layer, x):
    inner = layer.fc2(layer.activation_fn(layer.fc1(x))).detach()
    return frozen(layer.final_layer_norm, x + inner)


def bart(
    model, ids: Tensor, decoder_ids: Tensor, position: int, token: int
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Contributions of source and target tokens through each attention of the decoder.

    Returns:
        For each of them ``[H, S]`` and ``[H, T]``, and the start term.
    """
    output = model(input_ids=ids, decoder_input_ids=decoder_ids, output_attentions=True)
    encoder, decoder = model.model.encoder, model.model.decoder

    def embedded(part, given):
        positions = part.embed_positions(given)
        return part.layernorm_embedding(part.embed_tokens(given) + positions)[0]

    x = source(embedded(encoder, ids))
    below: list[Block] = []
    for layer, weights in zip(encoder.layers, output.encoder_attentions, strict=True):
        x = _attend(layer.self_attn, layer.self_attn_layer_norm, x, x, weights, below)
        x = _mlp(layer, x)
    memory = x.detach()
    x = start = source(embedded(decoder, decoder_ids))
    blocks: list[Block] = []
    attentions = zip(
        decoder.layers, output.decoder_attentions, output.cross_attentions, strict=True
    )
    for layer, own, cross in attentions:
        x = _attend(layer.self_attn, layer.self_attn_layer_norm, x, x, own, blocks)
        norm = layer.encoder_attn_layer_norm
        x = _attend(layer.encoder_attn, norm, x, memory, cross, blocks, cross=True)
        x = _mlp(layer, x)
    value = x[position] @ model.lm_head.weight[token]
    leaves = [each.added for each in blocks]
    *gradients, first = torch.autograd.grad(value, [*leaves, start])
    found = []
    for index, (block, gradient) in enumerate(zip(blocks, gradients, strict=True)):
        row = torch.einsum("hijd,id->hj", block.vectors, gradient)
        other = row if block.cross else row.new_zeros(len(row), ids.shape[1])
        row = row.new_zeros(len(row), decoder_ids.shape[1]) if block.cross else row
        for each in reversed(blocks[:index]):
            own_shares, read = each.shares()
            other = other + row @ read if each.cross else other
            row = row @ own_shares
        for each in reversed(below):
            other = other @ each.shares()[0]
        found.append((other, row))
    return found, (first * start).sum(-1).detach()
