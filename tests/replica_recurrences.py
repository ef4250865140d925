"""Explicit relevance through recurrent models, written from the formulas, token by token.

A message of relevance goes from each number to the numbers that it is a sum of, in proportion to
their contributions (LRP with epsilon = 0). Norms and activations pass on what they receive, a gate
keeps nothing (LRP) or one half (AttnLRP), and a recurrence is linear in its values: step, B and C
of a selective state space (Jafari et al. 2024), queries, keys, decays and learning rates of a delta
rule (Yang et al. 2024) are numbers like weights. No autograd is used, and nothing of the package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

GATE_SHARE = {"lrp": 0.0, "mambalrp": 0.5, "attnlrp": 0.5}
"""What the activated branch of a gated product gets of its relevance."""


def mamba(model: Any, ids: Tensor, target: int, method: str) -> Tensor:
    """Relevance ``[T]`` of the tokens of a text for the logit ``target`` at its last position."""
    weights = {name: each.detach().double() for name, each in model.named_parameters()}
    eps = model.config.layer_norm_epsilon
    stream = weights["backbone.embeddings.weight"][ids]
    blocks = []
    for layer in range(model.config.num_hidden_layers):
        part = _part(weights, f"backbone.layers.{layer}.")
        h = part["norm.weight"] * _normalized(stream, eps)
        u, z = (h @ part["mixer.in_proj.weight"].T).chunk(2, dim=-1)
        c = _convolution(u, part["mixer.conv1d.weight"], part["mixer.conv1d.bias"])
        a = F.silu(c)
        rank = part["mixer.dt_proj.weight"].shape[1]
        size = part["mixer.A_log"].shape[1]
        step, write, read = (a @ part["mixer.x_proj.weight"].T).split([rank, size, size], dim=-1)
        step = F.softplus(step @ part["mixer.dt_proj.weight"].T + part["mixer.dt_proj.bias"])
        decay = torch.exp(-torch.exp(part["mixer.A_log"]) * step[:, :, None])
        states = [torch.zeros_like(decay[0])]
        y = []
        for t in range(len(ids)):
            states.append(decay[t] * states[t] + (step[t] * a[t])[:, None] * write[t])
            y.append(states[-1] @ read[t] + part["mixer.D"] * a[t])
        scanned = torch.stack(y)
        out = (scanned * F.silu(z)) @ part["mixer.out_proj.weight"].T
        blocks.append((part, stream, h, u, z, c, a, step, write, read, decay, states, scanned, out))
        stream = stream + out
    final = weights["backbone.norm_f.weight"] * _normalized(stream, eps)
    relevance = torch.zeros_like(stream)
    relevance[-1] = weights["backbone.embeddings.weight"][target] * final[-1]  # the head is tied

    for part, before, h, u, z, c, a, step, write, read, decay, states, scanned, out in blocks[::-1]:
        r_before, r_out = _shares(relevance, before, out)
        r_gated = _linear(r_out, scanned * F.silu(z), out, part["mixer.out_proj.weight"])
        r_z = r_gated * GATE_SHARE[method]
        r_y = r_gated - r_z
        r_a = torch.zeros_like(a)
        r_state = torch.zeros_like(states[0])  # of the state after the token
        for t in reversed(range(len(ids))):
            share = r_y[t] / scanned[t]
            r_a[t] += share * part["mixer.D"] * a[t]
            r_state = r_state + share[:, None] * states[t + 1] * read[t]
            written = (step[t] * a[t])[:, None] * write[t]
            ratio = r_state / states[t + 1]
            r_a[t] += (ratio * written).sum(-1)
            r_state = ratio * decay[t] * states[t]
        r_u = _through_convolution(r_a, u, c, part["mixer.conv1d.weight"])
        projected = torch.cat([u, z], dim=-1)
        relevance = r_before + _linear(
            torch.cat([r_u, r_z], dim=-1), h, projected, part["mixer.in_proj.weight"]
        )
    return relevance.sum(-1)


def mamba2(model: Any, ids: Tensor, target: int, method: str) -> Tensor:
    """Relevance ``[T]`` of tokens in a Mamba-2 of one group, with a norm after the gate."""
    weights = {name: each.detach().double() for name, each in model.named_parameters()}
    config = model.config
    eps, heads, size = config.layer_norm_epsilon, config.num_heads, config.state_size
    inner = heads * config.head_dim
    stream = weights["backbone.embeddings.weight"][ids]
    blocks = []
    for layer in range(config.num_hidden_layers):
        part = _part(weights, f"backbone.layers.{layer}.")
        h = part["norm.weight"] * _normalized(stream, eps)
        projected = h @ part["mixer.in_proj.weight"].T
        z, u, step = projected.split([inner, inner + 2 * size, heads], dim=-1)
        c = _convolution(u, part["mixer.conv1d.weight"], part["mixer.conv1d.bias"])
        x, write, read = F.silu(c).split([inner, size, size], dim=-1)
        x = x.unflatten(-1, (heads, -1))
        step = F.softplus(step + part["mixer.dt_bias"])
        decay = torch.exp(-torch.exp(part["mixer.A_log"]) * step)[:, :, None, None]
        written = (step[:, :, None] * x)[:, :, :, None] * write[:, None, None]
        states = [torch.zeros_like(written[0])]
        for t in range(len(ids)):
            states.append(decay[t] * states[t] + written[t])
        scanned = torch.stack(states[1:]) @ read[:, None, :, None]
        scanned = scanned.squeeze(-1) + part["mixer.D"][:, None] * x
        gated = scanned.flatten(1) * F.silu(z)
        normed = part["mixer.norm.weight"] * _normalized(gated, eps)
        out = normed @ part["mixer.out_proj.weight"].T
        recurrence = (x, written, read, decay, states, scanned)
        blocks.append((part, stream, h, projected, u, c, recurrence, normed, out))
        stream = stream + out
    final = weights["backbone.norm_f.weight"] * _normalized(stream, eps)
    relevance = torch.zeros_like(stream)
    relevance[-1] = weights["lm_head.weight"][target] * final[-1]

    for part, before, h, projected, u, c, recurrence, normed, out in blocks[::-1]:
        x, written, read, decay, states, scanned = recurrence
        r_before, r_out = _shares(relevance, before, out)
        r_gated = _linear(r_out, normed, out, part["mixer.out_proj.weight"])
        r_z = r_gated * GATE_SHARE[method]
        r_y = (r_gated - r_z).unflatten(-1, (heads, -1))
        r_x = r_y / scanned * part["mixer.D"][:, None] * x
        r_state = torch.zeros_like(states[0])  # of the state after the token
        for t in reversed(range(len(ids))):
            r_state = r_state + (r_y[t] / scanned[t])[:, :, None] * states[t + 1] * read[t]
            ratio = r_state / states[t + 1]
            r_x[t] += (ratio * written[t]).sum(-1)
            r_state = ratio * decay[t] * states[t]
        nothing = relevance.new_zeros(len(ids), 2 * size)  # B and C
        r_u = _through_convolution(
            torch.cat([r_x.flatten(1), nothing], dim=-1), u, c, part["mixer.conv1d.weight"]
        )
        but_step = slice(projected.shape[1] - heads)
        relevance = r_before + _linear(
            torch.cat([r_z, r_u], dim=-1),
            h,
            projected[:, but_step],
            part["mixer.in_proj.weight"][but_step],
        )
    return relevance.sum(-1)


def gated_delta_net(model: Any, ids: Tensor, target: int, method: str) -> Tensor:
    """Relevance ``[T]`` of tokens in a Qwen3-Next of linear attention and dense MLPs."""
    weights = {name: each.detach().double() for name, each in model.named_parameters()}
    eps = model.config.rms_norm_eps
    stream = weights["model.embed_tokens.weight"][ids]
    blocks = []
    for layer in range(model.config.num_hidden_layers):
        part = _part(weights, f"model.layers.{layer}.")
        net = _DeltaNet(model.config, part)
        h = (1 + part["input_layernorm.weight"]) * _normalized(stream, eps)
        attended = net.forward(h)
        middle = stream + attended
        m = (1 + part["post_attention_layernorm.weight"]) * _normalized(middle, eps)
        gate = m @ part["mlp.gate_proj.weight"].T
        up = m @ part["mlp.up_proj.weight"].T
        inner = F.silu(gate) * up
        down = inner @ part["mlp.down_proj.weight"].T
        blocks.append((part, net, stream, h, attended, middle, m, gate, up, inner, down))
        stream = middle + down
    final = (1 + weights["model.norm.weight"]) * _normalized(stream, eps)
    relevance = torch.zeros_like(stream)
    relevance[-1] = weights["lm_head.weight"][target] * final[-1]

    for part, net, before, h, attended, middle, m, gate, up, inner, down in blocks[::-1]:
        r_middle, r_down = _shares(relevance, middle, down)
        r_inner = _linear(r_down, inner, down, part["mlp.down_proj.weight"])
        r_gate = r_inner * GATE_SHARE[method]
        r_m = _linear(r_gate, m, gate, part["mlp.gate_proj.weight"])
        r_m = r_m + _linear(r_inner - r_gate, m, up, part["mlp.up_proj.weight"])
        r_before, r_attended = _shares(r_middle + r_m, before, attended)
        relevance = r_before + net.backward(r_attended, h, attended, GATE_SHARE[method])
    return relevance.sum(-1)


class _DeltaNet:
    """The recurrent form of the gated delta rule, one token after the other."""

    def __init__(self, config: Any, part: dict[str, Tensor]) -> None:
        self.part = _part(part, "linear_attn.")
        self.k_heads, self.v_heads = config.linear_num_key_heads, config.linear_num_value_heads
        self.k_dim, self.v_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.eps = config.rms_norm_eps
        repeat = self.v_heads // self.k_heads
        # For each key head its query, its key, and the values and gates that it serves.
        sizes = [self.k_dim, self.k_dim, repeat * self.v_dim, repeat * self.v_dim]
        rows = self.part["in_proj_qkvz.weight"].unflatten(0, (self.k_heads, -1)).split(sizes, dim=1)
        self.w_q, self.w_k, self.w_v, self.w_z = (each.flatten(0, 1) for each in rows)
        learn, forget = self.part["in_proj_ba.weight"].unflatten(0, (self.k_heads, -1)).chunk(2, 1)
        self.w_b, self.w_a = learn.flatten(0, 1), forget.flatten(0, 1)

    def forward(self, h: Tensor) -> Tensor:
        before = [h @ each.T for each in (self.w_q, self.w_k, self.w_v)]
        self.u = torch.cat(before, dim=-1)
        self.c = _convolution(self.u, self.part["conv1d.weight"], None)
        keys = self.k_heads * self.k_dim
        q, k, v = F.silu(self.c).split([keys, keys, self.v_heads * self.v_dim], dim=-1)
        repeat = self.v_heads // self.k_heads
        q, k = (each.unflatten(-1, (self.k_heads, -1)) for each in (q, k))
        q, k = (each.repeat_interleave(repeat, dim=1) for each in (q, k))
        self.q, self.k = (each / (each.square().sum(-1, True) + 1e-6).sqrt() for each in (q, k))
        self.q = self.q / self.k_dim**0.5
        self.v = v.unflatten(-1, (self.v_heads, -1))
        self.beta = torch.sigmoid(h @ self.w_b.T)
        step = F.softplus(h @ self.w_a.T + self.part["dt_bias"])
        self.decay = torch.exp(-torch.exp(self.part["A_log"]) * step)
        self.states = [h.new_zeros(self.v_heads, self.k_dim, self.v_dim)]
        read = []
        for t in range(len(h)):
            state = self._kept(t) @ self.states[t] + self._written(t)
            self.states.append(state)
            read.append((self.q[t, :, :, None] * state).sum(1))
        self.read = torch.stack(read)
        normed = self.part["norm.weight"] * _normalized(self.read, self.eps)
        self.z = (h @ self.w_z.T).unflatten(-1, (self.v_heads, -1))
        self.gated = (normed * F.silu(self.z)).flatten(1)
        return self.gated @ self.part["out_proj.weight"].T

    def _kept(self, t: int) -> Tensor:
        """What the state is multiplied with: ``exp(g) (1 - beta k k^T)``, for each head."""
        outer = self.k[t, :, :, None] * self.k[t, :, None, :]
        identity = torch.eye(self.k_dim, dtype=outer.dtype)
        return self.decay[t, :, None, None] * (identity - self.beta[t, :, None, None] * outer)

    def _written(self, t: int) -> Tensor:
        return self.beta[t, :, None, None] * self.k[t, :, :, None] * self.v[t, :, None, :]

    def backward(self, relevance: Tensor, h: Tensor, out: Tensor, share: float) -> Tensor:
        r_gated = _linear(relevance, self.gated, out, self.part["out_proj.weight"])
        r_z = share * r_gated
        r_read = (r_gated - r_z).unflatten(-1, (self.v_heads, -1))
        r_v = torch.zeros_like(self.v)
        r_state = torch.zeros_like(self.states[0])
        for t in reversed(range(len(h))):
            after, before = self.states[t + 1], self.states[t]
            r_state = r_state + self.q[t, :, :, None] * after * (r_read[t] / self.read[t])[:, None]
            ratio = r_state / after
            r_v[t] += (ratio * self._written(t)).sum(1)
            r_state = torch.einsum("hij,hil,hlj->hlj", ratio, self._kept(t), before)
        r_values = r_v.flatten(1)  # SiLU passes on what it receives
        nothing = relevance.new_zeros(len(h), 2 * self.k_heads * self.k_dim)  # queries and keys
        r_u = _through_convolution(
            torch.cat([nothing, r_values], dim=-1), self.u, self.c, self.part["conv1d.weight"]
        )
        values = slice(nothing.shape[1], None)
        r_h = _linear(r_u[:, values], h, self.u[:, values], self.w_v)
        return r_h + _linear(r_z, h, self.z.flatten(1), self.w_z)


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)
    }


def _normalized(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _shares(relevance: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Of a sum."""
    ratio = relevance / (first + second)
    return ratio * first, ratio * second


def _linear(relevance: Tensor, inputs: Tensor, outputs: Tensor, weight: Tensor) -> Tensor:
    """Of ``outputs = inputs @ weight.T``."""
    found = torch.zeros_like(inputs)
    for t in range(len(inputs)):
        contributions = weight * inputs[t]
        ratio = torch.where(relevance[t] == 0, 0, relevance[t] / outputs[t])
        found[t] = (contributions * ratio[:, None]).sum(0)
    return found


def _convolution(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Causal and depth-wise: the last tap meets the token itself."""
    taps = weight.shape[-1]
    c = torch.zeros_like(u)
    for t in range(len(u)):
        for tap in range(taps):
            back = t - (taps - 1 - tap)
            if back >= 0:
                c[t] += weight[:, 0, tap] * u[back]
    return c if bias is None else c + bias


def _through_convolution(relevance: Tensor, u: Tensor, c: Tensor, weight: Tensor) -> Tensor:
    taps = weight.shape[-1]
    found = torch.zeros_like(u)
    for t in range(len(u)):
        ratio = torch.where(relevance[t] == 0, 0, relevance[t] / c[t])
        for tap in range(taps):
            back = t - (taps - 1 - tap)
            if back >= 0:
                found[back] += weight[:, 0, tap] * u[back] * ratio
    return found
