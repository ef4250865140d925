"""Models in half precision, under autocast, and with quantized weights."""

import copy

import pytest
import torch
from ecosystem import TARGET, check_same, distance, embeds_of, hooks_of, methods
from models import tiny, token_ids
from torch import nn

from captum_lrpx import ATTN_LRP, LRP, AttnLRPx, LRPx, ledger, propagation

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


# Layers of a class of somebody's own -----------------------------------------------------------


class Unheard(torch.autograd.Function):
    """A product with dequantized weights, and perhaps something more."""

    @staticmethod
    def forward(ctx, x, weight, function):
        y = nn.functional.linear(x, weight)
        ctx.save_for_backward(weight, y)
        ctx.function = function
        return y if function is None else function(y)

    @staticmethod
    def backward(ctx, grad):
        weight, y = ctx.saved_tensors
        if ctx.function is not None:
            with torch.enable_grad():
                y = y.detach().requires_grad_()
                (grad,) = torch.autograd.grad(ctx.function(y), y, grad)
        return grad @ weight, None, None


class HalfOfTheGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, _function):
        ctx.save_for_backward(weight)
        return nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):
        return 0.5 * grad @ ctx.saved_tensors[0], None, None


class OwnLinear(nn.Module):
    def __init__(self, linear, multiply=Unheard, function=None):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().clone())
        self.bias = linear.bias
        self.multiply, self.function = multiply, function

    def forward(self, x):
        y = self.multiply.apply(x, self.weight, self.function)
        return y if self.bias is None else y + self.bias


class RoundingLinear(OwnLinear):
    """Rounds what it is given, and lets the gradient pass."""

    def forward(self, x):
        return super().forward(x + ((x * 500).round() / 500 - x).detach())


def with_own_layers(plain, kind=OwnLinear, **options):
    model = copy.deepcopy(plain)
    for path, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            model.set_submodule(path, kind(module, **options).eval())
    return model


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_layer_with_a_function_that_nobody_knows_is_measured(family, method):
    plain = tiny(family, tie_word_embeddings=False)
    check_same(method, with_own_layers(plain), plain)
    rounding = with_own_layers(plain, RoundingLinear)
    check_same(method, rounding, plain, rtol=0.05, atol=0.02)
    book = ledger(method(rounding), token_ids(), TARGET)
    assert book.closes(1e-6), str(book)
    assert 0 < book.by_kind()["absorbed"].abs().max() < 0.02


class ActiveLinear(nn.Module):
    """Looks linear for small inputs, and has no secrets."""

    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 2, 12).view(3, 4))
        self.function = function

    def forward(self, x):
        return self.function(nn.functional.linear(x, self.weight))


ACTIVE = {
    "tanh": torch.tanh,
    "gate": lambda y: y * torch.sigmoid(y.flip(-1)),
    "square": lambda y: y + y**2,
}


@pytest.mark.parametrize("small", [0.0, 1e-3])
@pytest.mark.parametrize("function", ACTIVE.values(), ids=ACTIVE)
def test_a_layer_without_secrets_has_its_rules_after_a_small_input(function, small):
    x = torch.linspace(-1, 1.5, 8).view(2, 4)
    first, second = (nn.Sequential(ActiveLinear(function)).eval() for _ in range(2))
    expected = LRPx(first).attribute(x, 1)
    LRPx(second).attribute(small * x, 1)
    torch.testing.assert_close(LRPx(second).attribute(x, 1), expected)


class SlicedLinear(nn.Linear):
    """Adds its products to slices of its bias, group by group."""

    def forward(self, x):
        y = self.bias.expand(len(x), -1).clone()
        for low in (0, 2):
            y[:, low : low + 2].addmm_(x, self.weight[low : low + 2].t())
        return y


def test_a_layer_that_writes_products_into_slices_is_measured():
    plain, sliced = nn.Linear(4, 4), SlicedLinear(4, 4)
    sliced.load_state_dict(plain.state_dict())
    x = torch.linspace(-1, 1.5, 8).view(2, 4)
    expected = LRPx(nn.Sequential(plain).eval()).attribute(x, 1)
    torch.testing.assert_close(LRPx(nn.Sequential(sliced).eval()).attribute(x, 1), expected)


@pytest.mark.parametrize("wrong", [torch.relu, torch.square])
def test_a_layer_is_not_measured_at_zero(wrong):
    model = nn.Sequential(OwnLinear(nn.Linear(4, 3, bias=False), function=wrong)).eval()
    for scale in (0.0, 1.0):
        with pytest.raises(ValueError, match="OwnLinear"):
            LRPx(model).attribute(scale * torch.ones(2, 4), 1)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize(
    "wrong",
    [{"function": torch.relu}, {"function": torch.tanh}, {"multiply": HalfOfTheGradient}],
    ids=["relu", "tanh", "half of the gradient"],
)
def test_one_that_is_not_linear_is_refused_by_name(method, wrong):
    plain = tiny("llama", tie_word_embeddings=False)
    model = copy.deepcopy(plain)
    model.model.layers[0].self_attn.v_proj = OwnLinear(plain.model.layers[0].self_attn.v_proj)
    model.lm_head = OwnLinear(plain.lm_head, **wrong)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"in 'lm_head' \(OwnLinear\)") as error:
            method(model).attribute(token_ids(), TARGET)
        assert "v_proj" not in str(error.value)


def test_the_measurement_is_no_part_of_the_pass():
    plain = tiny("llama", tie_word_embeddings=False)
    model = with_own_layers(plain)
    runs = []
    model.lm_head.forward = lambda x, own=model.lm_head.forward: runs.append(1) or own(x)
    ids = token_ids(4, 20)  # so many that not everything is kept
    first = LRPx(model).attribute(ids, TARGET)
    assert len(runs) == 3  # two of them to measure it
    for _ in range(2):
        assert torch.equal(LRPx(model).attribute(ids, TARGET), first)
    assert len(runs) == 5
