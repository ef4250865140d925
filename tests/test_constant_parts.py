"""Parts that the rules hold constant have no graph in later calls: same relevances, fewer nodes."""

import threading

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from torch import nn
from torch.utils.checkpoint import checkpoint

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


# Where the whole graph is needed ------------------------------------------------------------------


class OtherGate(Gated):
    """The gate has another activation for inputs of a negative sum."""

    def forward(self, x):
        gate = self.gate(x) if x.sum() > 0 else self.up(x)
        return self.down(nn.functional.silu(gate) * self.up(x))


def test_another_way_through_the_model_is_noticed():
    model = OtherGate().double().eval()
    attribution, plain = LRPx(model), LRPx(model, fast=False)
    for sign in (1, 1, -1, -1, 1, 1, -1, 1, -1, 1, 1):
        found, expected = (
            each.attribute(sign * X.abs(), target=1) for each in (attribution, plain)
        )
        torch.testing.assert_close(found, expected)


def test_the_model_runs_once_more_only_for_another_way():
    model, calls = OtherGate().double().eval(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    attribution, runs = LRPx(model), []
    for sign in (1, 1, -1, -1, -1, 1):
        calls.clear()
        attribution.attribute(sign * X.abs(), target=1)
        runs.append(len(calls))
    assert runs[:2] == [1, 1]
    assert max(runs) <= 2
    for sign in (1, -1) * 5:
        attribution.attribute(sign * X.abs(), target=1)
    calls.clear()
    attribution.attribute(X.abs(), target=1)
    assert len(calls) == 1


def test_a_hook_of_the_users_sees_the_gradient(nodes):
    model, grads = gated(), []

    def hook(_module, _args, output):
        output.register_hook(grads.append)

    model.gate.register_forward_hook(hook)
    for _ in range(3):
        LRPx(model).attribute(X, target=1)
    assert len(set(nodes)) == 1


def test_layers_without_relevance_have_zeros():
    model = gated()
    LRPx(model).attribute(X, target=1)
    for _ in range(3):
        found = LayerLRPx(model, model.gate).attribute(X, target=1)
        assert not found.any()
        assert found.shape == (2, 6)


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
    model = gated()
    inside, done, found = threading.Event(), threading.Event(), []

    def wait(*_):
        if threading.current_thread() is not threading.main_thread():
            return
        inside.set()
        assert done.wait(10)

    def train():
        inside.wait(10)
        x = X.clone().requires_grad_()
        model(x).sum().backward()
        found.append(x.grad)
        done.set()

    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    for _ in range(2):
        LRPx(model).attribute(X, target=1)
    plain = nn.functional.silu

    def silu(z):
        wait()
        return plain(z)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "silu", silu)
        thread = threading.Thread(target=train)
        thread.start()
        LRPx(model).attribute(X, target=1)
        thread.join()
    torch.testing.assert_close(found[0], expected)


def test_a_module_used_twice_keeps_the_branch_with_relevance():
    class Twice(Gated):
        def forward(self, x):
            return self.down(nn.functional.silu(self.gate(x)) * self.up(x) + self.gate(x))

    model = Twice().double().eval()
    attribution = LRPx(model)
    expected = LRPx(model, fast=False).attribute(X, target=1)
    for _ in range(3):
        torch.testing.assert_close(attribution.attribute(X, target=1), expected)
    (form,) = [form for form in forms_of(model).values() if form.seen]
    assert form.surprises == 0


def test_nothing_stays_on_the_model():
    model = gated()
    for _ in range(3):
        LRPx(model).attribute(X, target=1)
    assert not any(each._forward_hooks for each in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_certificates_compare_it_with_the_whole_graph():
    model, tokenizer = zoo.load()
    for _ in range(2):
        result = explain(model, tokenizer, "The keys to the cabinet", target=" are", method="lrpx")
        assert result.certification.startswith("certified")
