"""Parts that the rules hold constant have no graph in later calls: same relevances, fewer nodes."""

import copy
import threading

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import eager_attention_forward

from captum_lrpx import AttnLRPx, LayerLRPx, LRPx, TokenLogits, explain, zoo
from captum_lrpx.forms import forms_of
from captum_lrpx.recipes import NAMED_RECIPES
from captum_lrpx.traced import TracedPass

X = torch.tensor([[0.3, -1.2, 0.7, 2.0], [1.1, 0.4, -0.6, 0.2]], dtype=torch.float64)


@pytest.fixture
def nodes(monkeypatch):
    """The number of nodes of the graph of each pass."""
    found, plain = [], TracedPass.read

    def read(rules, outputs):
        graph, plan = plain(rules, outputs)
        found.append(len(graph.nodes))
        return graph, plan

    monkeypatch.setattr(TracedPass, "read", read)
    return found


class Gated(nn.Module):
    """An MLP with a gate; LRP holds the gate constant."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def gated():
    return Gated().double().eval()


@pytest.mark.parametrize("recipe", NAMED_RECIPES)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", {**FAMILIES, **MORE_FAMILIES})
def test_later_calls_give_the_relevances_of_the_whole_graph(family, attn, recipe, nodes):
    model, ids = tiny(family, attn=attn), token_ids()
    fast, plain = (LRPx(model, recipe=NAMED_RECIPES[recipe], fast=fast) for fast in (True, False))
    expected = plain.attribute(ids, target=(-1, 3))
    found = [fast.attribute(ids, target=(-1, 3)) for _ in range(3)]
    for each in found:
        assert torch.equal(each, found[0])
    scale = expected.abs().max()
    assert torch.allclose(found[0] / scale, expected / scale, rtol=0, atol=2e-7)
    assert nodes[1] >= nodes[2] == nodes[3]
    assert not any(form.surprises for form in forms_of(model).values())


@pytest.mark.parametrize(
    ("family", "method", "fewer"),
    [("bert", LRPx, True), ("llama", LRPx, True), ("bert", AttnLRPx, False)],
)
def test_queries_keys_and_gates_have_no_nodes(family, method, fewer, nodes):
    model = tiny(family, attn="sdpa")
    for _ in range(3):
        method(model).attribute(token_ids(), target=(-1, 3))
    first, *later = nodes
    assert later == [later[0]] * 2
    assert (later[0] < 0.85 * first) == fewer
    assert fewer or later[0] == first


def test_the_output_has_the_same_bits():
    model, ids = tiny("llama", attn="sdpa", dtype=torch.float32), token_ids()
    seen = []
    model.register_forward_hook(lambda _module, _args, output: seen.append(output.logits.detach()))
    for _ in range(3):
        LRPx(model).attribute(ids, target=(-1, 3))
    model(ids)
    assert all(torch.equal(each, seen[-1]) for each in seen)


def test_many_targets_batches_and_other_lengths_share_it(nodes):
    attribution = LRPx(TokenLogits(tiny("llama", attn="sdpa")))
    plain = LRPx(attribution.forward_func, fast=False)
    for length in (5, 7, 5):
        ids = token_ids(length=length)
        found = attribution.attribute_targets(ids, [3, 4])
        expected = plain.attribute_targets(ids, [3, 4])
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)
    first, _, *others = nodes
    assert set(others[::2]) == {others[0]}
    assert others[0] < first


# Where other code may look at gradients -----------------------------------------------------------


def test_hooks_anywhere_see_gradients(nodes):
    model, seen = tiny("llama", attn="sdpa"), []

    def hook(_module, _args, output):
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.retain_grad()
            seen.append(output)

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(hook)
    for _ in range(3):
        LRPx(model).attribute(token_ids(), target=(-1, 3))
    assert len(set(nodes)) == 1
    assert len(seen) % 3 == 0


def test_a_backward_hook_is_called_each_time():
    model, calls = tiny("llama", attn="sdpa"), []
    for _ in range(2):
        LRPx(model).attribute(token_ids(), target=(-1, 3))
    model.model.layers[0].mlp.act_fn.register_full_backward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        LRPx(model).attribute(token_ids(), target=(-1, 3))
    assert len(calls) == 3


def test_gradients_inside_of_the_forward_function_are_those_of_the_model():
    model = tiny("llama", attn="sdpa")
    embeds, inner = model.get_input_embeddings()(token_ids()).detach(), []

    def forward(each):
        x = embeds.clone().requires_grad_()
        value = model(inputs_embeds=x).logits[:, -1, 3].sum()
        inner.append(torch.autograd.grad(value, x)[0])
        return model(inputs_embeds=each).logits

    for _ in range(3):
        LRPx(forward, model).attribute(embeds, target=(-1, 3))
    assert all(torch.equal(each, inner[0]) for each in inner)


def test_an_explanation_inside_of_another():
    model = tiny("llama", attn="sdpa")
    embeds, inner = model.get_input_embeddings()(token_ids()).detach(), []
    expected = AttnLRPx(model).attribute(embeds, target=(-1, 3))

    def forward(each):
        inner.append(AttnLRPx(model).attribute(embeds, target=(-1, 3)))
        return model(inputs_embeds=each).logits

    for _ in range(3):
        LRPx(forward, model).attribute(embeds, target=(-1, 3))
    for each in inner:
        torch.testing.assert_close(each, expected)


def test_an_attention_function_from_elsewhere_may_register_hooks(nodes):
    grads = []

    def attention(module, query, key, value, attention_mask, **options):
        output, weights = eager_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        weights.register_hook(grads.append)
        return output, weights

    AttentionInterface.register("with_hooks", attention)
    model = tiny("llama", attn="eager")
    model.set_attn_implementation("with_hooks")
    for _ in range(3):
        LRPx(model).attribute(token_ids(), target=(-1, 3))
    assert len(set(nodes)) == 1


class OwnGradient(Gated):
    """Weighted by its own sensitivity to the input."""

    def forward(self, x):
        y = super().forward(x)
        (slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        return y * slope.abs().sum()


class Looking(Gated):
    """Looks whether its gate has a gradient."""

    def forward(self, x):
        gate = self.gate(x)
        gate = gate if gate.requires_grad else 1.5 * gate
        return self.down(nn.functional.silu(gate) * self.up(x))


class Saving(Gated):
    """Keeps the gradient of its gate."""

    def forward(self, x):
        gate = self.gate(x)
        if gate.requires_grad or self.training:
            gate.retain_grad()
        return self.down(nn.functional.silu(gate) * self.up(x))


class OneWay(Gated):
    """For some inputs only its gate is used."""

    def forward(self, x):
        return self.gate(x)[:, :3] if x.sum() < 0 else super().forward(x)


@pytest.mark.parametrize("kind", [Gated, OwnGradient, Looking, Saving, OneWay])
def test_modules_of_the_users_keep_their_whole_graph(kind, nodes):
    model = kind().double().eval()
    for x in (X.abs(), X.abs(), -X.abs(), X.abs()):
        fresh = copy.deepcopy(model)
        expected = LRPx(fresh, fast=False).attribute(x, target=1)
        torch.testing.assert_close(LRPx(model).attribute(x, target=1), expected)
    assert nodes[0] == nodes[1] == nodes[2] == nodes[3]


def test_another_activation_of_the_gate_is_refused():
    model = gated()
    model.activation = nn.functional.silu
    model.forward = lambda x: model.down(model.activation(model.gate(x)) * model.up(x))
    for _ in range(3):
        LRPx(model).attribute(X, target=1)
    model.activation = lambda z: z
    with pytest.raises(ValueError, match="without a rule"):
        LRPx(model).attribute(X, target=1)


def test_one_target_and_many_of_them_share_what_is_known():
    model = tiny("llama", attn="sdpa")
    attribution, calls = LRPx(TokenLogits(model)), []
    plain = model.forward
    for _ in range(6):
        attribution.attribute(token_ids(), target=3)
        attribution.attribute_targets(token_ids(), [3])
    assert not any(form.surprises for form in forms_of(model).values())
    model.forward = lambda *args, **options: calls.append(1) or plain(*args, **options)
    for _ in range(8):
        calls.clear()
        attribution.attribute(token_ids(), target=3)
    assert len(calls) == 1


def test_layers_without_relevance_have_zeros():
    model = tiny("llama", attn="sdpa")
    for _ in range(2):
        LRPx(model).attribute(token_ids(), target=(-1, 3))
    for _ in range(2):
        found = LayerLRPx(model, model.model.layers[0].self_attn.q_proj).attribute(
            token_ids(), target=(-1, 3)
        )
        assert not found.any()


def test_a_checkpoint_of_the_users_runs_again_with_its_whole_graph():
    class Checkpointed(Gated):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    model = Checkpointed().double().eval()
    expected = LRPx(gated()).attribute(X, target=1)
    for _ in range(3):
        torch.testing.assert_close(LRPx(model).attribute(X, target=1), expected)


def test_other_threads_keep_their_gradients():
    """While an explanation is between two layers, another thread trains the same model."""
    model, ids = tiny("llama", attn="sdpa"), token_ids()
    embeds = model.get_input_embeddings()(ids).detach()

    def gradient():
        x = embeds.clone().requires_grad_()
        return torch.autograd.grad(model(inputs_embeds=x).logits[:, -1].sum(), x)[0]

    expected = gradient()
    for _ in range(2):
        LRPx(model).attribute(embeds, target=(-1, 3))
    inside, done, found = threading.Event(), threading.Event(), []
    plain = nn.functional.silu

    def silu(z, **options):
        if threading.current_thread() is threading.main_thread():
            inside.set()
            assert done.wait(10)
        return plain(z, **options)

    def train():
        inside.wait(10)
        found.append(gradient())
        done.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "silu", silu)
        thread = threading.Thread(target=train)
        thread.start()
        LRPx(model).attribute(embeds, target=(-1, 3))
        thread.join()
    torch.testing.assert_close(found[0], expected)


def test_nothing_stays_on_the_model():
    model = tiny("llama", attn="sdpa")
    for _ in range(3):
        LRPx(model).attribute(token_ids(), target=(-1, 3))
    assert not any(each._forward_hooks for each in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_certificates_compare_it_with_the_whole_graph():
    model, tokenizer = zoo.load()
    for _ in range(2):
        result = explain(model, tokenizer, "The keys to the cabinet", target=" are", method="lrpx")
        assert result.certification.startswith("certified")
