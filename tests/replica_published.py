"""Methods that others have published, written out from their formulas, nothing of the package used.

Three forms, as the papers have them: relevance that is shared out rule by rule (CP-LRP, AttnLRP,
MambaLRP's gate), a target vector that is carried down the residual stream by coefficients (DPA),
and a forward pass with factors that are held constant (RelP, LibraGrad). One text, one logit.
"""

from __future__ import annotations

import math

import torch
from replica_relevance import add, attention, gated, linear, rms_norm
from torch.nn import functional as F  # noqa: N812


def rotation(model, length):
    """One orthogonal matrix per position ``[T, z, z]`` for the rotary embedding."""
    config = model.config
    half = config.head_dim // 2
    base = config.rope_parameters["rope_theta"]
    matrices = torch.zeros(length, 2 * half, 2 * half, dtype=torch.float64)
    for t in range(length):
        for i in range(half):
            angle = t / base ** (i / half)
            matrices[t, i, i] = matrices[t, i + half, i + half] = math.cos(angle)
            matrices[t, i, i + half] = -math.sin(angle)
            matrices[t, i + half, i] = math.sin(angle)
    return matrices


def causal(length):
    return torch.full((length, length), -math.inf, dtype=torch.float64).triu(1)


def heads_of(model):
    """For each query head the rows of its queries, of its keys and of its values."""
    config = model.config
    size, shared = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    for head in range(config.num_attention_heads):
        group = head // shared
        yield slice(head * size, (head + 1) * size), slice(group * size, (group + 1) * size)


# Relevance, shared out rule by rule ---------------------------------------------------------------


def relevances(model, ids, token, *, values_only, up_only):
    """Of a Llama without biases, ``[T]``, for a logit at the last position.

    CP-LRP holds the softmax constant (``values_only``) and the activated gate (``up_only``);
    MambaLRP halves the gate; AttnLRP halves both products as well.
    """
    inner, scaling = model.model, model.config.head_dim**-0.5
    turn, bias = rotation(model, len(ids)), causal(len(ids))
    x = inner.embed_tokens.weight[ids]
    backs = []
    for layer in inner.layers:
        attn, mlp = layer.self_attn, layer.mlp
        h = rms_norm(x, layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
        q, q_back = linear(h, attn.q_proj.weight)
        k, k_back = linear(h, attn.k_proj.weight)
        v, v_back = linear(h, attn.v_proj.weight)
        found, of_heads = [], []
        for own, shared in heads_of(model):
            turned_q = [linear(q[t : t + 1, own], turn[t]) for t in range(len(ids))]
            turned_k = [linear(k[t : t + 1, shared], turn[t]) for t in range(len(ids))]
            out, back = attention(
                torch.cat([y for y, _ in turned_q]),
                torch.cat([y for y, _ in turned_k]),
                v[:, shared],
                bias,
                scaling,
                values_only=values_only,
            )
            found.append(out)
            of_heads.append((own, shared, turned_q, turned_k, back))
        mixed, mixed_back = linear(torch.cat(found, 1), attn.o_proj.weight)
        middle, add_attention = add(x, mixed)
        norm = layer.post_attention_layernorm
        m = rms_norm(middle, norm.weight, norm.variance_epsilon)
        gate, gate_back = linear(m, mlp.gate_proj.weight)
        up, up_back = linear(m, mlp.up_proj.weight)
        product, product_back = gated(gate, up, F.silu, up_only=up_only)
        down, down_back = linear(product, mlp.down_proj.weight)
        after, add_mlp = add(middle, down)
        shapes = q, k, v
        of_attention = q_back, k_back, v_back, of_heads, mixed_back, add_attention
        backs.append((shapes, of_attention, (gate_back, up_back, product_back, down_back, add_mlp)))
        x = after
    normed = rms_norm(x, inner.norm.weight, inner.norm.variance_epsilon)
    relevance = torch.zeros_like(x)
    relevance[-1] = model.lm_head.weight[token] * normed[-1]
    for back in reversed(backs):
        relevance = _through(*back, relevance)
    return relevance.sum(-1)


def _through(shapes, of_attention, of_mlp, relevance):
    q_back, k_back, v_back, of_heads, mixed_back, add_attention = of_attention
    gate_back, up_back, product_back, down_back, add_mlp = of_mlp
    middle, down = add_mlp(relevance)
    of_gate, of_up = product_back(down_back(down))
    middle = middle + gate_back(of_gate) + up_back(of_up)
    before, mixed = add_attention(middle)
    of_found = mixed_back(mixed)
    of_q, of_k, of_v = (torch.zeros_like(each) for each in shapes)
    for own, shared, turned_q, turned_k, back in of_heads:
        q, k, v = back(of_found[:, own])
        for t in range(len(q)):
            of_q[t, own] += turned_q[t][1](q[t : t + 1])[0]
            of_k[t, shared] += turned_k[t][1](k[t : t + 1])[0]
        of_v[:, shared] += v
    return before + q_back(of_q) + k_back(of_k) + v_back(of_v)


# A target that is carried down the residual stream ------------------------------------------------


def target_vectors(model, ids, token, *, content):
    """Dual Path Attribution: the target ``[T, D]`` at the embeddings of a Llama.

    The content path (values, ``up``) has the weight ``content``; the control path the rest, of
    which queries and keys have half each. The gate is taken as its pre-activation times a constant
    sigmoid, and the softmax to first order.
    """
    inner, length, size = model.model, len(ids), model.config.head_dim
    turn, hidden = rotation(model, length), causal(length) == -math.inf
    x, kept = inner.embed_tokens.weight[ids], []
    for layer in inner.layers:
        attn, mlp = layer.self_attn, layer.mlp
        scale = _scale(x, layer.input_layernorm)
        h = x * scale * layer.input_layernorm.weight
        q, k, v = (F.linear(h, each.weight, each.bias) for each in _projections(attn))
        mixed, heads = 0, []
        for own, shared in heads_of(model):
            q_head = torch.einsum("tij,tj->ti", turn, q[:, own])
            k_head = torch.einsum("tij,tj->ti", turn, k[:, shared])
            scores = (q_head @ k_head.T / math.sqrt(size)).masked_fill(hidden, -math.inf)
            weights = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
            heads.append((own, shared, q_head, k_head, v[:, shared], weights))
            mixed = mixed + weights @ v[:, shared] @ attn.o_proj.weight[:, own].T
        x = x + mixed + (0 if attn.o_proj.bias is None else attn.o_proj.bias)
        scale_mlp = _scale(x, layer.post_attention_layernorm)
        m = x * scale_mlp * layer.post_attention_layernorm.weight
        gate, up = (F.linear(m, each.weight, each.bias) for each in (mlp.gate_proj, mlp.up_proj))
        product = gate * torch.sigmoid(gate) * up
        x = x + F.linear(product, mlp.down_proj.weight, mlp.down_proj.bias)
        kept.append((layer, scale, heads, scale_mlp, gate, up))
    target = torch.zeros_like(x)
    target[-1] = model.lm_head.weight[token] * inner.norm.weight * _scale(x, inner.norm)[-1]
    for layer, scale, heads, scale_mlp, gate, up in reversed(kept):
        neurons = target @ layer.mlp.down_proj.weight
        sigmoid = torch.sigmoid(gate)
        content_path = neurons * gate * sigmoid @ layer.mlp.up_proj.weight
        control_path = neurons * up * sigmoid @ layer.mlp.gate_proj.weight
        update = content * content_path + (1 - content) * control_path
        target = target + update * scale_mlp * layer.post_attention_layernorm.weight
        update = torch.zeros_like(target)
        for own, shared, q, k, v, weights in heads:
            of_head = target @ layer.self_attn.o_proj.weight[:, own]
            seen = of_head @ v.T
            change = weights * (seen - (weights * seen).sum(-1, keepdim=True)) / math.sqrt(size)
            of_q = torch.einsum("tji,tj->ti", turn, change @ k)
            of_k = torch.einsum("tji,tj->ti", turn, change.T @ q)
            projections = _projections(layer.self_attn)
            rows = own, shared, shared
            w_q, w_k, w_v = (each.weight[row] for each, row in zip(projections, rows, strict=True))
            control_path = (of_q @ w_q + of_k @ w_k) / 2
            update += content * weights.T @ of_head @ w_v + (1 - content) * control_path
        target = target + update * scale * layer.input_layernorm.weight
    return target


def _projections(attn):
    return attn.q_proj, attn.k_proj, attn.v_proj


def _scale(x, norm):
    return (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()


# A forward pass with constants --------------------------------------------------------------------


def llama_with_constants(model, embeddings):
    """Logits ``[V]`` at the last position: LibraGrad's Llama, which is RelP's as well."""
    inner, length, size = model.model, len(embeddings), model.config.head_dim
    turn, x = rotation(model, length), embeddings
    for layer in inner.layers:
        attn, mlp = layer.self_attn, layer.mlp
        h = x * _scale(x, layer.input_layernorm).detach() * layer.input_layernorm.weight
        q, k, v = (F.linear(h, each.weight, each.bias) for each in _projections(attn))
        found = []
        for own, shared in heads_of(model):
            q_head = torch.einsum("tij,tj->ti", turn, q[:, own]).detach()
            k_head = torch.einsum("tij,tj->ti", turn, k[:, shared]).detach()
            scores = q_head @ k_head.T / math.sqrt(size) + causal(length)
            found.append(torch.softmax(scores, -1) @ v[:, shared])
        x = x + F.linear(torch.cat(found, 1), attn.o_proj.weight, attn.o_proj.bias)
        norm = layer.post_attention_layernorm
        m = x * _scale(x, norm).detach() * norm.weight
        gate, up = (F.linear(m, each.weight, each.bias) for each in (mlp.gate_proj, mlp.up_proj))
        product = halved(gate * torch.sigmoid(gate).detach() * up)
        x = x + F.linear(product, mlp.down_proj.weight, mlp.down_proj.bias)
    return (x * _scale(x, inner.norm).detach() * inner.norm.weight)[-1] @ model.lm_head.weight.T


def halved(product):
    """The half rule as both papers write it: the gradient is halved, the value is not."""
    return product / 2 + (product / 2).detach()


def _layer_norm(x, norm):
    centered = x - x.mean(-1, keepdim=True)
    scale = (centered.square().mean(-1, keepdim=True) + norm.eps).rsqrt().detach()
    return centered * scale * norm.weight + norm.bias


def _constant_attention(q, k, v, heads, mask):
    found = []
    for q_head, k_head, v_head in zip(*(each.chunk(heads, -1) for each in (q, k, v)), strict=True):
        scores = q_head @ k_head.T / math.sqrt(q_head.shape[-1]) + mask
        found.append(torch.softmax(scores, -1).detach() @ v_head)
    return torch.cat(found, -1)


def gpt2_with_constants(model, embeddings):
    """RelP's GPT-2: LN-rule, AH-rule, and the identity rule at ``gelu_new``."""
    inner = model.transformer
    x = embeddings + inner.wpe.weight[: len(embeddings)]
    for block in inner.h:
        h = _layer_norm(x, block.ln_1)
        q, k, v = (h @ block.attn.c_attn.weight + block.attn.c_attn.bias).chunk(3, -1)
        found = _constant_attention(q, k, v, model.config.n_head, causal(len(x)))
        x = x + found @ block.attn.c_proj.weight + block.attn.c_proj.bias
        z = _layer_norm(x, block.ln_2) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        a = z * (F.gelu(z, approximate="tanh") / z).detach()
        x = x + a @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    return _layer_norm(x, inner.ln_f)[-1] @ model.lm_head.weight.T


def bert_with_constants(model, embeddings):
    """LibraGrad's encoder: GELU as ``x [Phi(x)]``, constant weights and standard deviations."""
    inner = model.bert
    parts = inner.embeddings
    x = embeddings + parts.token_type_embeddings.weight[0]
    x = _layer_norm(x + parts.position_embeddings.weight[: len(x)], parts.LayerNorm)
    for layer in inner.encoder.layer:
        attn = layer.attention
        projections = attn.self.query, attn.self.key, attn.self.value
        q, k, v = (each(x) for each in projections)
        found = _constant_attention(q, k, v, model.config.num_attention_heads, 0)
        x = _layer_norm(x + attn.output.dense(found), attn.output.LayerNorm)
        z = layer.intermediate.dense(x)
        a = z * (0.5 * (1 + torch.erf(z / math.sqrt(2)))).detach()
        x = _layer_norm(x + layer.output.dense(a), layer.output.LayerNorm)
    head = model.cls.predictions
    z = head.transform.dense(x)
    z = _layer_norm(
        z * (0.5 * (1 + torch.erf(z / math.sqrt(2)))).detach(), head.transform.LayerNorm
    )
    return head.decoder(z)[-1]


# Information flow routes --------------------------------------------------------------------------


def information_flow(model, ids):
    """Importance of each token ``[T]`` for the last position of a Llama (Ferrando & Voita 2024).

    ``proximity(z, y) = max(|y| - |z - y|, 0)`` in the L1 norm, over its sum; ``y`` the residual
    stream after the attention, ``z`` what one head carries from one token, or the stream before.
    Through an MLP a token only reaches itself.
    """
    outputs = model(ids[None], output_attentions=True)
    inner, x, product = model.model, model.model.embed_tokens.weight[ids], None
    for layer, weights in zip(inner.layers, outputs.attentions, strict=True):
        attn, matrix = layer.self_attn, torch.zeros(len(ids), len(ids), dtype=x.dtype)
        h = layer.input_layernorm(x)
        v = attn.v_proj(h)
        sent = {
            (head, t, s): weights[0, head, t, s] * v[s, shared] @ attn.o_proj.weight[:, own].T
            for head, (own, shared) in enumerate(heads_of(model))
            for t in range(len(ids))
            for s in range(t + 1)
        }
        middle = x.clone()
        for (_, t, _), vector in sent.items():
            middle[t] += vector
        if attn.o_proj.bias is not None:
            middle = middle + attn.o_proj.bias

        def proximity(z, y):
            return max(float(y.abs().sum() - (z - y).abs().sum()), 0.0)

        for (_, t, s), vector in sent.items():
            matrix[t, s] += proximity(vector, middle[t])
        for t in range(len(ids)):
            matrix[t, t] += proximity(x[t], middle[t])
        matrix = matrix / matrix.sum(-1, keepdim=True)
        product = matrix if product is None else matrix @ product
        x = middle + layer.mlp(layer.post_attention_layernorm(middle))
    return product[-1]
