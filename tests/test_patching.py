"""Patching of nodes: the estimate is its definition, the measurement a loop of forward passes."""

import pytest
import torch
from captum.attr import FeatureAblation
from models import tiny, token_ids
from patching_cases import (
    CLEAN,
    CORRUPTED,
    EXACT,
    TARGET,
    all_cases,
    all_kinds,
    ask,
    case_and_layers,
    columns,
    gpt2,
    gradient_at,
    nano_gpt,
)
from replica_patching import estimated, measured, modified_llama, value_at
from state import snapshot
from torch import nn

from captum_lrpx import (
    ATTN_LRP,
    GRADIENT,
    LRP,
    LRP_MIRRORED_GATE,
    ActivationPatching,
    LayerLRPx,
    RelevancePatching,
)

# The measurement ---------------------------------------------------------------------------------


@all_kinds
@all_cases
def test_a_measured_effect_is_that_of_a_loop_over_nodes(name, kind):
    case, layers, at_input = case_and_layers(name, kind)
    effects = ask(ActivationPatching, case, layers, kind, at_input)
    single = next(case.model.parameters()).dtype == torch.float32
    exact = {"rtol": 0, "atol": 1e-5 if single else 1e-12}
    for layer, found in zip(layers, effects, strict=True):
        expected = measured(
            layer,
            lambda: case.run(case.clean),
            lambda: case.run(case.corrupted),
            kind,
            case.heads,
            at_input=at_input,
        )
        torch.testing.assert_close(columns(found, kind), expected, **exact)
        assert expected.abs().max() > 1e-4


@all_kinds
@all_cases
def test_one_node_per_run_is_the_loop_to_the_last_bit(name, kind):
    case, layers, at_input = case_and_layers(name, kind)
    layer = layers[-1]
    found = ask(ActivationPatching, case, [layer], kind, at_input, perturbations_per_eval=1)[0]
    expected = measured(
        layer,
        lambda: case.run(case.clean),
        lambda: case.run(case.corrupted),
        kind,
        case.heads,
        at_input=at_input,
    )
    assert columns(found, kind).equal(expected)


@pytest.mark.parametrize("per_eval", [1, 2, 3, 64])
def test_the_number_of_nodes_per_run_does_not_matter(per_eval):
    case, layers, at_input = case_and_layers("gpt2", "neuron")
    effects = [
        ask(ActivationPatching, case, layers, "neuron", at_input, perturbations_per_eval=count)
        for count in (per_eval, 5)
    ]
    for one, other in zip(*effects, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_run_has_nodes_of_several_layers():
    case, layers, at_input = case_and_layers("gpt2", "head")
    calls = []
    handle = layers[-1].register_forward_hook(lambda *_: calls.append(1))
    for per_eval, runs in ((4, 1), (3, 2), (1, 4)):  # two layers of two heads
        calls.clear()
        ask(ActivationPatching, case, layers, "head", at_input, perturbations_per_eval=per_eval)
        assert len(calls) == runs + 3, "beside them clean, corrupted and repeated clean inputs"
    handle.remove()


def test_only_some_nodes_are_measured():
    case, layers, at_input = case_and_layers("gpt2", "neuron")
    whole = ask(ActivationPatching, case, layers, "neuron", at_input)
    only = [torch.tensor([3, 1]), torch.tensor([], dtype=torch.long)]
    some = ask(ActivationPatching, case, layers, "neuron", at_input, only=only)
    torch.testing.assert_close(some[0][:, [1, 3]], whole[0][:, [1, 3]], rtol=0, atol=1e-12)
    assert [int(each.isnan().sum()) for each in some] == [2 * 10, 2 * 12]
    with pytest.raises(ValueError, match="a list of as many: here 2"):
        ask(ActivationPatching, case, layers, "neuron", at_input, only=only[0])
    with pytest.raises(IndexError, match="from 0 to 11"):
        ask(ActivationPatching, case, layers[0], "neuron", at_input, only=torch.tensor([12]))


def test_a_whole_input_that_is_zeroed_is_captums_feature_ablation():
    """Effects have the sign of FeatureAblation: what is lost without the value."""
    case = gpt2()
    embeddings = case.model.transformer.wte(CLEAN).detach()
    mask = torch.arange(CLEAN.shape[1]).unsqueeze(-1)
    theirs = FeatureAblation(lambda x: case.model(inputs_embeds=x).logits).attribute(
        embeddings, target=TARGET, feature_mask=mask
    )
    ours = ActivationPatching(case.model, case.model.transformer.wte).attribute(
        CLEAN, target=TARGET, by="token", ablation="zero"
    )
    torch.testing.assert_close(ours, theirs[..., 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("reference", [None, token_ids(3, 7, seed=4)])
def test_a_mean_is_that_of_a_reference(reference):
    case = gpt2()
    block = case.model.transformer.h[0]
    kept = value_at(
        block, lambda: case.model(CLEAN if reference is None else reference), at_input=False
    )
    mean = kept.detach().mean((0, 1)).expand(*CLEAN.shape, -1)
    expected = measured(block, lambda: case.run(CLEAN), mean, "token", at_input=False)
    found = ActivationPatching(case.model, block).attribute(
        CLEAN, reference, target=TARGET, by="token", ablation="mean"
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_arguments_of_the_corrupted_run_may_differ():
    case = gpt2()
    model, block = case.model, case.model.transformer.h[0]
    masks = torch.ones_like(CLEAN), torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])

    def forward(ids, mask):
        return model(ids, attention_mask=mask).logits

    found = ActivationPatching(forward, block, model=model).attribute(
        CLEAN, CORRUPTED, TARGET, masks[0], masks[1], by="token"
    )
    expected = measured(
        block,
        lambda: forward(CLEAN, masks[0])[:, -1, 7],
        lambda: forward(CORRUPTED, masks[1])[:, -1, 7],
        "token",
        at_input=False,
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# The estimate ------------------------------------------------------------------------------------


@all_kinds
def test_the_estimate_is_its_definition_on_layers_written_out(kind, monkeypatch):
    """Coefficients by autograd on a Llama whose layers were modified by hand."""
    case, layers, at_input = case_and_layers("llama", kind)
    effects = ask(RelevancePatching, case, layers, kind, at_input, recipe=LRP_MIRRORED_GATE)
    modified_llama(case.model, monkeypatch)
    for layer, found in zip(layers, effects, strict=True):
        values, slopes = gradient_at(layer, case, at_input=at_input)
        others = value_at(layer, lambda: case.run(case.corrupted), at_input=at_input).detach()
        expected = estimated(values, others, slopes, kind, case.heads)
        torch.testing.assert_close(columns(found, kind), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP, LRP_MIRRORED_GATE], ids=lambda each: each.name)
@all_kinds
@all_cases
def test_the_coefficient_is_that_of_the_layer(name, kind, recipe):
    case, layers, at_input = case_and_layers(name, kind)
    effects = ask(RelevancePatching, case, layers, kind, at_input, recipe=recipe)
    for layer, found in zip(layers, effects, strict=True):
        method = LayerLRPx(case.model, layer, multiply_by_inputs=False, recipe=recipe)
        slopes = method.attribute(case.clean, TARGET, attribute_to_layer_input=at_input)
        values, others = (
            value_at(layer, lambda ids=ids: case.run(ids), at_input=at_input).detach()
            for ids in (case.clean, case.corrupted)
        )
        expected = estimated(values, others, slopes, kind, case.heads)
        exact = {
            "rtol": 0,
            "atol": 1e-4 if found.dtype == torch.float32 else EXACT.get(name, 1e-10),
        }
        torch.testing.assert_close(columns(found, kind), expected, **exact)


def test_without_rules_the_estimate_is_attribution_patching():
    case, layers, _ = case_and_layers("bert", "token")
    effects = ask(RelevancePatching, case, layers, "token", False, recipe=GRADIENT)
    for layer, found in zip(layers, effects, strict=True):
        values, slopes = gradient_at(layer, case, at_input=False)
        others = value_at(layer, lambda: case.run(case.corrupted), at_input=False).detach()
        expected = ((values - others) * slopes).sum(-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_zeroing_is_estimated_by_the_relevance():
    case, layers, _ = case_and_layers("gpt2", "token")
    effects = RelevancePatching(case.model, layers).attribute(
        CLEAN, target=TARGET, by="token", ablation="zero"
    )
    method = LayerLRPx(case.model, layers, recipe=RelevancePatching.default_recipe)
    relevances = method.attribute(CLEAN, TARGET)
    for one, other in zip(effects, relevances, strict=True):
        torch.testing.assert_close(one, other.sum(-1), rtol=0, atol=1e-12)


def test_the_estimate_is_exact_where_the_rest_of_the_model_is_linear():
    case = nano_gpt()
    head = case.model.head
    for method in (RelevancePatching, ActivationPatching):
        effects = method(case.model, head).attribute(case.clean, case.corrupted, target=TARGET)
        expected = case.run(case.clean) - case.run(case.corrupted)
        torch.testing.assert_close(effects, expected.detach(), rtol=0, atol=1e-12)


def test_estimate_and_effect_of_a_single_layer_are_no_list():
    case, layers, at_input = case_and_layers("gpt2", "head")
    for method in (RelevancePatching, ActivationPatching):
        assert ask(method, case, layers[0], "head", at_input).shape == (2, 2)


# What is refused, and what is left behind ---------------------------------------------------------

WRONG = {
    "`by` is one of .* mean 'head'": {"by": "heads"},
    "nothing to replace": {"corrupted_inputs": None},
    "they must match token by token": {"corrupted_inputs": CORRUPTED[:, 1:]},
    "replaced by zero": {"ablation": "zero"},
    "`ablation` is": {"ablation": "median"},
    "cannot be split into 3 heads": {"by": "head", "heads": 3},
}
methods = pytest.mark.parametrize("method", [RelevancePatching, ActivationPatching])


@methods
@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_patched_is_refused(message, method):
    model = tiny("gpt2")
    before = snapshot(model)
    options = {"corrupted_inputs": CORRUPTED, "target": TARGET, **WRONG[message]}
    patching = method(model, model.transformer.h[0].attn.c_proj, heads=options.pop("heads", None))
    with pytest.raises(ValueError, match=message):
        patching.attribute(CLEAN, **options)
    assert snapshot(model) == before


@methods
def test_heads_of_a_model_that_does_not_say_how_many(method):
    case = nano_gpt()
    patching = method(case.model, case.model.blocks[0].out)
    with pytest.raises(ValueError, match="give `heads=`"):
        patching.attribute(case.clean, case.corrupted, target=TARGET, by="head")


@methods
def test_heads_are_at_output_projections_or_said_to_be_elsewhere(method):
    model = tiny("bert")
    attention = model.bert.encoder.layer[0].attention
    with pytest.raises(ValueError, match="one of its parts \\(query, key, value"):
        method(model, attention.self).attribute(CLEAN, CORRUPTED, target=TARGET, by="head")
    given = method(model, attention.self).attribute(
        CLEAN, CORRUPTED, target=TARGET, by="head", attribute_to_layer_input=False
    )
    taken = method(model, attention.output.dense).attribute(
        CLEAN, CORRUPTED, target=TARGET, by="head"
    )
    torch.testing.assert_close(given, taken, rtol=0, atol=1e-12)


@methods
def test_heads_of_keys_and_values_are_counted_as_they_are(method):
    model = tiny("llama", heads=4, key_value_heads=2)
    attention = model.model.layers[0].self_attn
    size = attention.head_dim
    options = {"target": TARGET, "attribute_to_layer_input": False}
    for layer, count in (
        (attention.q_proj, 4),
        (attention.k_proj, 2),
        (attention.v_proj, 2),
        (attention.o_proj, 4),
    ):
        patching = method(model, layer)
        heads = patching.attribute(CLEAN, CORRUPTED, by="head", **options)
        assert heads.shape == (len(CLEAN), count)
        if method is RelevancePatching:
            neurons = patching.attribute(CLEAN, CORRUPTED, by="neuron", **options)
            torch.testing.assert_close(heads, neurons.view(-1, count, size).sum(-1))


@methods
def test_queries_keys_and_values_side_by_side_are_no_heads(method):
    model = tiny("gpt2")
    attention = model.transformer.h[0].attn
    options = {"target": TARGET, "attribute_to_layer_input": False, "by": "head"}
    with pytest.raises(ValueError, match="not 2 heads of 4: give a layer with heads alone"):
        method(model, attention.c_attn).attribute(CLEAN, CORRUPTED, **options)
    found = method(model, attention.c_attn, heads=6).attribute(CLEAN, CORRUPTED, **options)
    assert found.shape == (len(CLEAN), 6)


@methods
def test_wrong_layers_and_targets(method):
    model = tiny("gpt2")
    with pytest.raises(TypeError, match="A layer is"):
        method(model, "transformer.h.0")
    with pytest.raises(ValueError, match="did not run"):
        method(model, nn.Linear(2, 2)).attribute(CLEAN, CORRUPTED, target=TARGET)
    with pytest.raises((AssertionError, IndexError)):
        method(model, model.transformer.h[0]).attribute(CLEAN, CORRUPTED, target=(0, 99))
    with pytest.raises(ValueError, match="1 or more"):
        ActivationPatching(model, model.transformer.h[0]).attribute(
            CLEAN, CORRUPTED, TARGET, perturbations_per_eval=0
        )


@methods
@all_cases
def test_nothing_is_left_behind(name, method):
    case, layers, at_input = case_and_layers(name, "head")
    before = snapshot(case.model)
    ask(method, case, layers, "head", at_input)
    assert snapshot(case.model) == before
    calls = []

    def fails(_module, _args, output):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("stop")
        return output

    handle = layers[-1].register_forward_hook(fails)
    hooked = snapshot(case.model)
    if method is ActivationPatching:
        with pytest.raises(RuntimeError, match="stop"):
            ask(method, case, layers, "head", at_input, perturbations_per_eval=1)
    assert snapshot(case.model) == hooked
    handle.remove()
