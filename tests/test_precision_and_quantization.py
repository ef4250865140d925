"""Models in half precision, under autocast, and with quantized weights."""

import copy

import pytest
import torch
from ecosystem import TARGET, check_same, distance, embeds_of, hooks_of, methods
from models import tiny, token_ids
from torch import nn

from captum_lrpx import ATTN_LRP, LRP, propagation

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
