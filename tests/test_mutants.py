"""Each rule matters: where one is broken, the model is refused or its ledger stays open."""

import pytest
import torch
from plain_functions import WIDTH, tanh_overwritten
from plain_models import Mlp, Normed, SelfAttention, randomize
from torch import nn
from torch.nn import functional as F  # noqa: N812

from captum_lrpx import AttnLRPx, LRPx, forms, ledger
from captum_lrpx.rules import node_rules
from captum_lrpx.trace import operations, roles, watch


class Applied(nn.Module):
    """A function over a linear layer without a bias."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(WIDTH, WIDTH, bias=False), function

    def forward(self, x):
        return self.function(self.linear(x))


class Routed(nn.Module):
    """Three experts, weighted by a router whose weights are handed on by a function."""

    def __init__(self, odds):
        super().__init__()
        self.router = nn.Linear(WIDTH, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.odds = odds

    def forward(self, x):
        weights = self.odds(self.router(x))
        return sum(weights[..., n, None] * expert(x) for n, expert in enumerate(self.experts))


class Patches(nn.Module):
    """Convolution, batch norm, and the map as a sequence of positions."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 2, 2, bias=False), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, WIDTH, bias=False)

    def forward(self, x):
        x = self.norm(self.convolution(x))
        return self.linear(x.flatten(2).transpose(1, 2))


def written_in_place(scores):
    """Odds that are put where they belong by an in-place write."""
    odds = torch.zeros_like(scores)
    odds[..., :2] = scores.softmax(-1)[..., :2]
    return odds


def nothing(*_):
    """A hook that leaves the ordinary gradient."""


def is_kind(name, kind):
    return lambda patch: patch.setitem(operations._KINDS, name, kind)


def is_own_gradient(name):
    return lambda patch: patch.setattr(node_rules, "HOMOGENEOUS", node_rules.HOMOGENEOUS | {name})


def without_hook(name):
    return lambda patch: patch.setattr(node_rules, name, lambda *_, **__: nothing)


def without_provenance(patch):
    kept = roles._Finder.nature

    def nature(finder, edge):
        lost = finder.graph.names[edge.node] == "CopySlices"
        return "signal" if lost else kept(finder, edge)

    patch.setattr(roles._Finder, "nature", nature)


def without_contiguous_gradients(patch):
    patch.setattr(node_rules, "contiguous", lambda taken: taken)


def without_copies_of_inputs(patch):
    patch.setattr(watch.Watch, "_before_writing", nothing)


def soft_cap(z):
    return 2 * torch.tanh(z / 2)


def clamped(z):
    return z.clamp(-0.2, 0.3)


def layer_norm(x):
    return F.layer_norm(x, (WIDTH,))


EMBEDDED = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(0)).double()
PIXELS = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()

MUTANTS = {
    "a soft cap without a rule": (lambda: Applied(soft_cap), is_own_gradient("Tanh")),
    "a clamp without a rule": (lambda: Applied(clamped), is_own_gradient("Clamp")),
    "a GELU without a rule": (lambda: Mlp(F.gelu), without_hook("secant")),
    "a square without a rule": (lambda: Mlp(torch.square), without_hook("secant")),
    "a norm without a rule": (lambda: Normed(layer_norm), without_hook("frozen_norm")),
    "the scale of a norm in the flow": (lambda: Normed(F.normalize), without_hook("scaled")),
    "attention without a rule": (lambda: SelfAttention(need_weights=True), without_hook("scaled")),
    "fused attention without a rule": (
        lambda: SelfAttention(need_weights=False), without_hook("scaled")
    ),
    "the gate of a GLU in the flow": (lambda: Mlp(F.glu), without_hook("gated")),
    "a router as a signal": (lambda: Routed(lambda z: z.softmax(-1)), is_kind("Softmax", "linear")),
    "a sigmoid router as a signal": (lambda: Routed(torch.sigmoid), is_kind("Sigmoid", "linear")),
    "a router in the flow": (lambda: Routed(lambda z: z.softmax(-1)), without_hook("scaled")),
    "provenance lost in an in-place write": (lambda: Routed(written_in_place), without_provenance),
    "an overwritten input": (lambda: Mlp(tanh_overwritten), without_copies_of_inputs),
    "a gradient that is not contiguous": (Patches, without_contiguous_gradients),
}  # fmt: skip

ADDED = {
    "a sine": (lambda z: z + torch.sin(z), is_kind("Sin", "linear")),
    "a function on a view": (
        lambda z: F.silu(z.view_as(z), inplace=True),
        lambda patch: patch.setattr(forms, "is_linear_write", lambda *_, **__: True),
    ),
}


def verdict(build):
    """How an attribution of a module without biases ends."""
    module = build()
    randomize(module, zero_biases=True)
    module.double().eval()
    inputs = PIXELS if isinstance(module, Patches) else EMBEDDED
    try:
        relevance = LRPx(module).attribute(inputs, (1, 2))
    except ValueError:
        return "refused"
    found = ledger(LRPx(module), inputs, (1, 2))
    value = module(inputs)[:, 1, 2]
    conserved = torch.allclose(relevance.flatten(1).sum(1), value, rtol=1e-8, atol=1e-8)
    return "explained" if conserved and found.closes(1e-8) else "open"


def batch_norm_is_right():
    """Whether this PyTorch has the right gradient for a gradient that is not contiguous."""
    x = torch.randn(1, 3, 4, 4).requires_grad_()
    given = torch.randn(1, 16, 3).transpose(1, 2).view(1, 3, 4, 4)
    norm = nn.BatchNorm2d(3).eval()
    one, other = (torch.autograd.grad(norm(x), x, each)[0] for each in (given, given.contiguous()))
    return torch.allclose(one, other)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_shows(name, monkeypatch):
    build, mutate = MUTANTS[name]
    assert verdict(build) == "explained"
    mutate(monkeypatch)
    if build is Patches and batch_norm_is_right():
        pytest.skip("this PyTorch needs no contiguous gradients")
    assert verdict(build) in ("refused", "open")


@pytest.mark.parametrize("name", ADDED)
def test_what_is_refused_would_not_decompose_the_value(name, monkeypatch):
    function, mutate = ADDED[name]
    assert verdict(lambda: Applied(function)) == "refused"
    mutate(monkeypatch)
    assert verdict(lambda: Applied(function)) == "open"


def all_written(scores):
    odds = torch.empty_like(scores)
    for n in range(3):
        odds[..., n] = scores.softmax(-1)[..., n]
    return odds


def scattered(scores):
    values, indices = scores.softmax(-1).sort()
    return torch.zeros_like(scores).scatter(-1, indices, values)


def renormalised(odds):
    values, indices = odds.topk(3)
    values /= values.sum(-1, keepdim=True)
    return torch.zeros_like(odds).scatter_add(-1, indices, values)


HANDED_ON = {
    "written into zeros": all_written,
    "sorted and scattered": scattered,
    "chosen and renormalised": lambda z: renormalised(z.softmax(-1)),
    "through views": lambda z: z.softmax(-1).flatten(0, 1).t().contiguous().t().view_as(z),
    "through a mask": lambda z: z.softmax(-1).masked_fill(z.isnan(), 0.0),
    "times a number, in place": lambda z: (2.0 * z.softmax(-1)).mul_(3.0).div_(6.0),
}


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("way", HANDED_ON)
def test_odds_are_constant_however_they_are_handed_on(way, method):
    found = []
    for odds in (lambda z: z.softmax(-1), HANDED_ON[way]):
        module = Routed(odds)
        randomize(module, zero_biases=True)
        module.double().eval()
        found.append(method(module).attribute(EMBEDDED, (1, 2)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)
