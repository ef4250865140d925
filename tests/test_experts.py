"""A mixture of experts is explained as the formulas say, written out in loops."""

import math
from dataclasses import replace

import pytest
import torch
import transformers
from models import randomize, token_ids
from replica_ledger import Exact
from replica_relevance import add, attention, gated, linear, rms_norm
from tiny_models import build
from torch.nn import functional as F  # noqa: N812

from captum_lrpx import ATTN_LRP, GRADIENT, LRP, AttnLRPx, LRPx, ledger
from captum_lrpx.rules import ConstantRouter, FrozenScale, RouterGradient, UniformRouter

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


def routed(part, shared, odds, best, gate, x):
    """The half of a token's relevance that goes to the router, from the products with its weights.

    Args:
        part: What each chosen expert adds to the output.
        shared: The relevance of the output over the output.
        odds: The softmax of the router.
        best: The chosen experts.
        gate: The weights of the router.
        x: What it is given.
    """
    slope = torch.zeros_like(odds)
    for expert, each in zip(best, part, strict=True):
        slope[expert] = 0.5 * (each * shared).sum() / odds[expert]  # the denominator is constant
    slope = odds * (slope - (odds * slope).sum())
    return slope @ gate * x


def experts(x, block, through, *, up_only, router_too=False):
    """Each token goes through its two best experts; what the router says is constant, or gets half.

    Args:
        x: What goes in.
        block: The mixture.
        through: Gets the relevance of each choice of each token.
        up_only: Whether the gates in the experts are constant.
        router_too: Whether the router gets half.
    """
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
        backs.append((parts, odds, best))

    def back(relevance):
        found = torch.zeros_like(x)
        for t, (parts, odds, best) in enumerate(backs):
            for part, of_gate, of_up, of_product, of_down in parts:
                all_of_it = part / y[t] * relevance[t]
                through.append((t, float(all_of_it.sum())))
                of_result = of_down(0.5 * all_of_it if router_too else all_of_it)
                gate, up = of_product(of_result)
                found[t] += (of_gate(gate) + of_up(up))[0]
            if router_too:
                made, shared = [part[0][0] for part in parts], relevance[t] / y[t]
                found[t] += routed(made, shared, odds, best, block.gate.weight, x[t])
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


def replica(model, ids, token, *, attention_too, router_too=False):
    """Relevance of each token for a logit at the last position, and of each choice by layer."""
    inner = model.model
    x = inner.embed_tokens.weight[ids]
    positions = torch.arange(len(ids))[None]
    cos, sin = (each[0] for each in inner.rotary_emb(x[None], positions))
    eps, backs, choices = model.config.rms_norm_eps, [], []
    for layer in inner.layers:
        normed = rms_norm(x, layer.input_layernorm.weight, eps)
        mixed, of_mixed = self_attention(
            normed, layer.self_attn, cos, sin, values_only=not attention_too
        )
        x, of_first = add(x, mixed)
        normed = rms_norm(x, layer.post_attention_layernorm.weight, eps)
        choices.append([])
        mixture, of_mixture = experts(
            normed, layer.mlp, choices[-1], up_only=not attention_too, router_too=router_too
        )
        x, of_second = add(x, mixture)
        backs += [(of_first, of_mixed), (of_second, of_mixture)]
    normed = rms_norm(x, inner.norm.weight, eps)
    logits, of_logits = linear(normed, model.lm_head.weight)
    relevance = torch.zeros_like(logits)
    relevance[-1, token] = logits[-1, token]
    relevance = of_logits(relevance)
    for of_sum, of_branch in reversed(backs):
        kept, branch = of_sum(relevance)
        relevance = kept + of_branch(branch)
    return logits[-1, token], relevance.sum(-1), choices


@pytest.mark.parametrize("router_too", [False, True])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@torch.no_grad()
def test_a_mixture_of_experts_has_the_relevances_of_the_formulas(mixtral, method, router_too):
    ids = torch.tensor([3, 9, 14, 5])
    router = UniformRouter() if router_too else ConstantRouter()
    recipe = replace(method.default_recipe, router=router)
    with Exact():
        found = method(mixtral, recipe=recipe).attribute(ids[None], (-1, 7))[0]
        value, expected, _ = replica(
            mixtral, ids, 7, attention_too=method is AttnLRPx, router_too=router_too
        )
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


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP, GRADIENT], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3", "gpt_oss", "llama4_text"])
def test_the_rule_of_a_router_is_a_role_of_its_own(kind, recipe):
    model = build(kind, "CAUSAL_LM", dtype=torch.float64, experts="eager")
    ids = token_ids()
    of_router = {}
    for rule in (ConstantRouter(), UniformRouter(), RouterGradient()):
        named = replace(recipe, name=repr(rule), router=rule)
        with Exact():
            method = LRPx(model, recipe=named)
            of_router[rule] = method.attribute(ids, (-1, 7))
            assert ledger(method, ids, (-1, 7)).closes(1e-9)
        (shown,) = {each.rule for each in method.coverage(ids).operations if "Router" in each.rule}
        assert shown == repr(rule).removesuffix("()")
    assert not torch.allclose(of_router[ConstantRouter()], of_router[UniformRouter()], rtol=1e-3)
    assert not torch.allclose(of_router[RouterGradient()], of_router[UniformRouter()], rtol=1e-3)
    somewhere = recipe.override("*.layers.1.*", UniformRouter())
    with Exact():
        mixed = LRPx(model, recipe=somewhere).attribute(ids, (-1, 7))
    assert not torch.equal(mixed, of_router[ConstantRouter()])


def test_a_dense_model_has_no_router():
    model = build("llama", "CAUSAL_LM")
    coverage = LRPx(model).coverage(token_ids())
    assert not [each for each in coverage.operations if "Router" in each.rule]
    with pytest.raises(TypeError, match="'router' must be of the kind RouterRule"):
        replace(LRP, router=FrozenScale())
