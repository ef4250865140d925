"""Blocks compiled together with their rules: the same relevances, and a model left as it was."""

import gc
import os
import shutil
import threading
import weakref

import pytest
import torch
from captum.attr._utils.lrp_rules import EpsilonRule
from models import tiny, token_ids
from state import snapshot
from torch import nn
from torch._dynamo import lookup_backend
from torch._inductor import config as inductor_config

from captum_lrpx import (
    ATTN_LRP,
    LRP,
    AttnLRPx,
    LLMRelevance,
    LRPx,
    TokenLogits,
    compiled,
    propagation,
    zoo,
)

ARGUMENTS = {"target": 5, "additional_forward_args": (None, 3)}


@pytest.fixture(autouse=True)
def compilations(monkeypatch):
    """What was compiled, by a backend that traces and runs what it traced, without C++."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(compiled, "BACKEND", backend)
    return found


def check_equal(found, expected, tolerance=1e-12):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert expected.abs().max() > 0


def gradients(model, recipe, ids=None, **options):
    """The gradient of a logit, under rules."""
    embeds = model.get_input_embeddings()(token_ids() if ids is None else ids)
    embeds = embeds.detach().requires_grad_()
    with propagation(model, recipe, **options):
        logit = model(inputs_embeds=embeds, use_cache=False).logits[:, -1, 5].sum()
        return torch.autograd.grad(logit, embeds)[0]


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_relevances_are_those_without_the_compiler(family, method, compilations):
    model = tiny(family, attn="sdpa", layers=3)
    plain = method(TokenLogits(model)).attribute(token_ids(), **ARGUMENTS)
    before = snapshot(model)
    attribution = method(TokenLogits(model), compile=True)
    check_equal(attribution.attribute(token_ids(), **ARGUMENTS), plain)
    assert snapshot(model) == before
    assert len(compilations) == 1  # for two blocks that do the same


def test_a_graph_is_made_once_for_each_shape(compilations):
    forward = TokenLogits(tiny("gpt2", attn="sdpa"))
    attribution = LRPx(forward, compile=True)
    for seed in range(2):
        plain = LRPx(forward).attribute(token_ids(seed=seed), **ARGUMENTS)
        check_equal(attribution.attribute(token_ids(seed=seed), **ARGUMENTS), plain)
    assert len(compilations) == 1
    attribution.attribute(token_ids(length=6), **ARGUMENTS)
    assert len(compilations) == 2


CXX = os.environ.get("CXX", "g++")


@pytest.mark.skipif(shutil.which(CXX) is None, reason=f"there is no C++ compiler {CXX}")
def test_the_compiler_of_pytorch(monkeypatch):
    monkeypatch.undo()
    assert compiled.BACKEND == "inductor"
    # No pool of compiling processes, each of which would import PyTorch first.
    monkeypatch.setattr(inductor_config, "compile_threads", 1)
    forward = TokenLogits(tiny("gpt2", attn="sdpa"))
    plain = AttnLRPx(forward).attribute(token_ids(), **ARGUMENTS)
    check_equal(AttnLRPx(forward, compile=True).attribute(token_ids(), **ARGUMENTS), plain)


def test_rows_of_a_padded_batch():
    forward = TokenLogits(tiny("llama", attn="sdpa"))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    arguments = {"target": 5, "additional_forward_args": (mask,)}
    plain = LRPx(forward).attribute(token_ids(), **arguments)
    check_equal(LRPx(forward, compile=True).attribute(token_ids(), **arguments), plain)


def test_many_targets_from_one_graph():
    model = tiny("gpt2", attn="sdpa")
    forward = TokenLogits(model)
    plain = AttnLRPx(forward).attribute_targets(token_ids(), [4, 5, 6])
    ours = AttnLRPx(forward, compile=True)
    check_equal(ours.attribute_targets(token_ids(), [4, 5, 6]), plain)


def test_a_continuation_from_one_graph():
    model, tokenizer = zoo.load("sva-gpt2")

    def found(**options):
        llm = LLMRelevance(AttnLRPx(model, **options), tokenizer)
        return llm.attribute("the keys to the", "cabinet are").token_attr

    check_equal(found(compile=True), found(), tolerance=1e-5)  # in float32


# What a compiled block is made for --------------------------------------------------------------


def test_blocks_that_do_different_things_share_nothing(compilations):
    """The scores of GPT-2's blocks may be divided by the number of the block."""
    model = tiny("gpt2", attn="sdpa", layers=3, scale_attn_by_inverse_layer_idx=True)
    check_equal(gradients(model, ATTN_LRP, compile=True), gradients(model, ATTN_LRP))
    assert len(compilations) == 2


def test_other_weights_need_no_other_graph(compilations):
    model = tiny("bert", attn="sdpa")
    gradients(model, LRP, compile=True)
    output = model.bert.encoder.layer[0].output.dense
    with torch.no_grad():
        output.weight += 1
    check_equal(gradients(model, LRP, compile=True), gradients(model, LRP))
    output.weight = nn.Parameter(torch.randn_like(output.weight))
    check_equal(gradients(model, LRP, compile=True), gradients(model, LRP))
    assert len(compilations) == 1


def test_other_settings_need_another_graph(compilations):
    model = tiny("llama", attn="sdpa")
    gradients(model, LRP, compile=True)
    model.model.layers[0].input_layernorm.variance_epsilon = 0.5
    check_equal(gradients(model, LRP, compile=True), gradients(model, LRP))
    model.set_attn_implementation("eager")
    check_equal(gradients(model, LRP, compile=True), gradients(model, LRP))
    assert len(compilations) == 3


def test_recipes_have_graphs_of_their_own(compilations):
    model = tiny("gpt2", attn="sdpa")
    expected = {recipe: gradients(model, recipe) for recipe in (LRP, ATTN_LRP)}
    with propagation(model, ATTN_LRP, compile=True):
        check_equal(gradients(model, LRP, compile=True), expected[LRP])
        check_equal(gradients(model, LRP), expected[LRP])
    with propagation(model, LRP):
        check_equal(gradients(model, ATTN_LRP, compile=True), expected[ATTN_LRP])
    assert len(compilations) == 2


def test_checkpointed_blocks_can_be_compiled():
    model = tiny("llama", attn="sdpa", layers=3)
    both = gradients(model, ATTN_LRP, compile=True, checkpointing=True)
    check_equal(both, gradients(model, ATTN_LRP))


def test_relevance_of_biases():
    model = tiny("bert", attn="sdpa", layers=3)
    bias = model.bert.encoder.layer[0].output.dense.bias

    def of_bias(**options):
        with propagation(model, LRP, freeze_parameters=False, **options):
            embeds = model.get_input_embeddings()(token_ids())
            logit = model(inputs_embeds=embeds).logits[:, -1, 5].sum()
            return torch.autograd.grad(logit, bias)[0]

    check_equal(of_bias(compile=True), of_bias())


def test_threads_see_neither_rules_nor_tracing():
    model = tiny("gpt2", attn="sdpa", layers=3)
    expected, logits = gradients(model, ATTN_LRP), model(token_ids()).logits
    found, plain, done = [], [], threading.Event()

    def run():
        while not done.is_set():
            plain.append(torch.equal(model(token_ids()).logits, logits))

    def explain():
        found.append(gradients(model, ATTN_LRP, compile=True))

    beside = threading.Thread(target=run)
    threads = [threading.Thread(target=explain) for _ in range(2)]
    for thread in (beside, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    beside.join()
    assert all(plain)
    assert len(found) == 2
    for each in found:
        check_equal(each, expected)


def test_what_was_compiled_holds_no_call():
    """Neither the inputs nor, behind them, the graph of the blocks before."""
    model = tiny("gpt2", attn="sdpa", layers=3)
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    with propagation(model, LRP, compile=True):
        model(inputs_embeds=embeds, use_cache=False)
    seen = weakref.ref(embeds)
    del embeds
    gc.collect()
    assert seen() is None


def test_hooks_on_blocks_run_as_always():
    model, seen = tiny("gpt2", attn="sdpa", layers=3), []
    for block in model.transformer.h:
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    gradients(model, LRP, compile=True)
    assert len(seen) == 3
    assert all(type(output) is torch.Tensor for output in seen)


# What is refused --------------------------------------------------------------------------------


def test_what_stands_against_it_is_said():
    model = tiny("llama", attn="sdpa")
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    inside = model.model.layers[0].mlp
    with propagation(model, LRP, compile=True):
        with pytest.raises(RuntimeError, match=r"DynamicCache.*use_cache=False.*model.layers.0"):
            model(inputs_embeds=embeds)
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(RuntimeError, match=r"autocast"),
        ):
            model(inputs_embeds=embeds, use_cache=False)
        handle = inside.register_forward_hook(lambda *_: None)
        with pytest.raises(RuntimeError, match=r"hooks.*LlamaMLP"):
            model(inputs_embeds=embeds, use_cache=False)
        handle.remove()
        inside.train()
        with pytest.raises(RuntimeError, match=r"evaluation mode.*LlamaMLP"):
            model(inputs_embeds=embeds, use_cache=False)
        inside.eval()
        with pytest.raises(RuntimeError, match=r"torch\.func"):
            torch.func.grad(lambda x: model(inputs_embeds=x, use_cache=False).logits.sum())(embeds)


def test_a_hook_on_all_modules_is_refused():
    model = tiny("llama", attn="sdpa")
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(RuntimeError, match="hooks on all modules"):
            gradients(model, LRP, compile=True)
    finally:
        handle.remove()


class Adapter(nn.Linear):
    """A layer that is called Linear and may do more."""


def test_layers_and_rules_of_the_user_are_refused():
    model = tiny("llama", attn="sdpa")
    model.model.layers[0].mlp.up_proj.rule = EpsilonRule()
    with pytest.raises(ValueError, match=r"`rule` attribute.*override"):
        gradients(model, LRP, compile=True)
    del model.model.layers[0].mlp.up_proj.rule
    model.model.layers[0].mlp.up_proj.__class__ = Adapter
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"up_proj' is a Adapter"):
        gradients(model, LRP, compile=True)
    assert snapshot(model) == before


def test_an_activation_that_looks_at_its_values():
    model = tiny("gpt2", attn="sdpa", activation="mish")
    with pytest.raises(RuntimeError, match=r"cannot be compiled together with its rules"):
        gradients(model, LRP, compile=True)


def test_a_backend_that_fails(monkeypatch):
    def backend(*_):
        raise OSError("no compiler")

    monkeypatch.setattr(compiled, "BACKEND", backend)
    model = tiny("gpt2", attn="sdpa")
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"transformer\.h\.0.*C\+\+ compiler") as refused:
        gradients(model, LRP, compile=True)
    assert isinstance(refused.value.__cause__, OSError)
    assert snapshot(model) == before
