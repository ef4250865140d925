"""What is not kept and not multiplied: the same relevances from less memory and time."""

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, outputs, tiny, token_ids
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from captum_lrpx import AttnLRPx, LayerLRPx, LogitDifference, LRPx, TokenLogits, TokenSum
from captum_lrpx.fast import narrow
from captum_lrpx.fast.saved import Saved
from captum_lrpx.recipes import NAMED_RECIPES
from captum_lrpx.traced import TracedPass

pytestmark = pytest.mark.usefixtures("everything_fast")

METHODS = [LRPx, AttnLRPx]


def kept(method, model, ids):
    """The bytes of what the graph of a second call keeps beside the weights."""
    weights = {each.data_ptr() for each in model.parameters()}
    found, plain = [], Saved._pack

    def pack(saved, tensor):
        packed = plain(saved, tensor)
        found.append(getattr(packed, "tensor", None))
        return packed

    attribution = method(forward_of(model), model)
    attribution.attribute(ids, target=(-1, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saved, "_pack", pack)
        attribution.attribute(ids, target=(-1, 5))
    return bytes_of(found, weights)


def bytes_of(tensors, weights):
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in tensors
        if each is not None and each.untyped_storage().data_ptr() not in weights
    }
    return sum(storages.values())


def forward_of(model):
    return lambda ids: outputs(model, input_ids=ids)


def all_bytes(model, ids):
    """The same for a plain pass."""
    weights = {each.data_ptr() for each in model.parameters()}
    found = []

    def pack(tensor):
        found.append(tensor)
        return tensor

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    embeds = model.get_input_embeddings()(ids).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = outputs(model, inputs_embeds=embeds)
    del output
    return bytes_of(found, weights)


# Saved tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "method", "share"),
    [
        ("gpt2", LRPx, 0.5),
        ("gpt2", AttnLRPx, 0.6),
        ("bert", LRPx, 0.85),
        ("bert", AttnLRPx, 0.95),
        ("llama", LRPx, 0.5),
        ("llama", AttnLRPx, 0.8),
    ],
)
def test_what_no_rule_reads_is_not_kept(family, method, share):
    ids = token_ids(length=20)
    model = tiny(family, attn="sdpa", layers=4)
    assert kept(method, model, ids) < share * all_bytes(model, ids)


@pytest.mark.parametrize("recipe", NAMED_RECIPES)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_relevances_are_the_same_bits(family, attn, recipe, monkeypatch):
    """Without products and kernels of its own, which round otherwise."""
    for other in ("narrow", "direct"):
        monkeypatch.setattr(f"captum_lrpx.traced.{other}", lambda *_: ())
    model, ids = tiny(family, attn=attn), token_ids()
    fast, plain = (LRPx(model, recipe=NAMED_RECIPES[recipe], fast=fast) for fast in (True, False))
    fast.attribute(ids, target=(-1, 3))  # finds out what need not be kept
    assert torch.equal(fast.attribute(ids, target=(-1, 3)), plain.attribute(ids, target=(-1, 3)))


class TwoWays(nn.Module):
    """Takes another way for inputs of a negative sum."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        hidden = self.norm(self.first(x))
        gate = torch.sigmoid(self.first(hidden)) if x.sum() < 0 else 2.0
        return self.second(nn.functional.gelu(hidden * gate))


@pytest.mark.parametrize("method", METHODS)
def test_another_way_through_a_model_is_noticed(method):
    torch.manual_seed(0)
    model = TwoWays().double().eval()
    inputs = [sign * torch.rand(3, 4, dtype=torch.float64) for sign in (1, 1, -1, -1, 1, -1) * 3]
    attribution = method(model)
    for each in inputs:
        expected = method(model, fast=False).attribute(each, target=1)
        torch.testing.assert_close(attribution.attribute(each, target=1), expected)


def test_the_forward_function_runs_once_more_only_for_another_way():
    torch.manual_seed(0)
    model, calls = TwoWays().double().eval(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    attribution, inputs = LRPx(model), torch.rand(2, 4, dtype=torch.float64)
    runs = []
    for each in (inputs, inputs, -inputs, -inputs):
        calls.clear()
        attribution.attribute(each, target=0)
        runs.append(len(calls))
    assert runs == [1, 1, 2, 1]


def test_writing_into_a_saved_tensor_is_an_error_as_it_is_without():
    class Writes(nn.Module):
        def forward(self, x):
            half = x * 0.5
            gelu = nn.functional.gelu(half)
            half += 1
            return (gelu + half).sum(-1)

    for fast in (True, False):
        with pytest.raises(RuntimeError, match=r"modified by an in-?place operation"):
            LRPx(Writes(), fast=fast).attribute(torch.rand(2, 3))


def test_results_of_activations_are_made_again():
    model, ids = tiny("llama", attn="sdpa"), token_ids()
    attribution = AttnLRPx(TokenLogits(model))
    attribution.attribute(ids, target=5)
    seen = []
    plain = TracedPass.attach

    def attach(rules, *outputs, **options):
        plain(rules, *outputs, **options)
        seen.append(rules.form.economy)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TracedPass, "attach", attach)
        attribution.attribute(ids, target=5)
    assert len(seen[0].again) == model.config.num_hidden_layers


# Zeros --------------------------------------------------------------------------------------------


@pytest.fixture
def products(monkeypatch):
    """Gradients that linear layers were given as mostly zero."""
    found, plain = [], narrow.product_of_sparse

    def product(gradient, *args):
        found.append(gradient)
        return plain(gradient, *args)

    answers = dict.fromkeys(narrow._ANSWERS, product)
    monkeypatch.setattr(narrow, "_ANSWERS", answers)
    return found


def test_behind_the_last_attention_only_explained_rows_go_backward(products):
    model, ids = tiny("gpt2", attn="sdpa"), token_ids(length=12)
    AttnLRPx(model).attribute(ids, target=(-1, 5))
    # The head, the two layers of the MLP, the output of attention: one row of each text.
    assert [int(each.any(1).sum()) for each in products] == [2] * 4
    assert all(len(each) == 24 for each in products)


EXPLAINED = {
    "one position": None,
    "several, some of them twice": (
        torch.tensor([[4, 5, 6]] * 3),
        torch.tensor([[1, 1, 2], [3, 3, 3], [4, 5, 6]]),
    ),
}


@pytest.mark.parametrize("tokens", EXPLAINED.values(), ids=EXPLAINED)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_relevances_of_few_rows_are_those_of_all(family, method, attn, tokens, products):
    model = tiny(family, attn=attn)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 5:] = 0
    if attn == "sdpa" and family != "bloom":  # transformers' eager float64 masks give NaN there
        mask[2, :2] = 0
    embeds = model.get_input_embeddings()(token_ids(3, 7)).detach()
    forward, arguments = LogitDifference(model), (mask, 5, 6, torch.tensor([1, 4, 6]))
    if tokens is not None:
        forward, arguments = TokenSum(model), (mask, *tokens)
    expected, expected_delta, found, delta = (
        each
        for fast in (False, True)
        for each in method(forward, fast=fast).attribute(
            embeds, additional_forward_args=arguments, return_convergence_delta=True
        )
    )
    assert products
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(delta, expected_delta, rtol=1e-12, atol=1e-12)


def test_what_is_captured_is_seen_whole():
    model, ids = tiny("llama", attn="sdpa"), token_ids(3, 7)
    positions, layer = torch.tensor([1, 4, 6]), model.model.layers[-1]
    found = LayerLRPx(LogitDifference(model), layer).attribute(
        ids, additional_forward_args=(None, 5, 6, positions)
    )
    found = found[0] if isinstance(found, tuple) else found
    assert found.shape == (*ids.shape, model.config.hidden_size)
    assert found[torch.arange(3), positions].abs().sum() > 0


def test_a_fused_projection_goes_backward_for_its_values_alone(products):
    model, ids = tiny("gpt2", attn="sdpa"), token_ids(length=12)
    LRPx(model).attribute(ids, target=(-1, 5))
    width = model.config.n_embd
    fused = [each for each in products if each.shape[1] == 3 * width]
    assert [int(each.any(0).sum()) for each in fused] == [width] * model.config.n_layer


@pytest.mark.parametrize("method", METHODS)
def test_experts_go_backward_for_their_signal_alone(products, method):
    config = MixtralConfig(
        vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=3,
    )  # fmt: skip
    model, ids = MixtralForCausalLM(config).eval(), token_ids(length=12)
    expected = method(model, fast=False).attribute(ids, target=(-1, 5))
    for _ in range(2):
        products.clear()
        found = method(model).attribute(ids, target=(-1, 5))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    fused = [each for each in products if each.shape[1] == 2 * config.intermediate_size]
    # Both layers under LRP, where gates are constant; the last one, for two rows, under AttnLRP.
    alive = [int(each.any(0).sum()) for each in fused]
    assert alive == ([24, 24] if method is LRPx else [48])
    assert int(fused[0].any(1).sum()) == 2 * config.num_experts_per_tok


def test_gradients_of_several_targets_at_once_are_not_looked_at():
    model, ids = tiny("gpt2", attn="sdpa"), token_ids()
    forward = TokenLogits(model)
    many = LRPx(forward).attribute_targets(ids, [3, 4, 5])
    alone = torch.stack([LRPx(forward).attribute(ids, target=each) for each in (3, 4, 5)])
    torch.testing.assert_close(many, alone)


def test_a_second_backward_pass_begins_with_rows_again():
    model, ids = tiny("gpt2", attn="sdpa"), token_ids()
    targets = [(-1, 3), (0, 4)]
    many = LRPx(model).attribute_targets(ids, targets)
    alone = torch.stack([LRPx(model, fast=False).attribute(ids, each) for each in targets])
    torch.testing.assert_close(many, alone)
