"""LRPx and AttnLRPx as Captum attributions of embeddings and of token ids."""

import pytest
import torch
from captum.attr import GradientAttribution, InputXGradient, NoiseTunnel
from models import FAMILIES, tiny, token_ids
from torch import nn

from captum_lrpx import ATTN_LRP, AttnLRPx, LRPx, propagation

METHODS = [LRPx, AttnLRPx]
FAMILY_AND_METHOD = [(family, method) for family in FAMILIES for method in METHODS]
TARGET = (-1, 7)

all_cases = pytest.mark.parametrize(("family", "method"), FAMILY_AND_METHOD)


def embeds_of(model):
    return model.get_input_embeddings()(token_ids()).detach()


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, embeds, mask=None):
        return self.model(inputs_embeds=embeds, attention_mask=mask).logits[:, -1]


@all_cases
def test_relevance_is_value_times_gradient_inside_the_context(family, method):
    model = tiny(family)
    embeds = embeds_of(model).requires_grad_()
    with propagation(model, method.default_recipe):
        logits = model(inputs_embeds=embeds).logits[:, -1, 7]
        (gradient,) = torch.autograd.grad(logits.sum(), embeds)
    relevance = method(model).attribute(embeds.detach(), target=TARGET)
    assert torch.equal(relevance, (embeds * gradient).detach())


@all_cases
def test_it_is_not_the_plain_gradient(family, method):
    model = tiny(family)
    plain = InputXGradient(Wrapper(model)).attribute(embeds_of(model), target=7)
    relevance = method(Wrapper(model)).attribute(embeds_of(model), target=7)
    assert not torch.allclose(plain, relevance, rtol=1e-2)


@all_cases
def test_ids_embeddings_wrappers_and_functions_agree(family, method):
    model = tiny(family)
    embeds = embeds_of(model)
    expected = method(model).attribute(embeds, target=TARGET)

    def function(embeds):
        return model(inputs_embeds=embeds).logits[:, -1]

    for forward, extra in [(Wrapper(model), {}), (function, {"model": model})]:
        assert torch.equal(method(forward, **extra).attribute(embeds, target=7), expected)
    of_ids = method(model).attribute(token_ids(), target=TARGET)
    assert of_ids.shape == token_ids().shape
    torch.testing.assert_close(of_ids, expected.sum(-1), rtol=0, atol=1e-12)


@all_cases
def test_additive_in_the_target(family, method):
    model = tiny(family)

    def both(embeds):
        logits = model(inputs_embeds=embeds).logits[:, -1]
        return 2 * logits[:, 3] - 0.5 * logits[:, 4]

    embeds = embeds_of(model)
    single = [method(model).attribute(embeds, target=(-1, token)) for token in (3, 4)]
    combined = method(both, model=model).attribute(embeds)
    # Llama's float32 parts round each backward pass on its own
    torch.testing.assert_close(combined, 2 * single[0] - 0.5 * single[1], rtol=1e-5, atol=1e-6)


@all_cases
def test_a_batch_is_its_rows(family, method):
    model = tiny(family)
    embeds = embeds_of(model)
    targets = [(-1, 3), (-2, 4)]
    together, deltas = method(model).attribute(embeds, targets, return_convergence_delta=True)
    for row, target in enumerate(targets):
        alone, delta = method(model).attribute(
            embeds[row : row + 1], target, return_convergence_delta=True
        )
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)
        torch.testing.assert_close(deltas[row : row + 1], delta, rtol=0, atol=1e-5)


@all_cases
def test_the_delta_is_output_minus_sum(family, method):
    model = tiny(family)
    embeds = embeds_of(model)
    relevance, delta = method(model).attribute(embeds, TARGET, return_convergence_delta=True)
    output = model(inputs_embeds=embeds).logits[:, -1, 7].detach()
    torch.testing.assert_close(delta, output - relevance.sum((1, 2)))
    assert method(model).has_convergence_delta()


@pytest.mark.parametrize("method", METHODS)
def test_captums_protocol(method):
    model = tiny("gpt2")
    attribution = method(model)
    assert isinstance(attribution, GradientAttribution)
    assert attribution.multiplies_by_inputs is True
    assert attribution.forward_func is model
    assert method.get_name() == method.__name__
    with pytest.raises(NotImplementedError, match=method.__name__):
        attribution.attribute_future()
    embeds = embeds_of(model)
    assert isinstance(attribution.attribute((embeds,), target=TARGET), tuple)
    with pytest.raises(AssertionError):
        attribution.attribute([embeds], target=TARGET)


@pytest.mark.parametrize("method", METHODS)
def test_noise_tunnel_keeps_the_rules(method):
    model = tiny("gpt2", dtype=torch.float32)
    attribution = method(Wrapper(model))
    embeds = embeds_of(model)
    noisy = NoiseTunnel(attribution).attribute(embeds, nt_samples=3, stdevs=0.0, target=7)
    torch.testing.assert_close(noisy, attribution.attribute(embeds, target=7))


@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(grad):
    model = tiny("llama")
    expected = AttnLRPx(model).attribute(embeds_of(model), target=TARGET)
    with grad():
        result = AttnLRPx(model).attribute(embeds_of(model), target=TARGET)
        assert torch.is_grad_enabled() is (grad is torch.enable_grad)
    assert torch.equal(result, expected)
    assert not result.requires_grad


def test_non_leaf_inputs_stay_in_their_graph():
    model = tiny("gpt2")
    leaf = embeds_of(model).requires_grad_()
    inputs = leaf * 1.0
    LRPx(model).attribute(inputs, target=TARGET)
    assert inputs.requires_grad
    assert leaf.grad is None


def test_frozen_parameters():
    model = tiny("llama")
    expected = LRPx(model).attribute(token_ids(), target=TARGET)
    model.requires_grad_(False)
    assert torch.equal(LRPx(model).attribute(token_ids(), target=TARGET), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_close_to_double(family, dtype):
    """Within the rounding of the arithmetic: 2^-8 and 2^-11, over some twenty layers."""
    exact = tiny(family, dtype=torch.float64)
    half = tiny(family, dtype=dtype)
    for method in METHODS:
        expected = method(exact).attribute(token_ids(), target=TARGET)
        result = method(half).attribute(token_ids(), target=TARGET)
        assert result.dtype is dtype
        scale = expected.abs().sum()
        error = (result.double() - expected).abs().sum() / scale
        assert error < (0.08 if dtype is torch.bfloat16 else 0.01)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_one_token(attn):
    model = tiny("gpt2", attn=attn)
    for method in METHODS:
        relevance = method(model).attribute(token_ids(length=1), target=(0, 3))
        assert torch.isfinite(relevance).all()


def test_a_function_without_its_model_is_refused():
    model = tiny("gpt2")
    with pytest.raises(ValueError, match="model="):
        LRPx(lambda embeds: model(inputs_embeds=embeds).logits[:, -1])


def test_a_bound_method_knows_its_model():
    model = tiny("gpt2")
    assert LRPx(model.forward).model is model


def test_a_module_without_a_transformers_model_is_explained_itself():
    linear = nn.Linear(2, 2)
    assert LRPx(linear).model is linear


def test_two_models_in_one_module_need_a_choice():
    pair = nn.ModuleDict({"a": tiny("gpt2"), "b": tiny("bert")})
    with pytest.raises(ValueError, match="several"):
        LRPx(pair)
    assert LRPx(pair, model=pair["a"]).model is pair["a"]


def test_inference_mode_is_refused():
    model = tiny("gpt2")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        LRPx(model).attribute(token_ids(), target=TARGET)


def test_recipes_are_an_argument():
    model = tiny("llama")
    attn = LRPx(model, recipe=ATTN_LRP).attribute(token_ids(), target=TARGET)
    assert torch.equal(attn, AttnLRPx(model).attribute(token_ids(), target=TARGET))
