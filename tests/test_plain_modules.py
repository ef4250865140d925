"""Modules that nothing declares and no library knows are explained as they are."""

import gc
import weakref

import pytest
import torch
from plain_models import LENGTH, PADDING, PLAIN, REFUSED, VOCABULARY, WIDTH, encoder, randomize
from state import snapshot
from torch import nn
from torch.nn import functional as F  # noqa: N812

from captum_lrpx import AttnLRPx, LayerLRPx, LRPx, NeuronLRPx, TokenLogits, explain, ledger

EXACT = {"rtol": 0.0, "atol": 1e-10}


def recorded(module):
    """The forward function of a module, and what its calls have returned."""
    seen = []

    def forward(*args):
        output = module(*args)
        seen.append(output.detach().clone())
        return output

    return forward, seen


def chosen(output, target):
    index = target if isinstance(target, tuple) else (target,)
    return output[(slice(None), *index)]


@pytest.fixture(params=PLAIN)
def plain(request):
    return PLAIN[request.param]


def test_without_biases_the_relevances_of_the_inputs_are_the_value(plain):
    module, inputs = plain.module(zero_biases=True), plain.batch()
    value = chosen(module(inputs, *plain.arguments), plain.target)
    relevance = LRPx(module).attribute(inputs, plain.target, plain.arguments or None)
    torch.testing.assert_close(relevance.flatten(1).sum(1), value.detach(), **EXACT)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_the_ledger_closes(plain, method):
    module, inputs = plain.module(), plain.batch()
    found = ledger(method(module), inputs, plain.target, plain.arguments or None)
    assert found.closes(1e-10), str(found)
    assert found.delta.abs().min() > 1e-6  # there are biases, so there is something to find


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_the_forward_pass_is_the_modules_own_and_leaves_it_as_it_was(plain, method):
    module, inputs = plain.module(), plain.batch()
    forward, seen = recorded(module)
    before = snapshot(module)
    attribution = method(forward, module)
    first = attribution.attribute(inputs, plain.target, plain.arguments or None)
    second = attribution.attribute(inputs, plain.target, plain.arguments or None)
    assert torch.equal(first, second)  # watched, and not watched
    assert snapshot(module) == before
    assert not inputs.requires_grad
    module.requires_grad_(False)
    floating = inputs.is_floating_point()
    own = module(inputs.requires_grad_() if floating else inputs, *plain.arguments)
    assert all(torch.equal(each, own) for each in seen)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_seen_through_is_refused_by_name(name):
    refused = REFUSED[name]
    module, inputs = refused.module(), refused.batch()
    before = snapshot(module)
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        LRPx(module).attribute(inputs, refused.target)
    assert snapshot(module) == before
    with pytest.warns(UserWarning, match=rf"\b{name}\b"):
        relevance = LRPx(module, strict=False).attribute(inputs, refused.target)
    assert relevance.isfinite().all()


# The same in two ways -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("attention", "attention-weights"),
        ("mlp-glu", "mlp-glu_by_hand"),
        ("mlp-swiglu", "mlp-silu_glu_written_out"),
        ("mlp-squared_relu", "mlp-relu_times_relu"),
        ("norm-rms_norm", "norm-F.rms_norm"),
        ("norm-rms_norm", "norm-rms_norm_by_product"),
        ("norm-rms_norm", "norm-rms_norm_by_matmul"),
        ("norm-layer_norm", "norm-F.layer_norm"),
        ("norm-layer_norm", "norm-layer_norm_by_var"),
        ("norm-layer_norm", "norm-layer_norm_by_var_mean"),
        ("norm-layer_norm_by_var_mean", "norm-layer_norm_by_std_mean"),
    ],
)
def test_what_computes_the_same_is_explained_the_same(one, other, method):
    found = []
    for name in (one, other):
        plain = PLAIN[name]
        found.append(method(plain.module()).attribute(plain.batch(), plain.target))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)  # epsilons stand in other places


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("name", [name for name in PLAIN if PLAIN[name].inputs == "ids"])
def test_ids_have_the_relevance_of_their_embeddings(name, method):
    plain = PLAIN[name]
    module, ids = plain.module(), plain.batch()
    table = next(each for each in module.modules() if isinstance(each, nn.Embedding))
    of_layer = {LRPx: LayerLRPx}.get(method)
    relevance = method(module).attribute(ids, plain.target)
    assert relevance.shape == ids.shape
    if of_layer is not None:
        layer = of_layer(module, table).attribute(ids, plain.target)
        torch.testing.assert_close(relevance, layer.sum(-1), **EXACT)


def test_a_gelu_written_out_has_the_relevances_of_the_function():
    module = PLAIN["mlp-gelu_erf"].module()
    inputs = PLAIN["mlp-gelu_erf"].batch()
    written_out = LRPx(module).attribute(inputs, (-1, 3))
    module.function = F.gelu
    torch.testing.assert_close(LRPx(module).attribute(inputs, (-1, 3)), written_out, **EXACT)


# What the rules are, in numbers -------------------------------------------------------------------


def test_the_gate_of_a_glu_is_constant():
    class Gated(nn.Module):
        def forward(self, x):
            return F.glu(x, dim=-1)

    x = torch.randn(2, 6, dtype=torch.float64)
    relevance = LRPx(Gated()).attribute(x, 1)
    expected = torch.zeros_like(x)
    expected[:, 1] = x[:, 1] * torch.sigmoid(x[:, 4])
    torch.testing.assert_close(relevance, expected, **EXACT)
    assert "one factor constant" in str(LRPx(Gated()).coverage(x).operations)


@pytest.mark.parametrize("dim", [1, 2, -1, -2])
def test_a_glu_along_any_dimension(dim):
    class Gated(nn.Module):
        def forward(self, x):
            return F.glu(x, dim=dim).flatten(1).sum(1)

    x = torch.randn(2, 4, 6, dtype=torch.float64)
    relevance = LRPx(Gated()).attribute(x)
    torch.testing.assert_close(relevance.flatten(1).sum(1), Gated()(x), **EXACT)


def test_a_masked_position_gets_nothing():
    plain = PLAIN["encoder-padded"]
    relevance = AttnLRPx(plain.module()).attribute(plain.batch(), plain.target, plain.arguments)
    assert (relevance[PADDING] == 0).all()
    assert (relevance[~PADDING] != 0).any(-1).all()


def test_the_fused_inference_path_of_an_encoder_is_not_what_is_explained():
    module = encoder()
    randomize(module, zero_biases=False)
    module.eval()
    x = torch.randn(2, LENGTH, WIDTH)
    with torch.no_grad():
        fused = module(x)
        relevance = LRPx(module).attribute(x, (0, 1))
    found = ledger(LRPx(module), x, (0, 1))
    torch.testing.assert_close(relevance, found.attributions)
    torch.testing.assert_close(found.value.float(), fused[:, 0, 1])


def test_another_way_through_a_forward_function_is_watched_too():
    class Steps(nn.Module):
        """As many steps as there are positions."""

        def forward(self, x):
            state = x[:, 0]
            for step in x.unbind(1)[1:]:
                state = torch.tanh(0.5 * state + step)
            return state

    module = Steps()
    attribution = LRPx(module)
    for length in (3, 5, 1, 4):
        x = torch.randn(2, length, WIDTH, dtype=torch.float64)
        relevance = attribution.attribute(x, 2)
        torch.testing.assert_close(relevance.flatten(1).sum(1), module(x)[:, 2], **EXACT)


@pytest.mark.parametrize("value", ["probability", "log-probability"])
def test_a_function_of_the_output_gets_its_own_gradient(value):
    plain = PLAIN["sentence-cnn"]
    module, ids = plain.module(), plain.batch()
    function = F.log_softmax if value == "log-probability" else F.softmax
    found = ledger(LRPx(lambda ids: function(module(ids), -1), module), ids, 1)
    assert found.closes(1e-10)
    assert set(found.by_kind()) >= {"tokens", "output"}


def test_several_inputs_are_explained_together():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(VOCABULARY, WIDTH)
            self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
            self.patches = nn.Conv2d(3, WIDTH, 4, 4)

        def forward(self, ids, pixels):
            patches = self.patches(pixels).flatten(2).transpose(1, 2)
            words = self.tokens(ids)
            mixed, _ = self.attention(words, patches, patches)
            return (words + mixed).mean(1)

    module = Two()
    randomize(module, zero_biases=True)
    module.double()
    ids, pixels = PLAIN["sentence-cnn"].batch(), PLAIN["resnet"].batch()
    of_ids, of_pixels = LRPx(module).attribute((ids, pixels), 4)
    assert of_ids.shape == ids.shape
    assert of_pixels.shape == pixels.shape
    total = of_ids.sum(1) + of_pixels.flatten(1).sum(1)
    torch.testing.assert_close(total, module(ids, pixels)[:, 4].detach(), **EXACT)
    found = ledger(AttnLRPx(module), (ids, pixels), 4)
    assert found.closes(1e-10)
    assert {entry.path for entry in found.of("tokens")} == {"inputs.0", "inputs.1"}


def test_a_vision_transformer_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    module = models.VisionTransformer(32, 8, 2, 2, WIDTH, 12, num_classes=3)
    for zero in (True, False):
        randomize(module, zero_biases=zero)
        module.double().eval()
        pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        if zero:
            with torch.no_grad():
                module.encoder.pos_embedding.zero_()
                module.class_token.zero_()
            relevance = LRPx(module).attribute(pixels, 1)
            value = module(pixels)[:, 1].detach()
            torch.testing.assert_close(relevance.flatten(1).sum(1), value, **EXACT)
        assert ledger(AttnLRPx(module), pixels, 1).closes(1e-10)


# Around a module ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["encoder", "nano-gpt-swiglu", "sentence-cnn", "resnet", "mlp-glu"]
)
def test_many_targets_are_each_of_them(name):
    plain = PLAIN[name]
    module, inputs = plain.module(), plain.batch()
    targets = [0, 1] if isinstance(plain.target, int) else [(0, 1), (-1, 2), (-2, 0)]
    found = AttnLRPx(module).attribute_targets(inputs, targets)
    each = torch.stack([AttnLRPx(module).attribute(inputs, target) for target in targets])
    torch.testing.assert_close(found, each, **EXACT)


def test_layers_and_neurons_of_an_encoder():
    plain = PLAIN["encoder"]
    module, inputs = plain.module(zero_biases=True), plain.batch()
    value = module(inputs)[:, 0, 3].detach()
    for relevance in LayerLRPx(module, list(module.layers)).attribute(inputs, plain.target):
        torch.testing.assert_close(relevance.flatten(1).sum(1), value, **EXACT)
    inner = module.layers[0].linear1
    with torch.no_grad():
        seen = {}
        handle = inner.register_forward_hook(lambda *call: seen.update(out=call[-1]))
        LRPx(module).attribute(inputs, plain.target)
        handle.remove()
    neuron = NeuronLRPx(module, inner).attribute(inputs, (0, 5))
    torch.testing.assert_close(neuron.flatten(1).sum(1), seen["out"][:, 0, 5], **EXACT)


def test_what_needs_a_transformers_model_says_what_explains_the_module(loaded):
    module, (_, tokenizer) = PLAIN["encoder"].module(), loaded["sva-gpt2"]
    for attempt in (
        lambda: TokenLogits(module)(torch.tensor([[1, 2]])),
        lambda: explain(module, tokenizer, "the keys"),
    ):
        with pytest.raises(ValueError, match=r"contains no transformers model.*to LRPx"):
            attempt()


def test_a_config_of_its_own_does_not_make_a_module_a_declared_one():
    class Configured(nn.Linear):
        config = type("Config", (), {"width": WIDTH})()

    relevance = LRPx(Configured(WIDTH, 2)).attribute(torch.randn(3, WIDTH), 1)
    assert relevance.shape == (3, WIDTH)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("scale", [torch.Tensor.mul_, torch.Tensor.__imul__])
def test_a_forward_function_may_write_into_its_input(scale, method):
    module = nn.Sequential(nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, 3)).double()
    x = torch.randn(2, WIDTH, dtype=torch.float64)
    kept = x.clone()
    found = method(lambda y: module(scale(y, 3.0)), module).attribute(x, target=1)
    assert torch.equal(x, kept)
    torch.testing.assert_close(found, method(module).attribute(3 * x, target=1), **EXACT)


@pytest.mark.parametrize(
    "explained",
    [
        lambda module, ids: LRPx(module).attribute(ids, (0, 1)),
        lambda module, ids: AttnLRPx(module).attribute_targets(ids, [(0, 1), (0, 2)]),
        lambda module, ids: LRPx(module).coverage(ids),
        lambda module, ids: ledger(AttnLRPx(module), ids, (0, 1)),
        lambda module, ids: LayerLRPx(module, module.blocks[0]).attribute(ids, (0, 1)),
        lambda module, ids: NeuronLRPx(module, module.blocks[0]).attribute(ids, (0, 2)),
    ],
    ids=["attribute", "targets", "coverage", "ledger", "layer", "neuron"],
)
def test_nothing_keeps_an_explained_module_or_its_graph_alive(explained):
    plain = PLAIN["nano-gpt-swiglu"]
    module, inputs = plain.module(), plain.batch()
    outputs = []
    handle = module.register_forward_hook(lambda *call: outputs.append(weakref.ref(call[2])))
    kept = explained(module, inputs)
    handle.remove()
    assert kept is not None
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None
    assert outputs
    assert all(output() is None for output in outputs)


def test_an_error_in_the_forward_pass_leaves_nothing():
    module = PLAIN["encoder"].module()
    before = snapshot(module)
    with pytest.raises(AssertionError, match="embedding dimension"):
        LRPx(module).attribute(torch.ones(2, LENGTH, WIDTH + 1, dtype=torch.float64), (0, 1))
    assert snapshot(module) == before
