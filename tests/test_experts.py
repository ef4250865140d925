"""A mixture of experts is explained as the formulas say, written out in loops."""

import math

import pytest
import torch
import transformers
from models import randomize
from replica_ledger import Exact
from replica_relevance import add, attention, gated, linear, rms_norm
from torch.nn import functional as F  # noqa: N812

from captum_lrpx import AttnLRPx, LRPx, ledger

LENGTH, EXPERTS = 4, 4


@pytest.fixture(scope="module")
def mixtral():
    config = transformers.MixtralConfig(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        sliding_window=None,
        attn_implementation="eager",
    )
    model = transformers.MixtralForCausalLM(config)
    model.set_experts_implementation("eager")
    randomize(model, seed=0)
    return model.double().eval()


def turned(x, cos, sin):
    """Rotary positions as one matrix per position, applied to ``x [T, D]``."""
    half = x.shape[-1] // 2
    matrices = []
    for t in range(len(x)):
        matrix = torch.diag(cos[t]).clone()
        for i in range(half):
            matrix[i, i + half] = -sin[t, i]
            matrix[i + half, i] = sin[t, i + half]
        matrices.append(matrix)
    rows = [linear(x[t : t + 1], matrices[t]) for t in range(len(x))]
    return torch.cat([y for y, _ in rows]), lambda relevance: torch.cat(
        [back(relevance[t : t + 1]) for t, (_, back) in enumerate(rows)]
    )


def experts(x, block, *, up_only):
    """Each token goes through its two best experts; what the router says is constant."""
    y, backs = torch.zeros_like(x), []
    weights = block.experts
    for t in range(len(x)):
        odds = torch.exp(block.gate.weight @ x[t])
        odds = odds / odds.sum()
        best = sorted(range(EXPERTS), key=lambda e: -odds[e])[:2]
        parts = []
        for expert in best:
            gate, of_gate = linear(x[t : t + 1], weights.gate_up_proj[expert][:6])
            up, of_up = linear(x[t : t + 1], weights.gate_up_proj[expert][6:])
            product, of_product = gated(gate, up, F.silu, up_only=up_only)
            down, of_down = linear(product, weights.down_proj[expert])
            parts.append(
                (
                    odds[expert] / sum(odds[e] for e in best) * down,
                    of_gate,
                    of_up,
                    of_product,
                    of_down,
                )
            )
        y[t] = sum(part[0][0] for part in parts)
        backs.append(parts)

    def back(relevance):
        found = torch.zeros_like(x)
        for t, parts in enumerate(backs):
            for part, of_gate, of_up, of_product, of_down in parts:
                of_result = of_down(part / y[t] * relevance[t])
                gate, up = of_product(of_result)
                found[t] += (of_gate(gate) + of_up(up))[0]
        return found

    return y, back


def self_attention(x, block, cos, sin, *, values_only):
    """Two query heads, one head of keys and values."""
    q, of_q = linear(x, block.q_proj.weight)
    k, of_k = linear(x, block.k_proj.weight)
    v, of_v = linear(x, block.v_proj.weight)
    turned_k, of_turned_k = turned(k, cos, sin)
    causal = torch.full((len(x), len(x)), -math.inf).triu(1)
    heads, backs = [], []
    for head in range(2):
        turned_q, of_turned_q = turned(q[:, 4 * head : 4 * head + 4], cos, sin)
        out, back = attention(turned_q, turned_k, v, causal, 0.5, values_only=values_only)
        heads.append(out)
        backs.append((back, of_turned_q))
    y, of_y = linear(torch.cat(heads, -1), block.o_proj.weight)

    def back(relevance):
        mixed = of_y(relevance)
        of_heads, found = [], torch.zeros_like(x)
        for head, (of_head, of_turned_q) in enumerate(backs):
            one, two, three = of_head(mixed[:, 4 * head : 4 * head + 4])
            of_heads.append(of_turned_q(one))
            found = found + of_k(of_turned_k(two)) + of_v(three)
        return found + of_q(torch.cat(of_heads, -1))

    return y, back


def replica(model, ids, token, *, attention_too):
    """Relevance of each token for a logit at the last position."""
    inner = model.model
    x = inner.embed_tokens.weight[ids]
    positions = torch.arange(len(ids))[None]
    cos, sin = (each[0] for each in inner.rotary_emb(x[None], positions))
    eps, backs = model.config.rms_norm_eps, []
    for layer in inner.layers:
        normed = rms_norm(x, layer.input_layernorm.weight, eps)
        mixed, of_mixed = self_attention(
            normed, layer.self_attn, cos, sin, values_only=not attention_too
        )
        x, of_first = add(x, mixed)
        normed = rms_norm(x, layer.post_attention_layernorm.weight, eps)
        routed, of_routed = experts(normed, layer.mlp, up_only=not attention_too)
        x, of_second = add(x, routed)
        backs += [(of_first, of_mixed), (of_second, of_routed)]
    normed = rms_norm(x, inner.norm.weight, eps)
    logits, of_logits = linear(normed, model.lm_head.weight)
    relevance = torch.zeros_like(logits)
    relevance[-1, token] = logits[-1, token]
    relevance = of_logits(relevance)
    for of_sum, of_branch in reversed(backs):
        kept, branch = of_sum(relevance)
        relevance = kept + of_branch(branch)
    return logits[-1, token], relevance.sum(-1)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@torch.no_grad()
def test_a_mixture_of_experts_has_the_relevances_of_the_formulas(mixtral, method):
    ids = torch.tensor([3, 9, 14, 5])
    with Exact():
        found = method(mixtral).attribute(ids[None], (-1, 7))[0]
        value, expected = replica(mixtral, ids, 7, attention_too=method is AttnLRPx)
        torch.testing.assert_close(mixtral(ids[None]).logits[0, -1, 7], value, rtol=1e-10, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@torch.no_grad()
def test_without_biases_lrp_decomposes_the_logit(mixtral):
    ids = torch.tensor([[3, 9, 14, 5], [8, 8, 2, 11]])
    with Exact():
        relevance = LRPx(mixtral).attribute(ids, (-1, 7))
        value = mixtral(ids).logits[:, -1, 7]
    torch.testing.assert_close(relevance.sum(1), value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_each_implementation_of_experts_says_the_same(mixtral, method, implementation):
    ids = torch.tensor([[3, 9, 14, 5]])
    with Exact():
        expected = method(mixtral).attribute(ids, (-1, 7))
        mixtral.set_experts_implementation(implementation)
        try:
            found = method(mixtral).attribute(ids, (-1, 7))
            assert ledger(method(mixtral), ids, (-1, 7)).closes(1e-10)
        finally:
            mixtral.set_experts_implementation("eager")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_router_gets_nothing(mixtral):
    coverage = AttnLRPx(mixtral).coverage(torch.tensor([[3, 9, 14, 5]]))
    assert coverage.complete
    assert not [each for each in coverage.operations if each.module.endswith("mlp.gate")]
