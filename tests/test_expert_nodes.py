"""Experts as nodes: what each adds to the output of a mixture, patched and estimated."""

import pytest
import torch
from models import tiny, token_ids
from replica_patching import patched
from state import snapshot
from tiny_models import build

from captum_lrpx import ATTN_LRP, ActivationPatching, LayerLRPx, RelevancePatching

CLEAN, CORRUPTED, TARGET = token_ids(seed=0), token_ids(seed=1), (-1, 7)
CLOSE = {"rtol": 0, "atol": 2e-5}  # experts compute in float32


def mixtral():
    model = build("mixtral", "CAUSAL_LM").eval()
    return model, [block.mlp.experts for block in model.model.layers]


def run(model, ids):
    return model(ids).logits[:, -1, 7]


@torch.no_grad()
def added(model, layer, ids):
    """What each expert adds at each position, by the formula: ``[E, B * T, D]``."""
    kept = []
    handle = layer.register_forward_pre_hook(lambda _, args: kept.append(args))
    run(model, ids)
    handle.remove()
    ((x, chosen, weights),) = kept
    parts = []
    for expert in range(layer.num_experts):
        gate, up = (x @ layer.gate_up_proj[expert].T).chunk(2, dim=-1)
        y = (torch.nn.functional.silu(gate) * up) @ layer.down_proj[expert].T
        parts.append(y * (weights * (chosen == expert)).sum(-1, keepdim=True))
    return torch.stack(parts)


@pytest.mark.parametrize("ablation", [None, "zero"])
def test_an_expert_is_patched_by_what_it_adds(ablation):
    model, layers = mixtral()
    other = CORRUPTED if ablation is None else None
    before = snapshot(model)
    effects = ActivationPatching(model, layers).attribute(
        CLEAN, other, target=TARGET, by="expert", ablation=ablation
    )
    assert snapshot(model) == before
    for layer, found in zip(layers, effects, strict=True):
        clean = added(model, layer, CLEAN)
        new = torch.zeros_like(clean) if ablation else added(model, layer, CORRUPTED)
        with torch.no_grad():
            expected = [
                run(model, CLEAN)
                - patched(
                    layer,
                    lambda: run(model, CLEAN),
                    lambda output, change=change: output + change,
                    at_input=False,
                )
                for change in new - clean
            ]
        torch.testing.assert_close(found, torch.stack(expected, 1), **CLOSE)
        assert found.abs().max() > 1e-3


@pytest.mark.parametrize("recipe", [None, ATTN_LRP], ids=["default", "attnlrp"])
def test_an_experts_estimate_is_its_difference_times_the_coefficient_of_the_output(recipe):
    model, layers = mixtral()
    method = RelevancePatching(model, layers, recipe=recipe)
    estimates = method.attribute(CLEAN, CORRUPTED, target=TARGET, by="expert")
    slopes = LayerLRPx(model, layers, multiply_by_inputs=False, recipe=method.recipe).attribute(
        CLEAN, TARGET
    )
    for layer, slope, found in zip(layers, slopes, estimates, strict=True):
        difference = added(model, layer, CLEAN) - added(model, layer, CORRUPTED)
        expected = (difference * slope.reshape(difference.shape[1:])).sum(-1)
        torch.testing.assert_close(found.T, expected.unflatten(1, (2, -1)).sum(-1), **CLOSE)


def test_experts_together_are_the_output():
    model, layers = mixtral()
    for method in (RelevancePatching, ActivationPatching):
        whole = method(model, layers[-1]).attribute(CLEAN, CORRUPTED, target=TARGET)
        parts = method(model, layers[-1]).attribute(CLEAN, CORRUPTED, target=TARGET, by="expert")
        assert parts.shape == (2, layers[-1].num_experts)
        if method is RelevancePatching:
            torch.testing.assert_close(parts.sum(1), whole, **CLOSE)


def test_a_mean_over_positions_is_one_of_each_expert():
    model, layers = mixtral()
    effects = ActivationPatching(model, layers[0]).attribute(
        CLEAN, token_ids(3, 7, seed=4), target=TARGET, by="expert", ablation="mean"
    )
    assert effects.shape == (2, layers[0].num_experts)
    assert effects.isfinite().all()


def test_layers_without_experts_are_refused():
    model = tiny("gpt2")
    layer = model.transformer.h[0].mlp
    for method in (RelevancePatching, ActivationPatching):
        with pytest.raises(ValueError, match="no `num_experts`"):
            method(model, layer).attribute(CLEAN, CORRUPTED, target=TARGET, by="expert")
        with pytest.raises(ValueError, match="leave `attribute_to_layer_input` out"):
            method(model, layer).attribute(
                CLEAN, CORRUPTED, TARGET, by="expert", attribute_to_layer_input=True
            )
