"""Relevances of layers and of neurons: each quantity checked against its neighbours."""

import pytest
import torch
from anatomy import blocks_of
from captum.attr import LLMGradientAttribution, NoiseTunnel, TextTokenInput
from models import FAMILIES, tiny, token_ids
from state import snapshot
from torch import nn

from captum_lrpx import (
    AttnLRPx,
    LayerAttnLRPx,
    LayerLRPx,
    LRPx,
    NeuronAttnLRPx,
    NeuronLRPx,
    zoo,
)
from captum_lrpx.rules import SignalTakeAll

TARGET = (-1, 7)
PAIRS = [(LayerLRPx, LRPx), (LayerAttnLRPx, AttnLRPx)]
GATED = [family for family in FAMILIES if FAMILIES[family].gated]
# Hugging Face computes the norms and the rotary embedding of these families in float32
EXACT = {family: 1e-5 if FAMILIES[family].rotary else 1e-12 for family in FAMILIES}

layer_methods = pytest.mark.parametrize("method", [LayerLRPx, LayerAttnLRPx])
all_families = pytest.mark.parametrize("family", FAMILIES)


def relevance(method, model, layer, *, at_input=False, **options):
    return method(model, layer, **options).attribute(
        token_ids(), target=TARGET, attribute_to_layer_input=at_input
    )


def test_a_layer_that_is_given_twice_has_the_same_relevance_twice():
    model = tiny("gpt2")
    first, last = model.transformer.h
    found = LayerLRPx(model, [first, last, first]).attribute(token_ids(), TARGET)
    expected = LayerLRPx(model, [first, last]).attribute(token_ids(), TARGET)
    for one, other in zip(found, [*expected, expected[0]], strict=True):
        assert torch.equal(one, other)


def close(one, other, family="bert"):
    torch.testing.assert_close(one, other, rtol=EXACT[family], atol=EXACT[family])


@pytest.mark.parametrize(("layer", "whole"), PAIRS)
@all_families
def test_the_embedding_layer_is_the_input(family, layer, whole):
    model = tiny(family)
    embedding = model.get_input_embeddings()
    of_layer = relevance(layer, model, embedding)
    of_embeds = whole(model).attribute(embedding(token_ids()).detach(), target=TARGET)
    of_ids = whole(model).attribute(token_ids(), target=TARGET)
    torch.testing.assert_close(of_layer, of_embeds, rtol=0, atol=1e-12)
    torch.testing.assert_close(of_layer.sum(-1), of_ids, rtol=0, atol=1e-12)


@all_families
def test_without_biases_every_block_carries_the_whole_explained_value(family):
    model = tiny(family, biases="zero", layers=3)
    blocks = [block.module for block in blocks_of(model)]
    explained = model(token_ids()).logits[:, -1, 7].detach()
    for per_layer in relevance(LayerLRPx, model, blocks):
        close(per_layer.sum((1, 2)), explained, family)


@layer_methods
@all_families
def test_an_activation_passes_its_relevance_on(family, method):
    model = tiny(family)
    for block in blocks_of(model):
        inside = relevance(method, model, block.activation, at_input=True)
        outside = relevance(method, model, block.activation)
        if method is LayerLRPx and family in GATED:
            assert outside.eq(0).all(), "the gate is constant"
        close(inside, outside, family)


@layer_methods
@pytest.mark.parametrize("family", GATED)
def test_a_gated_product_shares_its_relevance(family, method):
    model = tiny(family)
    block = blocks_of(model)[0]
    product = relevance(method, model, block.output, at_input=True)
    up, activation, gate = relevance(method, model, [block.up, block.activation, block.gate])
    close(up + activation, product, family)
    share = 0.0 if method is LayerLRPx else 0.5
    close(activation, share * product, family)
    close(gate, activation, family)


@pytest.mark.parametrize("family", GATED)
def test_the_mirror_choice_gives_all_to_the_activation(family):
    model = tiny(family)
    block = blocks_of(model)[0]
    recipe = LayerLRPx.default_recipe.override("*", SignalTakeAll("activation"))
    product = relevance(LayerLRPx, model, block.output, at_input=True, recipe=recipe)
    close(relevance(LayerLRPx, model, block.activation, recipe=recipe), product, family)
    assert relevance(LayerLRPx, model, block.up, recipe=recipe).eq(0).all()


@layer_methods
@all_families
def test_attention_shares_its_relevance(family, method):
    """All of it goes to the values in LRP; half in AttnLRP, the rest to queries and keys alike."""
    model = tiny(family, biases="zero")
    block = blocks_of(model)[1]
    mixed = relevance(method, model, block.mixed, at_input=True)
    query, key, value = (
        projection.part(relevance(method, model, projection.module))
        for projection in (block.query, block.key, block.value)
    )
    share = 1.0 if method is LayerLRPx else 0.5
    close(value.sum((1, 2)), share * mixed.sum((1, 2)), family)
    close(query.sum((1, 2)), key.sum((1, 2)), family)
    if method is LayerLRPx:
        assert query.eq(0).all()
        assert key.eq(0).all()
    else:
        assert query.ne(0).any()


@all_families
def test_relevance_of_heads_is_a_view_of_the_output_projections_input(family):
    model = tiny(family)
    mixed = relevance(LayerAttnLRPx, model, blocks_of(model)[0].mixed, at_input=True)
    heads = mixed.unflatten(-1, (2, 4)).sum(-1)
    assert heads.shape == (2, 5, 2)
    close(heads.sum(-1), mixed.sum(-1), family)


@layer_methods
@all_families
def test_many_layers_from_one_backward_pass(family, method):
    model = tiny(family)
    block = blocks_of(model)[1]
    layers = [model.get_input_embeddings(), block.module, block.output]
    many = relevance(method, model, layers)
    assert isinstance(many, list)
    for layer, result in zip(layers, many, strict=True):
        close(result, relevance(method, model, layer), family)


@layer_methods
@all_families
def test_layers_with_more_than_one_tensor_or_with_keywords(family, method):
    """Attention returns its weights or None as well; Llama's is called with keywords only."""
    model = tiny(family)
    block = blocks_of(model)[1]
    for layer in (block.attention, block.module):
        for at_input in (False, True):
            result = relevance(method, model, layer, at_input=at_input)
            assert isinstance(result, torch.Tensor)
            assert result.shape[:2] == (2, 5)
    eager = relevance(method, model, block.attention)
    sdpa = tiny(family, attn="sdpa")
    close(relevance(method, sdpa, blocks_of(sdpa)[1].attention), eager, family)


@layer_methods
def test_delta(method):
    model = tiny("gpt2")
    embedding, block = model.transformer.wte, model.transformer.h[0]
    explained = model(token_ids()).logits[:, -1, 7].detach()
    layer = method(model, embedding)
    result, delta = layer.attribute(token_ids(), TARGET, return_convergence_delta=True)
    torch.testing.assert_close(result.sum((1, 2)) + delta, explained)
    results, deltas = method(model, [embedding, block]).attribute(
        token_ids(), TARGET, return_convergence_delta=True
    )
    for each, missing in zip(results, deltas, strict=True):
        torch.testing.assert_close(each.sum((1, 2)) + missing, explained)


@layer_methods
def test_gradients_instead_of_relevances(method):
    model = tiny("gpt2")
    block = model.transformer.h[0]
    outputs = []
    handle = block.register_forward_hook(lambda *args: outputs.append(args[2]))
    model(token_ids())
    handle.remove()
    (output,) = outputs
    hidden = output[0] if isinstance(output, tuple) else output  # by the version of transformers
    plain = method(model, block, multiply_by_inputs=False)
    assert plain.multiplies_by_inputs is False
    gradient = plain.attribute(token_ids(), target=TARGET)
    close(gradient * hidden.detach(), relevance(method, model, block))


@layer_methods
@all_families
def test_nothing_is_left_behind(family, method):
    model = tiny(family)
    before = snapshot(model)
    block = blocks_of(model)[0]
    relevance(method, model, [block.module, block.mixed])
    for target in (None, "are", (0, 10**6)):
        with pytest.raises((AssertionError, IndexError)):
            method(model, block.module).attribute(token_ids(), target=target)
    assert snapshot(model) == before


def test_a_layer_that_takes_only_integers_has_no_relevance_at_its_input():
    model = tiny("llama")
    embedding, ids = model.get_input_embeddings(), token_ids()
    message = "Embedding did not run .* no floating-point tensor"
    for layer in (embedding, [model.model.layers[0], embedding]):
        with pytest.raises(ValueError, match=message):
            LayerLRPx(model, layer).attribute(ids, TARGET, attribute_to_layer_input=True)
    with pytest.raises(ValueError, match=message):
        NeuronLRPx(model, embedding).attribute(ids, (1, 3), attribute_to_neuron_input=True)


def test_a_layer_that_does_not_run():
    model = tiny("gpt2")
    with pytest.raises(ValueError, match="did not run"):
        relevance(LayerLRPx, model, nn.Linear(2, 2))


def test_a_layer_that_runs_twice():
    model = tiny("gpt2")

    def twice(ids):
        return model(ids).logits[:, -1] + model(ids).logits[:, -1]

    with pytest.raises(ValueError, match="more than once"):
        LayerLRPx(twice, model.transformer.wte, model=model).attribute(token_ids(), target=7)


@layer_methods
def test_noise_tunnel(method):
    model = tiny("gpt2", dtype=torch.float32)
    embeds = model.transformer.wte(token_ids()).detach()
    layer = method(model, model.transformer.h[0])
    noisy = NoiseTunnel(layer).attribute(embeds, nt_samples=2, stdevs=0.0, target=TARGET)
    torch.testing.assert_close(noisy, layer.attribute(embeds, target=TARGET))


@pytest.mark.parametrize("name", ["sva-gpt2", "sva-llama"])
@layer_methods
def test_captums_wrapper_for_language_models(method, name):
    model, tokenizer = zoo.load(name)
    layer = method(model, model.get_input_embeddings())
    wrapper = LLMGradientAttribution(layer, tokenizer)
    prompt = TextTokenInput("the keys to the cabinet", tokenizer)
    are, is_ = (tokenizer.encode(f"the {word}")[-1] for word in ("are", "is"))
    log_probability = [
        wrapper.attribute(prompt, target=torch.tensor([token])).seq_attr for token in (are, is_)
    ]
    ids = tokenizer("the keys to the cabinet", return_tensors="pt").input_ids
    logits = [layer.attribute(ids, target=(-1, token)).sum(-1)[0] for token in (are, is_)]
    # the normalization of the softmax is the same for both, and relevance is additive
    torch.testing.assert_close(
        log_probability[0] - log_probability[1], logits[0] - logits[1], rtol=1e-3, atol=1e-3
    )


# Neurons ----------------------------------------------------------------------------------------

NEURONS = [(NeuronLRPx, LRPx), (NeuronAttnLRPx, AttnLRPx)]


@pytest.mark.parametrize("part", ["output", "activation", "mixed"])
@pytest.mark.parametrize(("neuron", "whole"), NEURONS)
@all_families
def test_a_neuron_is_an_output_like_any_other(family, neuron, whole, part):
    """Also one of a gate, which is constant where a logit is explained by LRP."""
    model = tiny(family)
    layer = getattr(blocks_of(model)[1], part)
    embeds = model.get_input_embeddings()(token_ids()).detach()

    def activation(embeds):
        kept = []
        handle = layer.register_forward_hook(lambda *args: kept.append(args[2]))
        model(inputs_embeds=embeds)
        handle.remove()
        return kept[0][:, 3, 2]

    expected = whole(activation, model=model).attribute(embeds)
    for selector in [(3, 2), (slice(3, 4), 2), lambda output: output[:, 3, 2]]:
        result = neuron(model, layer).attribute(embeds, selector)
        close(result, expected, family)
    of_ids = neuron(model, layer).attribute(token_ids(), (3, 2))
    close(of_ids, expected.sum(-1), family)


@pytest.mark.parametrize("method", [NeuronLRPx, NeuronAttnLRPx])
def test_neurons_of_the_input_of_a_layer(method):
    model = tiny("gpt2")
    mlp = model.transformer.h[1].mlp
    of_input = method(model, mlp.c_proj).attribute(
        token_ids(), (3, 2), attribute_to_neuron_input=True
    )
    torch.testing.assert_close(of_input, method(model, mlp.act).attribute(token_ids(), (3, 2)))


def test_tuples_of_embeddings():
    model = tiny("gpt2")
    embeds = model.transformer.wte(token_ids()).detach()
    neuron = NeuronLRPx(model, model.transformer.h[0].mlp.act)
    assert isinstance(neuron.attribute((embeds,), (3, 2)), tuple)
    assert not embeds.requires_grad


@pytest.mark.parametrize("method", [NeuronLRPx, NeuronAttnLRPx])
def test_a_neuron_that_no_token_decides_about_is_an_error(method):
    model = tiny("gpt2")
    with pytest.raises(ValueError, match="does not depend on the inputs"):
        method(model, model.transformer.wpe).attribute(token_ids(), (3, 2))


def test_a_selector_gives_one_number_per_example():
    model = tiny("gpt2")
    layer = model.transformer.h[0].mlp
    method = NeuronLRPx(model, layer)
    expected = method.attribute(token_ids(), (3, 2))
    for one in (lambda output: output[:, 3, 2:3], lambda output: output[:, 3, 2].sum()):
        assert torch.equal(method.attribute(token_ids(), one), expected)
    with pytest.raises(AssertionError, match="chooses 2 neurons"):
        method.attribute(token_ids(), lambda output: output[:, 3, 2:4])


def test_nothing_is_left_behind_after_a_wrong_selector():
    model = tiny("gpt2")
    before = snapshot(model)
    with pytest.raises((AssertionError, IndexError)):
        NeuronLRPx(model, model.transformer.h[0].mlp.act).attribute(token_ids(), (99, 99))
    assert snapshot(model) == before
