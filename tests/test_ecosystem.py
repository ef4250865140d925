"""What people wrap around a model: adapters, offloading, precisions, compilers, copies."""

import copy
import pickle

import pytest
import torch
from models import tiny, token_ids
from state import snapshot
from torch import nn

from captum_lrpx import ATTN_LRP, LRP, ALTILogit, AttnLRPx, LayerAttnLRPx, LRPx, propagation
from captum_lrpx.propagation import sites_of

TARGET = (-1, 7)
METHODS = (LRPx, AttnLRPx, ALTILogit)
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "llama": {},
}

methods = pytest.mark.parametrize("method", METHODS)


def embeds_of(model):
    return model.get_input_embeddings()(token_ids()).detach()


def gradient(forward, embeds):
    embeds = embeds.clone().requires_grad_()
    value = forward(inputs_embeds=embeds, use_cache=False).logits[:, -1, TARGET[1]].sum()
    return torch.autograd.grad(value, embeds)[0]


def check_same(method, subject, model, **tolerance):
    """Ids and embeddings get the relevances that a plain model gives them."""
    plain = method(model)
    for inputs in (token_ids(), embeds_of(model)):
        expected = plain.attribute(inputs, TARGET)
        assert expected.abs().max() > 1e-3
        found = method(subject).attribute(inputs, TARGET)
        torch.testing.assert_close(found, expected, **tolerance)


def distance(found, expected):
    """Largest deviation, in units of the largest relevance."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


# PEFT ------------------------------------------------------------------------------------------


def with_lora(family, task_type=None, *, biases="random", **config):
    peft = pytest.importorskip("peft")
    options = {"r": 2, "target_modules": "all-linear", "fan_in_fan_out": family == "gpt2"} | config
    model = peft.get_peft_model(
        tiny(family, biases=biases), peft.LoraConfig(task_type=task_type, **options)
    ).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise, alpha=0.3)
    return model.eval()


def merged(model):
    return copy.deepcopy(model).merge_and_unload().eval()


@methods
@pytest.mark.parametrize(
    ("family", "task_type"),
    [("llama", "CAUSAL_LM"), ("llama", None), ("gpt2", "CAUSAL_LM"), ("bert", None)],
)
def test_an_adapter_counts_as_part_of_its_layer(family, task_type, method):
    model = with_lora(family, task_type)
    before = snapshot(model)
    check_same(method, model, merged(model))
    assert snapshot(model) == before
    adapted = method(model).attribute(token_ids(), TARGET)
    assert not torch.allclose(adapted, method(tiny(family)).attribute(token_ids(), TARGET))


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["v_proj", "lm_head"]},
        {"target_modules": ["v_proj"], "use_dora": True},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    ],
    ids=lambda config: "-".join(config.keys()) + "-" + config["target_modules"][-1],
)
@methods
def test_adapters_elsewhere(config, method):
    model = with_lora("llama", "CAUSAL_LM", **config)
    check_same(method, model, merged(model))


@methods
def test_an_adapter_that_is_disabled_or_merged(method):
    model, base = with_lora("llama", "CAUSAL_LM"), tiny("llama")
    expected = method(model).attribute(token_ids(), TARGET)
    with model.disable_adapter():
        check_same(method, model, base)
    model.merge_adapter()
    torch.testing.assert_close(method(model).attribute(token_ids(), TARGET), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(method(model).attribute(token_ids(), TARGET), expected)


def test_lrp_with_an_adapter_conserves():
    model = with_lora("gpt2", "CAUSAL_LM", biases="zero")
    nn.init.zeros_(model.get_base_model().transformer.wpe.weight)
    relevance, delta = LRPx(model).attribute(token_ids(), TARGET, return_convergence_delta=True)
    value = model(token_ids()).logits[:, -1, TARGET[1]]
    torch.testing.assert_close(relevance.sum(1), value, rtol=1e-10, atol=1e-12)
    assert delta.abs().max() < 1e-10


def test_layers_of_a_model_with_adapters():
    model = with_lora("llama", "CAUSAL_LM")
    plain = merged(model)
    layers = [model.get_base_model().model.layers[0], model.get_base_model().model.norm]
    found = LayerAttnLRPx(model, layers).attribute(token_ids(), TARGET)
    expected = LayerAttnLRPx(plain, [plain.model.layers[0], plain.model.norm])
    torch.testing.assert_close(found, expected.attribute(token_ids(), TARGET))


# accelerate ------------------------------------------------------------------------------------


def offloaded(family, how, folder):
    accelerate = pytest.importorskip("accelerate")
    model = tiny(family)
    if how == "cpu":
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    if how == "disk":
        return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))
    base = model.base_model_prefix
    parts = [f"{base}.{name}" for name, _ in model.get_submodule(base).named_children()]
    parts += [name for name, _ in model.named_children() if name != base]
    blocks = {"bert": "bert.encoder", "gpt2": "transformer.h", "llama": "model.layers"}[family]
    device_map = dict.fromkeys(parts, "cpu") | {blocks: "disk"}
    return accelerate.dispatch_model(
        model, device_map, main_device="cpu", offload_dir=folder, force_hooks=True
    )


def hooks_of(model):
    names = ("forward", "_old_forward", "_hf_hook")
    return {
        path: (sorted(vars(module)), [id(vars(module).get(name)) for name in names])
        for path, module in model.named_modules()
    }


@methods
@pytest.mark.parametrize("how", ["cpu", "disk", "device_map"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.filterwarnings("ignore")
def test_offloaded_models(family, how, method, tmp_path):
    model = offloaded(family, how, tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    hooks = hooks_of(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    check_same(method, model, tiny(family))
    assert hooks_of(model) == hooks
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(flags.values())


def test_layers_of_an_offloaded_model(tmp_path):
    model, plain = offloaded("llama", "disk", tmp_path), tiny("llama")
    found = LayerAttnLRPx(model, model.model.layers[1]).attribute(token_ids(), TARGET)
    expected = LayerAttnLRPx(plain, plain.model.layers[1]).attribute(token_ids(), TARGET)
    torch.testing.assert_close(found, expected)


# Precision -------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.bfloat16, 8), (torch.float16, 8)], ids=["bf16", "fp16"]
)
def test_half_precision_is_close_to_double(family, dtype, allowed, method):
    """The deviation is a few units in the last place of the precision."""
    expected = method(tiny(family)).attribute(token_ids(), TARGET)
    model = tiny(family, dtype=dtype)
    for inputs in (token_ids(), embeds_of(model)):
        found = method(model).attribute(inputs, TARGET)
        if inputs.ndim == 3:
            assert found.dtype == dtype
            found = found.double().sum(-1)
        assert distance(found, expected) < allowed * torch.finfo(dtype).eps


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "qwen3"])
def test_autocast_computes_the_same_values(family, attn, recipe):
    model = tiny(family, dtype=torch.float32, attn=attn)
    embeds = embeds_of(model).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(inputs_embeds=embeds).logits
        with propagation(model, recipe):
            found = model(inputs_embeds=embeds).logits
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@methods
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_autocast_around_the_call_or_in_the_forward_function(family, attn, method):
    expected = method(tiny(family, attn=attn)).attribute(token_ids(), TARGET)
    model = tiny(family, dtype=torch.float32, attn=attn)

    def forward(ids):
        with torch.autocast("cpu", torch.bfloat16):
            return model(ids).logits

    with torch.autocast("cpu", torch.bfloat16):
        around = method(model).attribute(token_ids(), TARGET)
    inside = method(forward, model).attribute(token_ids(), TARGET)
    for found in (around, inside):
        assert distance(found, expected) < 8 * torch.finfo(torch.bfloat16).eps


# Quantization ----------------------------------------------------------------------------------


class WeightOnlyLinear(nn.Module):
    """A linear layer with int8 weights, as quantization libraries have them."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


@methods
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_quantized_weights_are_no_obstacle(family, method):
    plain = tiny(family, tie_word_embeddings=False)
    model = copy.deepcopy(plain)
    for path, module in list(plain.named_modules()):
        if isinstance(module, nn.Linear):
            quantized = WeightOnlyLinear(module).eval()
            model.set_submodule(path, quantized)
            with torch.no_grad():
                module.weight.copy_(quantized.weight * quantized.scale)
    check_same(method, model, plain)


@methods
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.filterwarnings("ignore")
def test_layers_without_a_backward_pass_are_refused(family, method):
    """PyTorch itself gives zeros for the gradient of a dynamically quantized layer."""
    plain = tiny(family, dtype=torch.float32)
    model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    before = hooks_of(model)
    for inputs in (token_ids(), embeds_of(model)):
        with pytest.raises(RuntimeError, match=r"has no backward pass.*before it is quantized"):
            method(model).attribute(inputs, TARGET)
    assert hooks_of(model) == before


# Gradient checkpointing ------------------------------------------------------------------------


def checkpointed(family):
    model = tiny(family, **NO_DROPOUT[family])
    model.gradient_checkpointing_enable()
    return model.train()  # transformers checkpoints in training mode only


@methods
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.filterwarnings("ignore:.*training mode")
def test_checkpointing(family, method):
    model = checkpointed(family)
    before = snapshot(model)
    check_same(method, model, tiny(family))
    assert snapshot(model) == before


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.filterwarnings("ignore:.*training mode")
def test_layers_inside_of_checkpointed_blocks(family):
    model, plain = checkpointed(family), tiny(family)

    def explained(model):
        block = sites_of(model).blocks[1]
        layers = [block.module, block.attention.output, block.mlp_output, block.mlp_inputs[0]]
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
