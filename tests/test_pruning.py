"""Parts of a model that are switched off for a while."""

import threading

import pytest
import torch
from models import tiny, token_ids
from state import snapshot
from tiny_models import build
from torch import nn

from captum_lrpx import RelevancePatching, prune

IDS = token_ids()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def without(layer, columns):
    """A layer whose input has zeros at some features."""
    with torch.no_grad():
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
        weight[:, columns] = 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "qwen3"])
@pytest.mark.parametrize("by", ["head", "neuron"])
def test_a_part_that_is_off_gives_zero(family, by):
    model = tiny(family, heads=4)
    if by == "head":
        ends = ("c_proj", "o_proj", "attention.output.dense")
        layers = [
            module
            for path, module in model.named_modules()
            if path.endswith(ends) and "mlp" not in path
        ]
    else:
        ends = ("mlp.c_proj", "mlp.down_proj", "output.dense")
        layers = [
            module
            for path, module in model.named_modules()
            if path.endswith(ends) and "attention" not in path
        ]
    assert len(layers) == 2
    count = 4 if by == "head" else 12
    scores = {layer: torch.ones(count) for layer in layers}
    scores[layers[0]][2], scores[layers[1]][3], scores[layers[1]][0] = -1.0, -1.0, 0.5
    with prune(model, scores, 3 / (2 * count), by=by, at_input=True):
        pruned = logits(model)
    for layer, parts in zip(layers, ([2], [0, 3]), strict=True):
        width = 4 if by == "head" else 1
        for part in parts:
            without(layer, slice(part * width, (part + 1) * width))
    torch.testing.assert_close(pruned, logits(model), rtol=0, atol=1e-12)


def test_an_expert_that_is_off_adds_nothing():
    model = build("mixtral", "CAUSAL_LM").eval()
    layers = [block.mlp.experts for block in model.model.layers]
    scores = {layer: torch.arange(layer.num_experts) * 1.0 + 10 * place
              for place, layer in enumerate(layers)}  # fmt: skip
    share = 2 / sum(map(len, scores.values()))
    with prune(model, scores, share, by="expert"):
        pruned = logits(model)
    assert not pruned.equal(logits(model))
    with torch.no_grad():
        layers[0].down_proj[:2] = 0
    torch.testing.assert_close(pruned, logits(model))


def test_features_of_an_output_can_be_switched_off():
    model = tiny("gpt2")
    act = model.transformer.h[0].mlp.act
    kept = []
    act.register_forward_hook(lambda *args: kept.append(args[2]))
    with prune(model, {act: torch.arange(12.0)}, 0.5, by="neuron"):
        logits(model)
        handle = act.register_forward_hook(lambda *args: kept.append(args[2]))
    handle.remove()
    projection = model.transformer.h[0].mlp.c_proj
    with prune(model, {projection: torch.arange(12.0)}, 0.5, by="neuron", at_input=True):
        expected = logits(model)
    with prune(model, {act: torch.arange(12.0)}, 0.5, by="neuron"):
        assert logits(model).equal(expected)


@pytest.mark.parametrize("share", [0, 1])
def test_none_and_all(share):
    model = tiny("llama")
    layers = [block.self_attn.o_proj for block in model.model.layers]
    scores = {layer: torch.rand(2) for layer in layers}
    whole = logits(model)
    with prune(model, scores, share):
        found = logits(model)
    if share:
        for layer in layers:
            without(layer, slice(None))
        whole = logits(model)
    assert found.equal(whole)


def test_relevance_of_parts_is_a_score():
    model = tiny("gpt2")
    layers = [block.attn.c_proj for block in model.transformer.h]
    heads = RelevancePatching(model, layers).attribute(
        IDS, target=(-1, 7), by="head", ablation="zero"
    )
    scores = {layer: each.abs().mean(0) for layer, each in zip(layers, heads, strict=True)}
    with prune(model, scores, 0.25):
        few = (logits(model)[:, -1, 7]).clone()
    with prune(model, {layer: -each for layer, each in scores.items()}, 0.75):
        many = logits(model)[:, -1, 7]
    whole = logits(model)[:, -1, 7]
    assert (few - whole).abs().sum() < (many - whole).abs().sum()


def test_the_model_is_left_as_it_was_and_other_threads_use_it_whole():
    model = tiny("gpt2")
    layer = model.transformer.h[0].attn.c_proj
    before, whole, found = snapshot(model), logits(model), []
    with pytest.raises(KeyError), prune(model, {layer: torch.rand(2)}, 1.0):  # noqa: PT012
        thread = threading.Thread(target=lambda: found.append(logits(model)))
        thread.start()
        thread.join()
        assert not logits(model).equal(whole)
        raise KeyError
    assert found[0].equal(whole)
    assert snapshot(model) == before
    assert logits(model).equal(whole)


def test_what_cannot_be_pruned_is_refused():
    model = tiny("gpt2")
    layer = model.transformer.h[0].attn.c_proj
    good = {layer: torch.rand(2)}
    cases = [
        (ValueError, "from 0 to 1", {"share": 1.5}),
        (ValueError, "did you mean 'head'", {"by": "heads"}),
        (TypeError, "maps layers", {"scores": [torch.rand(2)]}),
        (TypeError, "maps layers", {"scores": {layer: torch.rand(1, 2)}}),
        (ValueError, "NaN", {"scores": {layer: torch.tensor([1.0, torch.nan])}}),
        (ValueError, "no module of this", {"scores": {nn.Linear(2, 2): torch.rand(2)}}),
        (ValueError, "leave `at_input` out", {"by": "expert", "at_input": False}),
        (ValueError, "3 scores by head", {"scores": {layer: torch.rand(3)}, "share": 1}),
        (ValueError, "2 scores by neuron", {"by": "neuron"}),
        (ValueError, "chosen experts", {"by": "expert"}),
    ]
    before = snapshot(model)
    for kind, message, options in cases:
        given = {"scores": good, "share": 0.5, **options}
        with pytest.raises(kind, match=message), prune(model, **given):
            logits(model)
        assert snapshot(model) == before
