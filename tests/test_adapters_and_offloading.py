"""Models with adapters of PEFT, and models that Accelerate offloads."""

import copy

import pytest
import torch
from ecosystem import TARGET, check_same, embeds_of, hooks_of, methods
from models import tiny, token_ids
from state import snapshot
from torch import nn

from captum_lrpx import (
    ATTN_LRP,
    AttnLRPx,
    LayerAttnLRPx,
    LLMRelevance,
    LogitDifference,
    LRPx,
    Target,
    TokenLogits,
    ask_batch,
    explain,
    ledger,
    propagation,
    zoo,
)

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


@methods
@pytest.mark.parametrize("modules", ["all-linear", ["lm_head", "v_proj"]], ids=str)
def test_one_position_of_a_model_with_adapters(modules, method):
    model = with_lora("llama", "CAUSAL_LM", target_modules=modules)
    plain = merged(model)
    for given in (model, model.get_base_model()):
        found = method(TokenLogits(given)).attribute(token_ids(), 7, (None, 2))
        torch.testing.assert_close(
            found, method(TokenLogits(plain)).attribute(token_ids(), 7, (None, 2))
        )


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_the_ledger_and_the_table_of_a_model_with_adapters(method):
    model = with_lora("gpt2", "CAUSAL_LM")
    attribution = method(model)
    assert attribution.coverage(token_ids()).complete
    book = ledger(attribution, token_ids(), TARGET)
    assert book.closes(1e-10), str(book)
    expected = ledger(method(merged(model)), token_ids(), TARGET)
    for kind, amount in expected.by_kind().items():
        torch.testing.assert_close(book.by_kind()[kind], amount)


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


@methods
@pytest.mark.parametrize("how", ["cpu", "disk", "device_map"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_one_position_of_an_offloaded_model(family, how, method, tmp_path):
    model, arguments = offloaded(family, how, tmp_path), (7, (None, 2))
    for given in (TokenLogits(model), LogitDifference(model)):
        options = arguments if isinstance(given, TokenLogits) else (None, (None, 7, 5, 2))
        plain = type(given)(tiny(family))
        expected = method(plain).attribute(token_ids(), *options)
        torch.testing.assert_close(method(given).attribute(token_ids(), *options), expected)


def test_the_table_and_the_rules_of_an_offloaded_model(tmp_path):
    model, plain = offloaded("gpt2", "disk", tmp_path), tiny("gpt2")
    hooks = hooks_of(model)
    assert str(LRPx(model).coverage(token_ids())) == str(LRPx(plain).coverage(token_ids()))
    assert hooks_of(model) == hooks
    found = []
    for each in (model, plain):
        embeds = embeds_of(plain).requires_grad_()
        with propagation(each, ATTN_LRP):
            value = each(inputs_embeds=embeds).logits[:, -1, 7].sum()
            found.append(torch.autograd.grad(value, embeds)[0])
    torch.testing.assert_close(*found)
    assert hooks_of(model) == hooks


# Hooks of the user's own -----------------------------------------------------------------------


class Doubled(nn.Module):
    """What a module gives, twice: a tensor, or the first of several."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return double(self.module, args, self.module(*args, **kwargs))


def double(_module, _args, output):
    return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output


PLACES = {
    "a block": "transformer.h.0",
    "an attention": "transformer.h.1.attn",
    "a norm": "transformer.ln_f",
    "an activation": "transformer.h.0.mlp.act",
    "the output layer": "lm_head",
    "the base": "transformer.wte",
}


@methods
@pytest.mark.parametrize("place", PLACES)
def test_a_hook_that_changes_what_a_module_gives_is_explained(place, method):
    hooked, written = (
        tiny("gpt2", tie_word_embeddings=False),
        tiny("gpt2", tie_word_embeddings=False),
    )
    method(hooked).attribute(token_ids(), TARGET)  # what was known is no longer so
    handle = hooked.get_submodule(PLACES[place]).register_forward_hook(double)
    written.set_submodule(PLACES[place], Doubled(written.get_submodule(PLACES[place])))
    for given in (lambda model: model, TokenLogits):
        target = TARGET if given is not TokenLogits else TARGET[1]
        found, expected = (
            method(given(model), model).attribute(token_ids(), target)
            for model in (hooked, written)
        )
        torch.testing.assert_close(found, expected)
    handle.remove()
    check_same(method, hooked, tiny("gpt2", tie_word_embeddings=False))


@methods
def test_a_hook_that_only_looks_sees_each_call_once(method):
    model, seen = tiny("llama"), []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append("block"))
    model.lm_head.register_forward_hook(lambda *call: seen.append(tuple(call[2].shape)))
    for _ in range(2):
        seen.clear()
        check = method(TokenLogits(model)).attribute(token_ids(), 7, (None, 2))
        assert seen == ["block", (2, 5, 19)]
    torch.testing.assert_close(
        check, method(TokenLogits(tiny("llama"))).attribute(token_ids(), 7, (None, 2))
    )


def test_texts_for_an_offloaded_model(tmp_path):
    model, tokenizer = zoo.load("sva-gpt2")
    text, target = "the keys to the cabinet", Target("are", contrast="is")
    expected = explain(model, tokenizer, text, target)
    continued = LLMRelevance(LRPx(model), tokenizer).attribute(text, " are old")
    pytest.importorskip("accelerate").disk_offload(model, tmp_path, torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    found = explain(model, tokenizer, text, target)
    assert found.certificate.holds
    assert found.value == pytest.approx(expected.value, abs=1e-5)
    assert found.relevances == pytest.approx(expected.relevances, abs=1e-5)
    batch = ask_batch(model, tokenizer, [text, "the author"], target)
    assert float(batch.values[0]) == pytest.approx(found.value, abs=1e-5)
    again = LLMRelevance(LRPx(model), tokenizer).attribute(text, " are old")
    torch.testing.assert_close(again.token_attr, continued.token_attr)
