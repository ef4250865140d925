"""Rules are attached to instances, for the calling thread, for the time of a context."""

import copy
import gc
import threading
import warnings
import weakref

import pytest
import torch
from models import FAMILIES, tiny, token_ids
from state import snapshot

from captum_lrpx import ATTN_LRP, LRP, AttnLRPx, LRPx, propagation
from captum_lrpx.recipes import Recipe

TARGET = (-1, 7)


def embeds_of(model, seed=0):
    return model.get_input_embeddings()(token_ids(seed=seed)).detach()


def gradient(model, embeds, position=-1):
    embeds = embeds.clone().requires_grad_()
    value = model(inputs_embeds=embeds).logits[:, position, TARGET[1]].sum()
    return torch.autograd.grad(value, embeds)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_behind_after_success(family):
    model = tiny(family)
    embeds, before = embeds_of(model), snapshot(model)
    plain = gradient(model, embeds)
    for method in (LRPx, AttnLRPx):
        method(model).attribute(embeds, target=TARGET)
        method(model).attribute(token_ids(), target=TARGET)
    assert snapshot(model) == before
    assert torch.equal(gradient(model, embeds), plain)


class Failure(BaseException):
    """Not an Exception: as a KeyboardInterrupt is not."""


def fail_in_forward(model):
    def fail(*_):
        raise Failure

    return [module for module in model.modules() if not list(module.children())][-3], fail


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_behind_after_a_failure_in_the_forward_pass(family):
    model = tiny(family)
    embeds, before = embeds_of(model), snapshot(model)
    module, fail = fail_in_forward(model)
    handle = module.register_forward_hook(fail)
    for inputs in (embeds, token_ids()):
        with pytest.raises(Failure):
            LRPx(model).attribute(inputs, target=TARGET)
    handle.remove()
    assert snapshot(model) == before
    assert not embeds.requires_grad
    assert embeds.grad is None


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_behind_after_a_failure_in_the_backward_pass(family):
    model = tiny(family)
    before = snapshot(model)

    def fail(grad):  # noqa: ARG001
        raise Failure

    def forward(embeds):
        logits = model(inputs_embeds=embeds).logits[:, -1]
        logits.register_hook(fail)
        return logits

    with pytest.raises(Failure):
        LRPx(forward, model=model).attribute(embeds_of(model), target=7)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (None, AssertionError),
        ("are", AssertionError),
        ((0, 10**6), IndexError),
        (3, AssertionError),
    ],
)
def test_nothing_is_left_behind_after_a_wrong_target(target, error):
    model = tiny("gpt2")
    embeds, before = embeds_of(model), snapshot(model)
    for inputs in (embeds, token_ids()):
        with pytest.raises(error):
            LRPx(model).attribute(inputs, target=target)
    assert snapshot(model) == before
    assert not embeds.requires_grad


def test_training_flags_are_kept_and_training_mode_warns():
    model = tiny("gpt2")
    model.transformer.h[1].train()
    before = snapshot(model)
    with pytest.warns(UserWarning, match="training mode"):
        LRPx(model).attribute(embeds_of(model), target=TARGET)
    assert snapshot(model) == before


def test_requires_grad_is_restored_one_by_one():
    model = tiny("llama")
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    before = snapshot(model)
    with propagation(model, LRP):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        with propagation(model, ATTN_LRP):
            assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert snapshot(model) == before


def test_parameters_can_keep_their_gradient():
    model = tiny("gpt2")
    with propagation(model, LRP, freeze_parameters=False):
        model(token_ids()).logits[0, -1, 3].backward()
    assert model.transformer.ln_f.bias.grad is not None


def test_the_models_forward_attribute_of_an_instance_is_put_back():
    """As accelerate sets one on each module of a dispatched model."""
    model = tiny("gpt2")
    norm = model.transformer.ln_f
    norm.forward = original = norm.forward
    LRPx(model).attribute(embeds_of(model), target=TARGET)
    assert vars(norm)["forward"] is original


def test_two_recipes_nest():
    model = tiny("llama")
    embeds = embeds_of(model)
    expected = {}
    for recipe in (LRP, ATTN_LRP):
        with propagation(model, recipe):
            expected[recipe] = gradient(model, embeds)
    assert not torch.allclose(expected[LRP], expected[ATTN_LRP])
    with propagation(model, LRP):
        with propagation(model, ATTN_LRP):
            assert torch.equal(gradient(model, embeds), expected[ATTN_LRP])
        assert torch.equal(gradient(model, embeds), expected[LRP])
        with pytest.raises(Failure), propagation(model, ATTN_LRP):
            raise Failure
        assert torch.equal(gradient(model, embeds), expected[LRP])


def test_an_inner_recipe_without_rules_hides_the_outer_one():
    from captum_lrpx.rules import (
        ActivationGradient,
        AttentionGradient,
        NormGradient,
        ProductGradient,
    )

    none = Recipe(
        "none", NormGradient(), ActivationGradient(), AttentionGradient(), ProductGradient()
    )
    model = tiny("llama")
    embeds = embeds_of(model)
    plain = gradient(model, embeds)
    with propagation(model, LRP), propagation(model, none):
        assert torch.equal(gradient(model, embeds), plain)


def test_two_models_nest():
    first, second = tiny("gpt2"), tiny("gpt2", seed=1)
    embeds = embeds_of(first)
    plain = gradient(second, embeds)
    with propagation(second, ATTN_LRP):
        expected = gradient(second, embeds)
    with propagation(first, LRP):
        assert torch.equal(gradient(second, embeds), plain)
        with propagation(second, ATTN_LRP):
            assert torch.equal(gradient(second, embeds), expected)
        assert torch.equal(gradient(second, embeds), plain)


def test_a_plain_model_in_the_same_process_stays_plain():
    model = tiny("bert")
    twin = copy.deepcopy(model)
    embeds = embeds_of(model)
    plain = gradient(twin, embeds)
    with propagation(model, LRP):
        assert torch.equal(gradient(twin, embeds), plain)
    assert torch.equal(gradient(model, embeds), plain)


def test_threads_do_not_see_each_others_rules():
    """One model, two recipes and a plain forward pass, each in its thread, at the same time."""
    model = tiny("llama")
    embeds = embeds_of(model)
    expected = {
        "plain": gradient(model, embeds),
        "lrp": LRPx(model).attribute(embeds, target=TARGET),
        "attnlrp": AttnLRPx(model).attribute(embeds, target=TARGET),
    }
    right, barrier = [], threading.Barrier(3)

    def once(name):
        if name == "plain":
            return gradient(model, embeds)
        method = LRPx if name == "lrp" else AttnLRPx
        return method(model).attribute(embeds, target=TARGET)

    def work(name):
        barrier.wait()
        right.extend(torch.equal(once(name), expected[name]) for _ in range(30))

    before = snapshot(model)
    threads = [threading.Thread(target=work, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == 3 * 30 * [True]
    assert snapshot(model) == before


def test_gradient_checkpointing_gives_the_same():
    model = tiny("llama")
    embeds = embeds_of(model)
    with propagation(model, ATTN_LRP):
        expected = gradient(model, embeds)
    model.gradient_checkpointing_enable()
    model.train()  # transformers checkpoints in training mode only; there is no dropout here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with propagation(model, ATTN_LRP):
            torch.testing.assert_close(gradient(model, embeds), expected)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_hooks_of_a_user_see_what_they_always_see(family):
    model = tiny(family)
    embeds, seen = embeds_of(model), []

    def note(module, args, output):  # noqa: ARG001
        seen.append((module, output))

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(note)
    model(inputs_embeds=embeds)
    plain = seen.copy()
    for recipe in (LRP, ATTN_LRP):
        seen.clear()
        with propagation(model, recipe):
            gradient(model, embeds)
        for (module, found), (other, expected) in zip(seen, plain, strict=True):
            assert module is other
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_pass_that_is_over_holds_none_of_its_inputs():
    model = tiny("gpt2")
    embeds = embeds_of(model).requires_grad_()
    reference = weakref.ref(embeds)
    with propagation(model, LRP):
        model(inputs_embeds=embeds)  # and no backward pass
    del embeds
    gc.collect()
    assert reference() is None


def test_an_explained_model_can_be_garbage_collected():
    model = tiny("gpt2")
    LRPx(model).attribute(token_ids(), target=TARGET)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_a_model_that_got_new_modules_is_bound_again():
    model = tiny("gpt2")
    first = LRPx(model).attribute(token_ids(), target=TARGET)
    model.transformer.ln_f = copy.deepcopy(model.transformer.ln_f)
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(2)
        model.transformer.ln_f.bias.mul_(2)
    second = LRPx(model).attribute(token_ids(), target=TARGET)
    torch.testing.assert_close(second, 2 * first)


def test_the_rng_is_not_consumed():
    model = tiny("gpt2")
    state = torch.get_rng_state()
    LRPx(model).attribute(token_ids(), target=TARGET)
    assert torch.equal(torch.get_rng_state(), state)
