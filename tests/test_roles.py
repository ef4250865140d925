"""What a declaration says of a module is compared with what the module computes, once."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from modifications import rewritten
from state import snapshot
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM

from captum_lrpx import (
    AttnLRPx,
    LayerLRPx,
    LRPx,
    NeuronLRPx,
    TokenLogits,
    explain,
    ledger,
    propagation,
)
from captum_lrpx.architectures import GPT2, LLAMA, Inline, register, unregister
from captum_lrpx.recipes import LRP
from captum_lrpx.rules import ActivationGradient, NormGradient
from captum_lrpx.rules.verified import leaves_others_alone

TARGET = (-1, 7)


@contextmanager
def declared(architecture):
    register(architecture)
    try:
        yield
    finally:
        unregister(architecture)


# Norms -----------------------------------------------------------------------------------------


def gemma(**config):
    options = {"vocab_size": 19, "hidden_size": 8, "num_hidden_layers": 2, "head_dim": 4}
    options |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 12}
    return GemmaForCausalLM(GemmaConfig(**options | config)).eval()


AS_LLAMA = replace(LLAMA, model_types=("gemma",))


@pytest.mark.parametrize(
    "attribute",
    [
        lambda model: LRPx(model).attribute(token_ids(), TARGET),
        lambda model: AttnLRPx(TokenLogits(model)).attribute(token_ids(), 7),
        lambda model: LRPx(model, strict=False).attribute(token_ids(), TARGET),
        lambda model: LayerLRPx(model, model.model.layers[0]).attribute(token_ids(), TARGET),
        lambda model: NeuronLRPx(model, model.model.norm).attribute(token_ids(), (0, 1)),
        lambda model: LRPx(TokenLogits(model)).attribute_targets(token_ids(), [7]),
        lambda model: ledger(LRPx(model), token_ids(), TARGET),
    ],
    ids=["lrp", "attnlrp", "not strict", "layer", "neuron", "targets", "ledger"],
)
def test_a_norm_that_is_another_one_than_declared_is_refused_by_name(attribute):
    model = gemma()
    before = snapshot(model)
    with declared(AS_LLAMA):
        for _ in range(2):
            with pytest.raises(
                ValueError,
                match=r"norm 'model\..*norm' \(GemmaRMSNorm\).*weight_offset=1\.0\) describes it",
            ):
                attribute(model)
    assert snapshot(model) == before


def test_the_declaration_can_be_corrected_in_the_same_process():
    model = gemma()
    with declared(AS_LLAMA), pytest.raises(ValueError, match="does not compute what is declared"):
        LRPx(model).attribute(token_ids(), TARGET)
    corrected = replace(AS_LLAMA, norms=replace(LLAMA.norms, weight_offset=1.0))
    with declared(corrected):
        relevance = LRPx(model).attribute(token_ids(), TARGET)
    assert relevance.abs().max() > 0


def test_explain_refuses_it_too(loaded):
    tokenizer = loaded["sva-llama"][1]
    with declared(AS_LLAMA), pytest.raises(ValueError, match="GemmaRMSNorm"):
        explain(gemma(vocab_size=len(tokenizer)), tokenizer, "the keys to the cabinet", "are")


def plus_a_half(self, x):
    return nn.functional.layer_norm(x, self.normalized_shape, self.weight + 0.5, self.bias)


def not_centered(self, x):
    return x * x.square().mean(-1, keepdim=True).rsqrt() * self.weight + self.bias


def squashed(self, x):
    return nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias).tanh()


def with_residual(self, x):
    return x + nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias)


@pytest.mark.parametrize("twist", [plus_a_half, not_centered, squashed, with_residual])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_layer_norm_with_a_twist_is_refused(twist, family):
    model = tiny(family, layers=1)
    norm = next(each for each in model.modules() if isinstance(each, nn.LayerNorm))
    rewritten(norm, twist)
    with pytest.raises(ValueError, match=r"\(LayerNorm\) does not compute what is declared"):
        LRPx(model).attribute(token_ids(), TARGET)
    path = next(name for name, each in model.named_modules() if each is norm)
    recipe = LRP.override(path, NormGradient())
    assert LRPx(model, recipe=recipe).attribute(token_ids(), TARGET).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES | MORE_FAMILIES)
def test_norms_and_activations_that_are_as_declared_pass_in_every_precision(family, dtype):
    model = tiny(family, dtype=dtype)
    assert AttnLRPx(model).attribute(token_ids(), TARGET).isfinite().all()


# Activations -----------------------------------------------------------------------------------


def softmax(_self, x):
    return torch.softmax(x, -1)


def gelu_of_the_row(_self, x):
    return nn.functional.gelu(x) * x.abs().mean(-1, keepdim=True)


def mixes_positions(_self, x):
    return nn.functional.gelu(x + x.roll(1, 1))


@pytest.mark.parametrize("twist", [softmax, gelu_of_the_row, mixes_positions])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_an_activation_that_is_not_element_wise_is_refused_by_name(family, method, twist):
    model = tiny(family, layers=1)
    act = {
        "gpt2": "transformer.h.0.mlp.act",
        "bert": "bert.encoder.layer.0.intermediate.intermediate_act_fn",
    }[family]
    rewritten(model.get_submodule(act), twist)
    with pytest.raises(ValueError, match=rf"activation '{act}' \(.*\) is not element-wise"):
        method(model).attribute(token_ids(), TARGET)
    recipe = LRP.override(act, ActivationGradient())
    assert LRPx(model, recipe=recipe).attribute(token_ids(), TARGET).isfinite().all()


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_so_is_that_of_a_gate(method):
    model = tiny("llama", layers=1)
    act = model.model.layers[0].mlp.act_fn
    rewritten(act, softmax)
    if method is LRPx:  # its gate is constant, whatever it computes
        assert method(model).attribute(token_ids(), TARGET).isfinite().all()
        return
    with pytest.raises(ValueError, match=r"activation 'model.layers.0.mlp.act_fn'"):
        method(model).attribute(token_ids(), TARGET)


class SiLU(nn.Module):
    """Has the name of another one."""

    def forward(self, x):
        return torch.tanh(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_class_with_the_name_of_another_activation_gets_its_own_slope(dtype):
    model = tiny("gpt2", dtype=dtype, activation="tanh")
    expected = LRPx(model).attribute(token_ids(), TARGET)
    other = tiny("gpt2", dtype=dtype, activation="tanh")
    for block in other.transformer.h:
        block.mlp.act = SiLU()
    found = LRPx(other).attribute(token_ids(), TARGET)
    tolerance = 1e-5 if dtype is torch.float32 else 0.1
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    "act",
    [nn.ReLU(), nn.GELU(), nn.PReLU(12), nn.PReLU(), nn.Softplus(), nn.Hardswish(inplace=True)],
    ids=lambda act: type(act).__name__,
)
def test_element_wise_functions_are_recognized(act):
    torch.manual_seed(0)
    z = torch.randn(2, 12, 12)
    assert leaves_others_alone(lambda x: act(x.clone()), z, act(z.clone()).detach())


@pytest.mark.parametrize("act", [nn.Softmax(-1), nn.Softmin(1), nn.GLU(), nn.LayerNorm(12)])
def test_others_are_recognized_too(act):
    torch.manual_seed(0)
    z = torch.randn(2, 12, 12)
    assert not leaves_others_alone(act, z, act(z).detach())


def test_a_function_between_two_modules_must_be_the_declared_one():
    model = tiny("gpt2", layers=1)
    mlp = model.transformer.h[0].mlp
    rewritten(mlp, lambda self, x: self.c_proj(nn.functional.gelu(self.c_fc(x))))
    model.config.model_type = "modified"
    for function, right in (("relu", False), ("gelu", True)):
        inline = Inline("transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj", function)
        head = replace(GPT2.head, inline=(inline,))
        with declared(replace(GPT2, model_types=("modified",), head=head)):
            if right:
                assert LRPx(model).attribute(token_ids(), TARGET).isfinite().all()
            else:
                with pytest.raises(ValueError, match=r"mlp.c_fc' is declared as 'relu'"):
                    LRPx(model).attribute(token_ids(), TARGET)


# Cost ------------------------------------------------------------------------------------------


def test_each_module_is_compared_once(monkeypatch):
    from captum_lrpx.rules import patches

    compared = []
    for name in ("require_norm", "leaves_others_alone"):
        own = getattr(patches, name)
        monkeypatch.setattr(
            patches, name, lambda *args, own=own, name=name: compared.append(name) or own(*args)
        )
    model = tiny("llama")
    for _ in range(3):
        AttnLRPx(model).attribute(token_ids(), TARGET)
    assert sorted(set(compared)) == ["leaves_others_alone", "require_norm"]
    assert len(compared) <= 2 * (5 + 2)  # norms and activations, for each of two plans
    with propagation(model, LRP):
        assert model(token_ids()).logits.isfinite().all()
