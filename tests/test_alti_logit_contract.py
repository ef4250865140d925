"""ALTI-Logit on models: Captum's contract, and what is refused."""

import gc

import pytest
import torch
from alti_logit_cases import TARGET, assert_identity, close, every_family, some_families
from models import tiny, token_ids
from state import snapshot
from tiny_models import build
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from captum_lrpx import ATTN_LRP, LRP, ALTILogit, LRPx, propagation

# Captum's contract --------------------------------------------------------------------------------


@every_family
def test_ids_and_embeddings(family):
    model = tiny(family)
    ids = token_ids()
    embeds = model.get_input_embeddings()(ids).detach()

    def explained(embeds):
        if family == "roberta":  # counts positions from ids otherwise
            positions = torch.arange(2, 7).expand(2, -1)
            return model(inputs_embeds=embeds, position_ids=positions).logits[:, 2]
        return model(inputs_embeds=embeds).logits[:, 2]

    of_ids, delta = ALTILogit(model).attribute(ids, (2, 7), return_convergence_delta=True)
    method = ALTILogit(explained, model=model)
    spread = method.attribute(embeds, 7)
    assert of_ids.shape == ids.shape
    assert spread.shape == embeds.shape
    if family != "roberta":
        close(spread.sum(-1), of_ids)
    close(method.attribute(embeds, 7, return_input_shape=False), spread.sum(-1))
    close(spread, spread[..., :1].expand_as(spread))
    close(delta, model(ids).logits[:, 2, 7] - of_ids.sum(1))
    (in_tuple,) = method.attribute((embeds,), 7)
    close(in_tuple, spread)


def test_the_start_term_can_be_left_out():
    method = ALTILogit(tiny("gpt2"))
    ids = token_ids()
    parts = method.decompose(ids, TARGET)
    close(method.attribute(ids, TARGET), parts.tokens())
    close(method.attribute(ids, TARGET, include_start=False), parts.tokens(include_start=False))
    assert parts.start[:, 2].all()
    assert not parts.start[:, [0, 1, 3, 4]].any()


@every_family
def test_no_tensor_of_a_call_outlives_it(family):
    method = ALTILogit(tiny(family))

    def tensors():
        method.attribute(token_ids(), TARGET)
        gc.collect()
        return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())

    tensors()  # what is found out in a first call is kept
    assert len({tensors() for _ in range(3)}) == 1


@every_family
def test_the_model_is_left_as_it_was(family):
    model = tiny(family)
    before = snapshot(model)
    functions = dict(ALL_ATTENTION_FUNCTIONS)
    method = ALTILogit(model)
    attributes = sorted(vars(method))
    method.decompose(token_ids(), TARGET, return_alti=True)
    assert snapshot(model) == before
    for target, error in [((2, 999), IndexError), (None, AssertionError), ("x", AssertionError)]:
        with pytest.raises(error):
            method.attribute(token_ids(), target)
        assert snapshot(model) == before

    def broken(ids):
        model(ids)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ALTILogit(broken, model=model).attribute(token_ids())
    assert snapshot(model) == before
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions
    assert sorted(vars(method)) == attributes


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP])
@some_families
def test_inside_another_explanation(family, recipe):
    model = tiny(family)
    ids = token_ids()
    alone, relevance = ALTILogit(model).attribute(ids, TARGET), LRPx(model).attribute(ids, TARGET)
    with propagation(model, recipe):
        close(ALTILogit(model).attribute(ids, TARGET), alone)
    close(LRPx(model).attribute(ids, TARGET), relevance)


@some_families
def test_without_gradients_around_it(family):
    model = tiny(family)
    ids = token_ids()
    expected = ALTILogit(model).attribute(ids, TARGET)
    with torch.no_grad():
        close(ALTILogit(model).attribute(ids, TARGET), expected)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        ALTILogit(model).attribute(ids, TARGET)


@some_families
def test_gradient_checkpointing_gives_the_same(family):
    model = tiny(family, attn="eager")
    ids = token_ids()
    expected = ALTILogit(model).attribute(ids, TARGET)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    close(ALTILogit(model).attribute(ids, TARGET), expected)


# What is refused ----------------------------------------------------------------------------------


def test_inputs_that_do_not_fit():
    model = tiny("gpt2")
    method = ALTILogit(model)
    with pytest.raises(ValueError, match="one input"):
        method.attribute((token_ids(), token_ids()), TARGET)
    with pytest.raises(AssertionError, match="must be a torch"):
        method.attribute([token_ids()], TARGET)
    with pytest.raises(ValueError, match="at least one target"):
        method.decompose_targets(token_ids(), [])
    with pytest.raises(ValueError, match="value_bias"):
        ALTILogit(model, value_bias="nowhere")
    with pytest.raises(ValueError, match="model="):
        ALTILogit(lambda ids: model(ids).logits)
    with pytest.raises(ValueError, match="embeds no token ids that it was given"):
        ALTILogit(lambda ids: model(ids.repeat(1, 2)).logits[:, -1], model=model).attribute(
            token_ids(), 5
        )


@pytest.mark.parametrize(
    ("explained", "error", "message"),
    [
        (lambda model, ids: model(ids).logits[:, -1].detach(), ValueError, "by a gradient"),
        (lambda model, ids: model(ids).logits[:, -1].sum(0, True), ValueError, "2 examples"),
        (lambda _, ids: torch.ones(len(ids), 9, requires_grad=True), ValueError, "did not run"),
    ],
)
def test_forward_functions_that_do_not_fit(explained, error, message):
    model = tiny("gpt2")
    before = snapshot(model)
    with pytest.raises(error, match=message):
        ALTILogit(lambda ids: explained(model, ids), model=model).attribute(token_ids(), 5)
    assert snapshot(model) == before


def test_a_forward_function_without_gradients():
    model = tiny("gpt2")
    explained = torch.no_grad()(lambda ids: model(ids).logits[:, -1])
    with pytest.raises(RuntimeError, match="without gradients"):
        ALTILogit(explained, model=model).attribute(token_ids(), 5)


def test_attention_whose_weights_cannot_be_had(monkeypatch):
    def opaque(_module, _query, _key, value, *_args, **_kwargs):
        return value.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "opaque", opaque)
    model = tiny("gpt2")
    model.config._attn_implementation = "opaque"
    before = snapshot(model)
    with pytest.raises(ValueError, match="are not available"):
        ALTILogit(model).attribute(token_ids(), TARGET)
    assert snapshot(model) == before


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("part", ["o_proj", "v_proj"])
def test_a_factor_is_part_of_the_linear_map(part, attn):
    """After the output projection or the values, it is as if it were in their weights."""
    model, merged = tiny("llama", attn=attn), tiny("llama", attn=attn)
    for each, factored in zip(merged.model.layers, model.model.layers, strict=True):
        projection = getattr(each.self_attn, part)
        with torch.no_grad():
            projection.weight *= 2
            projection.bias *= 2
        getattr(factored.self_attn, part).register_forward_hook(
            lambda _m, _args, output: 2 * output
        )
    found, expected = (
        ALTILogit(each).decompose(token_ids(), TARGET, return_alti=True) for each in (model, merged)
    )
    close(found.heads, expected.heads)
    close(found.alti, expected.alti)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_gate_of_each_head_scales_its_weights(attn):
    """A factor of each head and position is one of its attention weights."""
    model, plain = tiny("llama", attn=attn), tiny("llama", attn=attn)

    def gate(_module, args):
        heads = args[0].unflatten(-1, (2, -1))
        return ((heads * torch.tensor([[0.5], [1.0]])).flatten(-2),)

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(gate)
    with torch.no_grad():
        for layer in plain.model.layers:
            layer.self_attn.o_proj.weight[:, :4] *= 0.5
    found, expected = (
        ALTILogit(each).decompose(token_ids(), TARGET, return_alti=True) for each in (model, plain)
    )
    close(found.heads, expected.heads)
    close(found.alti, expected.alti)


def test_a_gate_of_each_feature_and_position_is_refused_by_name():
    model = tiny("llama")
    gate = lambda _m, args: (args[0] * args[0].sigmoid().detach(),)  # noqa: E731
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(gate)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn.*gate for each feature"):
        ALTILogit(model).attribute(token_ids(), TARGET)
    assert snapshot(model) == before


class Neighbours(torch.nn.Module):
    """Adds to each position what stands before it."""

    def forward(self, x):
        return x + x.roll(1, 1)


@pytest.mark.parametrize("part", ["mlp.down_proj", "self_attn.v_proj"])
def test_whatever_else_mixes_tokens_is_refused_by_name(part):
    model = tiny("llama")
    module = model.model.layers[1].get_submodule(part)
    module.register_forward_hook(lambda _m, _args, output: Neighbours()(output))
    message = "mixes tokens by something else|computes values from several positions"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            ALTILogit(model).attribute(token_ids(), TARGET)


@pytest.mark.parametrize(
    "config",
    [{"apply_residual_connection_post_layernorm": True}, {"slow_but_exact": True}],
)
def test_variants_of_bloom(config):
    assert_identity(ALTILogit(tiny("bloom", **config)).decompose(token_ids(), TARGET), 1e-10)


@pytest.mark.parametrize("value_bias", ["tokens", "apart"])
def test_sinks_are_reported(value_bias):
    model = build("gpt_oss", "CAUSAL_LM", attention="eager")
    method = ALTILogit(model, value_bias=value_bias)
    parts = method.decompose(token_ids(), TARGET, return_alti=True)
    assert_identity(parts, 1e-5)
    assert parts.sinks.shape == (2, 2, 5)
    assert ((parts.sinks > 0.01) & (parts.sinks < 1)).all()
    plain = ALTILogit(tiny("llama")).decompose(token_ids(), TARGET, return_alti=True)
    close(plain.sinks, torch.zeros_like(plain.sinks), 1e-6)
