"""Routing: which experts each token took, and what relevance went through each."""

import threading

import pytest
import torch
from models import token_ids
from replica_ledger import Exact
from state import snapshot
from test_experts import mixtral, replica  # noqa: F401 - a fixture
from tiny_models import build

from captum_lrpx import (
    ATTN_LRP,
    LRP,
    ExpertRelevance,
    LayerAttnLRPx,
    LayerLRPx,
    LogitDifference,
    Routing,
)

IDS, TARGET = torch.tensor([[3, 9, 14, 5]]), (-1, 7)
RECIPES = pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)


@RECIPES
@torch.no_grad()
def test_the_relevance_of_each_choice_is_that_of_the_formulas(mixtral, recipe):  # noqa: F811
    with Exact():
        found = ExpertRelevance(mixtral, recipe=recipe).attribute(IDS, TARGET)
        _, _, expected = replica(mixtral, IDS[0], 7, attention_too=recipe is ATTN_LRP)
        probabilities = [  # of the router, at what goes into each mixture
            torch.softmax(layer, -1)
            for layer in mixtral(IDS, output_router_logits=True).router_logits
        ]
    assert [each.name for each in found] == [
        "model.layers.0.mlp.experts",
        "model.layers.1.mlp.experts",
    ]
    for each, choices, odds in zip(found, expected, probabilities, strict=True):
        best = odds.topk(2)
        assert torch.equal(each.experts[0], best.indices)
        weights = best.values / best.values.sum(-1, keepdim=True)
        torch.testing.assert_close(each.weights[0], weights, rtol=1e-6, atol=0)
        of_choices = torch.tensor([value for _, value in choices], dtype=torch.float64)
        torch.testing.assert_close(
            each.relevances[0].flatten(), of_choices, rtol=0, atol=1e-10 * of_choices.abs().max()
        )


@RECIPES
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "olmoe"])
def test_choices_sum_to_what_goes_into_the_experts(kind, implementation, recipe):
    model = build(kind, "CAUSAL_LM", experts=implementation)
    ids = token_ids()
    before = snapshot(model)
    found = ExpertRelevance(model, recipe=recipe).attribute(ids, TARGET)
    assert snapshot(model) == before
    mixtures = [each for name, each in model.named_modules() if name.endswith(".experts")]
    assert len(found) == len(mixtures)
    layers = {LRP: LayerLRPx, ATTN_LRP: LayerAttnLRPx}[recipe]
    whole = layers(model, mixtures).attribute(ids, TARGET)
    for each, outputs in zip(found, whole, strict=True):
        assert each.relevances.shape == each.weights.shape == each.experts.shape
        assert each.relevances.shape == (*ids.shape, 2)
        expected = outputs.reshape(*ids.shape, -1).sum(-1)
        torch.testing.assert_close(each.relevances.sum(-1), expected, rtol=1e-3, atol=1e-5)
        assert expected.abs().max() > 1e-3


def test_sums_by_token_and_by_expert():
    routing = Routing(
        "mlp.experts",
        3,
        torch.tensor([[[0, 2], [2, 1]]]),
        torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]),
        torch.tensor([[[1.0, -2.0], [4.0, 8.0]]]),
    )
    assert routing.by_token().tolist() == [[[1, 0, -2], [0, 8, 4]]]
    assert routing.by_expert().tolist() == [[1, 8, 2]]
    assert routing.load().tolist() == [[1, 1, 2]]
    assert routing.table(["a", "keys"]).splitlines() == [
        "mlp.experts",
        "a       0 (0.75) +1.0000     2 (0.25) -2.0000",
        "keys    2 (0.50) +4.0000     1 (0.50) +8.0000",
    ]
    with pytest.raises(ValueError, match="1 tokens do not name 2 positions"):
        routing.table(["a"])


def test_a_routing_is_drawn():
    pytest.importorskip("matplotlib").use("agg")
    model = build("mixtral", "CAUSAL_LM")
    found = ExpertRelevance(model).attribute(IDS, TARGET)
    figure = found[0].plot(list("abcd"))
    axis = figure.axes[0]
    assert len(axis.patches) == 4 * 2
    assert [each.get_text() for each in axis.get_xticklabels()] == list("abcd")


def test_layers_rows_and_forward_functions():
    model = build("qwen3_moe", "CAUSAL_LM")
    ids = token_ids()
    first = model.model.layers[0].mlp.experts
    every = ExpertRelevance(model).attribute(ids, TARGET)
    one = ExpertRelevance(model, first).attribute(ids, TARGET)
    torch.testing.assert_close(one.relevances, every[0].relevances)
    for row in range(len(ids)):
        alone = ExpertRelevance(model, [first]).attribute(ids[row : row + 1], TARGET)[0]
        assert torch.equal(alone.experts[0], one.experts[row])
        torch.testing.assert_close(alone.relevances[0], one.relevances[row], rtol=1e-3, atol=1e-5)
    of_difference = ExpertRelevance(LogitDifference(model), first).attribute(
        ids, additional_forward_args=(None, 7, 8)
    )
    other = ExpertRelevance(model, first).attribute(ids, (-1, 8))
    torch.testing.assert_close(
        of_difference.relevances, one.relevances - other.relevances, rtol=1e-3, atol=1e-5
    )


def test_other_threads_do_not_mix_in():
    model = build("qwen3_moe", "CAUSAL_LM")
    ids = token_ids()

    def forward(ids):
        logits = model(ids).logits
        other = threading.Thread(target=model, args=(ids[:, 1:],))
        other.start()
        other.join()
        return logits

    found = ExpertRelevance(forward, model=model).attribute(ids, TARGET)
    expected = ExpertRelevance(model).attribute(ids, TARGET)
    assert [each.name for each in found] == [each.name for each in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.relevances, other.relevances)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("llama", "is no mixture of experts"),
        ("llama4_text", r"\]: Llama4TextMoe, Llama4TextExperts route in another way"),
        ("jetmoe", r"\]: JetMoeMoE, JetMoeParallelExperts route in another way"),
    ],
)
def test_what_mixes_in_another_way_is_refused_by_name(kind, message):
    model = build(kind, "CAUSAL_LM")
    with pytest.raises(ValueError, match=message):
        ExpertRelevance(model).attribute(token_ids(), TARGET)


def test_a_layer_that_is_no_mixture_is_refused():
    model = build("mixtral", "CAUSAL_LM")
    with pytest.raises(ValueError, match="does not take chosen experts"):
        ExpertRelevance(model, model.model.layers[0].mlp.gate).attribute(token_ids(), TARGET)


def test_experts_that_do_not_add_up_are_refused():
    class Loud(torch.nn.Module):
        """Its output is no sum over experts."""

        num_experts = 4

        def forward(self, x, _, weights):
            return x * weights.sum(-1, keepdim=True) + 1

    model = build("mixtral", "CAUSAL_LM")
    model.model.layers[0].mlp.experts = Loud()
    with pytest.raises(ValueError, match="Loud is not the sum of its chosen experts"):
        ExpertRelevance(model).attribute(token_ids(), TARGET)
