"""What people wrap around a model: checkpointing, compilers, torch.func, pipelines, copies."""

import copy
import pickle

import pytest
import torch
from anatomy import blocks_of
from ecosystem import METHODS, TARGET, check_same, embeds_of, gradient, methods
from models import tiny, token_ids
from state import snapshot
from torch import nn

from captum_lrpx import ATTN_LRP, LRP, LayerAttnLRPx, LRPx, propagation

NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "llama": {},
}

# Gradient checkpointing ------------------------------------------------------------------------


def checkpointed(family, *, reentrant=False):
    model = tiny(family, **NO_DROPOUT[family])
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model.train()  # transformers checkpoints in training mode only


@methods
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.filterwarnings("ignore:.*training mode")
def test_checkpointing(family, reentrant, method):
    model = checkpointed(family, reentrant=reentrant)
    before = snapshot(model)
    check_same(method, model, tiny(family))
    assert snapshot(model) == before


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.filterwarnings("ignore:.*training mode")
def test_layers_inside_of_checkpointed_blocks(family):
    model, plain = checkpointed(family), tiny(family)

    def explained(model):
        block = blocks_of(model)[1]
        layers = [block.module, block.mixed, block.output, block.up]
        return LayerAttnLRPx(model, layers).attribute(token_ids(), TARGET)

    torch.testing.assert_close(explained(model), explained(plain))


@pytest.mark.filterwarnings("ignore:.*training mode")
def test_checkpointing_with_nested_recipes():
    model, plain = checkpointed("llama"), tiny("llama")
    with propagation(plain, LRP):
        expected = gradient(plain, embeds_of(plain))
    with propagation(model, ATTN_LRP), propagation(model, LRP):
        torch.testing.assert_close(gradient(model, embeds_of(model)), expected)


# torch.compile ---------------------------------------------------------------------------------


def compiled(how):
    model = tiny("llama")
    if how == "module":
        return model, torch.compile(model, backend="eager")
    if how == "in place":
        model.compile(backend="eager")
    elif how == "blocks":
        for block in model.model.layers:
            block.compile(backend="eager")
    elif how == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    return model, model


@pytest.mark.parametrize("how", ["module", "in place", "blocks", "forward"])
def test_compiled_models_are_explained_by_the_rules(how):
    """A graph that was compiled without the rules would give the plain gradient."""
    torch.compiler.reset()
    (model, subject), plain = compiled(how), tiny("llama")
    embeds = embeds_of(model)
    expected = gradient(plain, embeds)
    torch.testing.assert_close(gradient(subject, embeds), expected)  # compiles
    for method in METHODS:
        check_same(method, subject, plain)
    torch.testing.assert_close(gradient(subject, embeds), expected)


def test_the_compiler_works_again_behind_the_explanation():
    torch.compiler.reset()
    runs = []

    def backend(graph, _):
        runs.append(graph)
        return graph

    double = torch.compile(lambda x: 2 * x, backend=backend)
    model = tiny("gpt2")
    with propagation(model, LRP):
        with propagation(model, ATTN_LRP):
            double(torch.ones(2))
        double(torch.ones(2))
        assert not runs
    with pytest.raises(AssertionError, match="Target type"):
        LRPx(model).attribute(token_ids(), target="are")
    double(torch.ones(2))
    assert len(runs) == 1


# inference_mode and torch.func -----------------------------------------------------------------


@methods
def test_parameters_made_under_inference_mode_are_refused(method):
    with torch.inference_mode():
        model = tiny("llama")
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"created under torch\.inference_mode.*deepcopy"):
        method(model).attribute(token_ids(), TARGET)
    assert snapshot(model) == before
    check_same(method, copy.deepcopy(model), tiny("llama"))


@methods
def test_inputs_made_under_inference_mode(method):
    model = tiny("gpt2")
    with torch.inference_mode():
        ids = token_ids()
        embeds, mask = model.get_input_embeddings()(ids), torch.zeros(2, 1, 5, 5).double()
    expected = method(model).attribute(token_ids(), TARGET, (None, mask.clone()))
    found = method(model).attribute(ids, TARGET, (None, mask))
    torch.testing.assert_close(found, expected)
    assert method(model).attribute(embeds, TARGET, (None, mask)).shape == embeds.shape
    assert embeds.is_inference()


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
def test_func_grad_and_vmap_inside_of_a_propagation(recipe):
    model = tiny("llama")
    embeds = embeds_of(model)

    def value(x):
        return model(inputs_embeds=x[None], use_cache=False).logits[0, -1, TARGET[1]]

    with propagation(model, recipe):
        expected = gradient(model, embeds)
        torch.testing.assert_close(torch.func.grad(value)(embeds[1]), expected[1])
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(value))(embeds), expected)


# Wrappers, pipelines, copies -------------------------------------------------------------------


class Pipeline:
    """As those of transformers: callable, with the model inside."""

    def __init__(self, model):
        self.model = model

    def __call__(self, text):
        raise AssertionError(text)


@methods
def test_a_pipeline_is_refused_and_its_model_is_not(method):
    pipeline = Pipeline(tiny("gpt2"))
    with pytest.raises(ValueError, match=r"Pipeline .* give its `\.model`"):
        method(pipeline)
    check_same(method, pipeline.model, tiny("gpt2"))


def test_a_pipeline_of_transformers():
    from transformers import TextClassificationPipeline

    class Tokenizer:
        """Enough of one to build a pipeline."""

    model = tiny("bert", head="sequence")
    pipeline = TextClassificationPipeline(model=model, tokenizer=Tokenizer())
    with pytest.raises(ValueError, match=r"TextClassificationPipeline .* give its `\.model`"):
        LRPx(pipeline)
    assert torch.equal(
        LRPx(pipeline.model).attribute(token_ids(), 1), LRPx(model).attribute(token_ids(), 1)
    )


@methods
def test_data_parallel_without_devices_is_transparent(method):
    model = tiny("bert")
    check_same(method, nn.DataParallel(model, device_ids=[]), model)


@methods
def test_data_parallel_over_several_devices_is_refused(method):
    wrapper = nn.DataParallel(tiny("bert"))
    wrapper.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"DataParallel .* explain its `\.module`"):
        method(wrapper)
    with pytest.raises(ValueError, match=r"DataParallel .* explain its `\.module`"):
        method(wrapper, model=wrapper.module)


@methods
@pytest.mark.parametrize("how", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])  # noqa: S301
def test_attributions_and_explained_models_can_be_copied_and_pickled(how, method):
    model = tiny("llama")
    expected = method(model).attribute(token_ids(), TARGET)
    attribution = how(method(model))
    assert attribution.model is not model
    assert torch.equal(attribution.attribute(token_ids(), TARGET), expected)
    assert torch.equal(method(how(model)).attribute(token_ids(), TARGET), expected)


@pytest.mark.parametrize("how", [copy.deepcopy, pickle.dumps])
def test_a_model_with_open_rules_is_not_copied(how):
    model = tiny("llama")
    before = snapshot(model)
    with propagation(model, LRP), pytest.raises(RuntimeError, match="cannot be copied or pickled"):
        how(model)
    assert snapshot(model) == before
