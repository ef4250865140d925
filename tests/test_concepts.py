"""Relevance of neurons and directions, and what steering by them does."""

import threading

import numpy as np
import pytest
import torch
from models import tiny, token_ids
from replica_patching import value_at
from state import snapshot
from torch import nn

from captum_lrpx import ATTN_LRP, LRP, ConceptRelevance, LayerLRPx, steer

IDS, TARGET = token_ids(), (-1, 7)


def layer_of(model):
    return model.transformer.h[0].mlp.c_proj


def basis(width, count=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(full).Q[: count or width]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


# Relevance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda each: each.name)
@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_neurons_have_the_relevance_of_their_layer(family, at_input, recipe):
    model = tiny(family)
    end = "output.dense" if family == "bert" else "mlp.c_proj"
    layer = next(module for path, module in model.named_modules() if path.endswith(f"0.{end}"))
    found = ConceptRelevance(model, layer, at_input=at_input, recipe=recipe).attribute(IDS, TARGET)
    expected = LayerLRPx(model, layer, recipe=recipe).attribute(
        IDS, TARGET, attribute_to_layer_input=at_input
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_direction_that_is_a_neuron_is_the_neuron():
    model = tiny("gpt2")
    rows = torch.eye(8, dtype=torch.float64)[[5, 2]] * 3  # whatever its length
    layer = layer_of(model)
    found = ConceptRelevance(model, layer, directions=rows)
    neurons = ConceptRelevance(model, layer)
    torch.testing.assert_close(
        found.attribute(IDS, TARGET), neurons.attribute(IDS, TARGET)[..., [5, 2]]
    )
    torch.testing.assert_close(found.activations(IDS) * 3, neurons.activations(IDS)[..., [5, 2]])


def test_a_rotated_basis_shares_the_same_relevance():
    model = tiny("gpt2")
    layer = layer_of(model)
    found = ConceptRelevance(model, layer, directions=basis(8)).attribute(IDS, TARGET)
    neurons = ConceptRelevance(model, layer).attribute(IDS, TARGET)
    torch.testing.assert_close(found.sum(-1), neurons.sum(-1), rtol=0, atol=1e-12)
    assert not found.allclose(neurons)


def test_features_of_an_autoencoder_have_the_relevance_of_what_they_decode_to():
    model = tiny("gpt2")
    layer = layer_of(model)
    decoder = torch.randn(20, 8, dtype=torch.float64)

    def encoder(x):
        return torch.relu(x @ decoder.T)

    concepts = ConceptRelevance(model, layer, directions=decoder, encoder=encoder)
    slopes = LayerLRPx(model, layer, multiply_by_inputs=False, recipe=ATTN_LRP).attribute(
        IDS, TARGET
    )
    decoded = concepts.activations(IDS) @ decoder
    torch.testing.assert_close(
        concepts.attribute(IDS, TARGET).sum(-1), (decoded * slopes).sum(-1), rtol=0, atol=1e-12
    )


def test_the_most_relevant_neurons_come_first():
    model = tiny("gpt2")
    concepts = ConceptRelevance(model, layer_of(model), at_input=True)
    relevances = concepts.attribute(IDS, TARGET)
    for row, found in enumerate(concepts.most_relevant(IDS, TARGET, k=3)):
        totals = relevances[row].sum(0)
        assert [each.number for each in found] == totals.abs().topk(3).indices.tolist()
        for each in found:
            assert each.relevance == pytest.approx(float(totals[each.number]))
            assert each.position == int(relevances[row, :, each.number].abs().argmax())


def test_the_model_is_left_as_it_was():
    model = tiny("llama")
    layer = model.model.layers[0].mlp.down_proj
    before = snapshot(model)
    ConceptRelevance(model, layer, at_input=True).most_relevant(IDS, TARGET)
    with steer(layer, 3, scale=2.0, at_input=True):
        logits(model)
    with pytest.raises(IndexError), steer(layer, 99, scale=0.0):
        logits(model)
    assert snapshot(model) == before


# Steering -----------------------------------------------------------------------------------------


def steered(model, layer, *args, **options):
    with steer(layer, *args, **options):
        kept = []
        side = layer.register_forward_hook(lambda *each: kept.append(each[2]))
        found = logits(model)
        side.remove()
    return found, kept[0]


def test_neurons_are_scaled_or_set():
    model = tiny("gpt2")
    layer = layer_of(model)
    plain = value_at(layer, lambda: model(IDS), at_input=False).detach()
    _, scaled = steered(model, layer, [1, 4], scale=-2.0)
    assert scaled[..., [1, 4]].equal(plain[..., [1, 4]] * -2)
    rest = [0, 2, 3, 5, 6, 7]
    assert scaled[..., rest].equal(plain[..., rest])
    _, fixed = steered(model, layer, 4, value=0.5, positions=slice(2, 4))
    assert fixed[:, 2:4, 4].eq(0.5).all()
    assert fixed[:, :2].equal(plain[:, :2])
    _, at_one = steered(model, layer, 4, value=0.0, positions=[-1])
    assert at_one[:, -1, 4].eq(0).all()
    assert at_one[:, :-1].equal(plain[:, :-1])


def test_scale_one_changes_nothing():
    model = tiny("gpt2")
    layer = layer_of(model)
    assert steered(model, layer, [0, 3], scale=1.0)[0].equal(logits(model))
    found, _ = steered(model, layer, [0, 3], scale=1.0, directions=basis(8))
    torch.testing.assert_close(found, logits(model))


def test_components_along_directions_are_scaled_or_set():
    model = tiny("gpt2")
    layer, rows = layer_of(model), 2 * basis(8, 3)
    plain = value_at(layer, lambda: model(IDS), at_input=False).detach()
    components = plain @ rows.T / 4
    _, fixed = steered(model, layer, [0, 2], value=1.5, directions=rows)
    torch.testing.assert_close(fixed @ rows[[0, 2]].T / 4, torch.full((2, 5, 2), 1.5).double())
    torch.testing.assert_close(fixed @ rows[1] / 4, components[..., 1])
    _, scaled = steered(model, layer, 1, scale=3.0, directions=rows)
    torch.testing.assert_close(scaled - plain, components[..., 1:2] * 2 * rows[1])
    away = steered(model, layer, range(8), scale=0.0, directions=basis(8))[1]
    torch.testing.assert_close(away, torch.zeros_like(away), rtol=0, atol=1e-12)


def test_directions_that_overlap_have_their_new_values():
    model = tiny("gpt2")
    layer = layer_of(model)
    rows = torch.cat([basis(8, 2), basis(8, 2).sum(0, keepdim=True) + basis(8)[3]])
    lengths = rows.square().sum(1)
    plain = value_at(layer, lambda: model(IDS), at_input=False).detach()
    _, fixed = steered(model, layer, [0, 1, 2], value=1.5, directions=rows)
    torch.testing.assert_close(fixed @ rows.T / lengths, torch.full((2, 5, 3), 1.5).double())
    _, scaled = steered(model, layer, [0, 2], scale=-1.0, directions=rows)
    torch.testing.assert_close((scaled @ rows.T)[..., [0, 2]], -(plain @ rows.T)[..., [0, 2]])
    _, twice = steered(model, layer, [1, 1], scale=0.0, directions=rows)
    _, once = steered(model, layer, [1], scale=0.0, directions=rows)
    torch.testing.assert_close(twice, once)


def test_numbers_in_any_form_of_integers():
    model = tiny("gpt2")
    layer = layer_of(model)
    expected, _ = steered(model, layer, [1, 4], scale=0.0)
    mask = torch.zeros(8, dtype=torch.bool)
    mask[[1, 4]] = True
    for numbers in (torch.tensor([1, 4]), np.array([1, 4]), mask.nonzero(), {1, 4}):
        assert steered(model, layer, numbers, scale=0.0)[0].equal(expected)
    alone, _ = steered(model, layer, 4, scale=0.0)
    assert steered(model, layer, torch.tensor(4), scale=0.0)[0].equal(alone)
    assert steered(model, layer, [], scale=0.0)[0].equal(logits(model))
    for wrong in (mask, mask.tolist(), True, [1.5], torch.tensor([1.0, 4.0])):
        with pytest.raises(TypeError, match="are indices"), steer(layer, wrong, scale=0.0):
            logits(model)


def test_inputs_can_be_steered():
    model = tiny("gpt2")
    block = model.transformer.h[0].mlp
    one, _ = steered(model, block.c_proj, [2, 5], scale=0.0, at_input=True)
    other, _ = steered(model, block.act, [2, 5], scale=0.0)
    assert one.equal(other)


def test_relevance_says_what_steering_does_where_the_rest_is_linear():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).double()
    x, layer = torch.randn(5, 4, dtype=torch.float64), model[1]
    relevance = ConceptRelevance(model, layer).attribute(x, 1)
    for neuron in range(6):
        with torch.no_grad(), steer(layer, neuron, scale=1.5):
            change = model(x)[:, 1]
        change -= model(x)[:, 1].detach()
        torch.testing.assert_close(change, 0.5 * relevance[:, neuron])


def test_other_threads_are_not_steered():
    model = tiny("gpt2")
    whole, found = logits(model), []
    with steer(layer_of(model), 0, value=9.0):
        thread = threading.Thread(target=lambda: found.append(logits(model)))
        thread.start()
        thread.join()
    assert found[0].equal(whole)


def test_what_cannot_be_is_refused():
    model = tiny("gpt2")
    layer = layer_of(model)
    for message, options in [
        ("Give either", {}),
        ("Give either", {"scale": 1.0, "value": 1.0}),
        ("a matrix", {"scale": 1.0, "directions": torch.ones(8)}),
        ("is zero", {"scale": 1.0, "directions": torch.zeros(1, 8)}),
        ("has 8 features, but directions have 3", {"scale": 1.0, "directions": torch.ones(1, 3)}),
    ]:
        with pytest.raises(ValueError, match=message), steer(layer, 0, **options):
            logits(model)
    with pytest.raises(TypeError, match="A layer is"), steer("mlp", 0, scale=0.0):
        logits(model)
    with pytest.raises(IndexError, match="from 0 to 7"), steer(layer, -1, scale=0.0):
        logits(model)
    for message, options in [
        ("An encoder needs", {"encoder": torch.relu}),
        ("are \\[1, 3\\]", {"directions": torch.ones(1, 3)}),
        ("The encoder gives", {"directions": torch.ones(1, 8), "encoder": torch.relu}),
    ]:
        with pytest.raises(ValueError, match=message):
            ConceptRelevance(model, layer, **options).attribute(IDS, TARGET)
