"""Every method of ``explain()``: the baselines are Captum's own, on the same forward module."""

import captum.attr as captum
import numpy as np
import pytest
import torch
from models import FAMILIES, tiny, token_ids
from state import snapshot

from captum_lrpx import (
    ALTILogit,
    AttentionRollout,
    InformationFlow,
    RandomAttribution,
    Target,
    TokenLogits,
    explain,
    zoo,
)
from captum_lrpx.methods import METHODS, attribute, description, options_of
from captum_lrpx.targets import Query, encode

pytestmark = pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")

TEXT = "the keys to the cabinet"
TARGETS = [Target("are"), Target("are", contrast="is")]


class Case:
    """One text for one model, with what Captum needs to explain it."""

    def __init__(self, model, tokenizer, target):
        self.model, self.tokenizer, self.target = model, tokenizer, target
        encoding = encode(model, tokenizer, TEXT)
        query = target.ask(model, tokenizer, encoding)
        self.forward, self.ids, self.arguments = query.forward, query.ids, query.arguments
        self.embeds = model.get_input_embeddings()(self.ids).detach().requires_grad_()

    def explain(self, method, **options):
        return explain(self.model, self.tokenizer, TEXT, self.target, method=method, **options)

    def token(self, name):
        number = getattr(self.tokenizer, f"{name}_token_id")
        return self.model.get_input_embeddings()(torch.full_like(self.ids, number)).detach()


@pytest.fixture(params=[(name, target) for name in zoo.names() for target in (0, 1)])
def case(request, loaded):
    name, target = request.param
    return Case(*loaded[name], TARGETS[target])


def same(explanation, expected, delta=None):
    """The relevances are these ``[1, T]``, and the method's own delta is this ``[1]``."""
    found = torch.tensor(explanation.relevances, dtype=torch.float64)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected[0].detach().double(), rtol=1e-4, atol=1e-5 * scale)
    if delta is None:
        assert explanation.convergence_delta is None
    else:
        assert explanation.convergence_delta == pytest.approx(delta.mean().item(), abs=1e-4)


def test_saliency(case):
    gradient = captum.Saliency(case.forward).attribute(case.embeds, abs=False, **case.arguments)
    same(case.explain("saliency_l1"), torch.linalg.vector_norm(gradient, 1, -1))
    same(case.explain("saliency_l2_squared"), torch.linalg.vector_norm(gradient, 2, -1) ** 2)


def test_input_x_gradient(case):
    expected = captum.InputXGradient(case.forward).attribute(case.embeds, **case.arguments)
    same(case.explain("input_x_gradient"), expected.sum(-1))


@pytest.mark.parametrize("size", [None, 4])
def test_integrated_gradients(case, size):
    expected, delta = captum.IntegratedGradients(case.forward).attribute(
        case.embeds, n_steps=7, return_convergence_delta=True, **case.arguments
    )
    found = case.explain("integrated_gradients", n_steps=7, internal_batch_size=size)
    same(found, expected.sum(-1), delta)
    assert found.options == {"n_steps": 7, "baseline": "zero", "internal_batch_size": size}


def test_integrated_gradients_converges(case):
    result = case.explain("integrated_gradients", baseline="pad", n_steps=200)
    start = case.forward(case.token("pad"), *case.arguments["additional_forward_args"])
    if case.arguments["target"] is not None:
        start = start[:, case.arguments["target"]]
    assert result.sum == pytest.approx(result.value - start.item(), abs=0.05)


def test_gradient_shap(case):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - Captum draws from it
    expected, delta = captum.GradientShap(case.forward).attribute(
        case.embeds,
        baselines=torch.zeros_like(case.embeds),
        n_samples=5,
        stdevs=0.1,
        return_convergence_delta=True,
        **case.arguments,
    )
    options = {"n_samples": 5, "stdevs": 0.1}
    found = case.explain("gradient_shap", seed=3, **options)
    same(found, expected.sum(-1), delta)
    assert found == case.explain("gradient_shap", seed=3, **options)
    assert found.relevances != case.explain("gradient_shap", seed=4, **options).relevances


def test_feature_ablation(case):
    feature_mask = torch.arange(case.ids.shape[1]).view(1, -1, 1)
    expected = captum.FeatureAblation(case.forward).attribute(
        case.embeds.detach(), feature_mask=feature_mask, **case.arguments
    )
    same(case.explain("feature_ablation"), expected[..., 0])


def test_feature_ablation_is_leaving_one_out(case):
    result = case.explain("feature_ablation", baseline="pad", perturbations_per_eval=1)
    for index, relevance in enumerate(result.relevances):
        without = case.embeds.detach().clone()
        without[0, index] = case.token("pad")[0, index]
        value = case.forward(without, *case.arguments["additional_forward_args"])
        if case.arguments["target"] is not None:
            value = value[:, case.arguments["target"]]
        assert relevance == pytest.approx(result.value - value.item(), abs=1e-3)


@pytest.mark.parametrize("window", [1, 2, 99])
def test_occlusion(case, window):
    expected = captum.Occlusion(case.forward).attribute(
        case.embeds.detach(),
        sliding_window_shapes=(min(window, case.ids.shape[1]), case.embeds.shape[2]),
        **case.arguments,
    )
    same(case.explain("occlusion", window=window), expected[..., 0])


def test_altilogit(case):
    expected, delta = ALTILogit(case.forward).attribute(
        case.ids, return_convergence_delta=True, **case.arguments
    )
    same(case.explain("altilogit"), expected, delta)


def test_rollout_and_random_are_the_classes(case):
    rollout = AttentionRollout(case.forward).attribute(case.ids, **case.arguments)
    same(case.explain("attention_rollout"), rollout)
    flow = InformationFlow(case.forward).attribute(case.ids, **case.arguments)
    same(case.explain("information_flow"), flow)
    random = RandomAttribution(case.forward, seed=5).attribute(case.ids)
    same(case.explain("random", seed=5), random)


def test_the_value_is_the_same_for_all(case):
    values = [
        case.explain(method).value for method in METHODS if method not in ("deep_lift", "occlusion")
    ]
    assert values == pytest.approx([values[0]] * len(values), rel=1e-5)


# DeepLift ---------------------------------------------------------------------------------------


def query_of(model, target=5):
    ids = token_ids(batch=1)
    return Query(TokenLogits(model), ids, (None, 3), target)


def test_deep_lift_where_captum_has_a_rule_for_the_activation():
    model = tiny("opt", activation="relu")
    query = query_of(model)
    expected, delta = captum.DeepLift(query.forward).attribute(
        query.embeddings(), return_convergence_delta=True, **query.arguments
    )
    found = attribute("deep_lift", query, None, {})
    torch.testing.assert_close(found.relevances, expected.detach().sum(-1))
    torch.testing.assert_close(found.deltas, delta)
    plain = attribute("input_x_gradient", query, None, {})
    assert not torch.allclose(found.relevances, plain.relevances), "the rule is in use"


@pytest.mark.parametrize("family", [*FAMILIES, "bloom"])
def test_deep_lift_is_refused_where_it_would_be_a_plain_gradient(family):
    query = query_of(tiny(family))
    with pytest.raises(ValueError, match=r"no rule for \w+ in '.*' \(\w+\).*use input_x"):
        attribute("deep_lift", query, None, {})
    found = captum.DeepLift(query.forward).attribute(query.embeddings(), **query.arguments)
    plain = attribute("input_x_gradient", query, None, {})
    torch.testing.assert_close(found.detach().sum(-1), plain.relevances)


# All methods ------------------------------------------------------------------------------------


def state_of_numpy():
    return str(np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind(method):
    model = tiny("opt", activation="relu", dtype=torch.float32)
    query = query_of(model)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - Captum draws from it
    before = snapshot(model), torch.get_rng_state(), state_of_numpy()
    attribute(method, query, None, {})
    with pytest.raises((IndexError, AssertionError)):  # of a target that does not exist
        attribute(method, query_of(model, target=10**6), None, {})
    assert snapshot(model) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert state_of_numpy() == before[2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precisions(method, dtype):
    found = attribute(method, query_of(tiny("opt", activation="relu", dtype=dtype)), None, {})
    assert found.relevances.shape == (1, 5)
    assert found.relevances.isfinite().all()
    assert not found.relevances.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_where_no_gradient_exists(method):
    query = query_of(tiny("opt", activation="relu", dtype=torch.float32))
    expected = attribute(method, query, None, {}).relevances
    with torch.no_grad():
        torch.testing.assert_close(attribute(method, query, None, {}).relevances, expected)
    with torch.inference_mode():
        if method in ("feature_ablation", "occlusion", "random"):
            torch.testing.assert_close(attribute(method, query, None, {}).relevances, expected)
        else:
            with pytest.raises(RuntimeError, match=r"torch\.inference_mode rules out"):
                attribute(method, query, None, {})


def test_all_methods_are_described():
    for method in METHODS:
        assert 10 < len(description(method)) <= 90
        for value in options_of(method).values():
            assert isinstance(value, int | float | str | None)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lrpx", {"n_steps": 3}, "'lrpx' has no option 'n_steps'; it has none"),
        ("random", {"sead": 3}, "no option 'sead'; its options are seed"),
        ("integrated_gradients", {"n_steps": 0}, "at least 1"),
        ("integrated_gradients", {"n_steps": 2.5}, "takes int, not 2.5"),
        ("integrated_gradients", {"n_steps": True}, "takes int, not True"),
        ("integrated_gradients", {"n_steps": None}, "takes int, not None"),
        ("integrated_gradients", {"baseline": 3}, "takes str, not 3"),
        ("integrated_gradients", {"baseline": "nope"}, "must be one of zero, mask, pad, unk"),
        ("integrated_gradients", {"baseline": "mask"}, "has no mask token"),
        ("gradient_shap", {"stdevs": "much"}, "takes float, not 'much'"),
        ("altilogit", {"value_bias": "nope"}, "value_bias"),
        ("altilogit", {"include_start": 1}, "takes bool, not 1"),
    ],
)
def test_options_that_cannot_be_used(loaded, method, options, message):
    with pytest.raises(ValueError, match=message):
        explain(*loaded["sva-gpt2"], TEXT, "are", method=method, **options)


def test_only_methods_with_rules_take_a_recipe(loaded):
    from captum_lrpx import ATTN_LRP

    result = explain(*loaded["sva-gpt2"], TEXT, "are", method="lrpx", recipe=ATTN_LRP)
    assert result.recipe == "attnlrp"
    assert explain(*loaded["sva-gpt2"], TEXT, "are", method="random").recipe is None
    with pytest.raises(ValueError, match="'altilogit' has no rules"):
        explain(*loaded["sva-gpt2"], TEXT, "are", method="altilogit", recipe=ATTN_LRP)
