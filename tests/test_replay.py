"""Runs that go on from a layer: what is left out is what makes no difference."""

import threading

import pytest
import torch
from models import tiny, token_ids
from replica_patching import measured
from torch import nn

from captum_lrpx import ActivationPatching
from captum_lrpx.components.replay import Replay

X, Y = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Chain(nn.Module):
    """Two layers, after which something is read that the first may have left."""

    def __init__(self, first):
        super().__init__()
        self.first, self.second, self.last = first, nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        x = x.clone()
        notes = {} if isinstance(self.first, Noting) else None
        y = self.first(x, notes)
        if isinstance(self.first, Passing):
            y += 1
        z = self.second(y)
        z = z + x + (notes["state"] if notes else 0) + getattr(self.first, "state", 0)
        return self.last(torch.tanh(z))


class Plain(nn.Module):
    """A layer that gives an output, and does nothing else."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x, _notes):
        return self.linear(x)


class Writing(Plain):
    def forward(self, x, _notes):
        y = self.linear(x)
        x += y
        return y


class Keeping(Plain):
    def forward(self, x, _notes):
        self.state = x * 3
        return self.linear(x)


class Adding(Plain):
    """Counts its runs in a buffer, in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(1))

    def forward(self, x, _notes):
        self.state += 1
        return self.linear(x)


class Noting(Plain):
    def forward(self, x, _notes):
        _notes["state"] = x * 2
        return self.linear(x)


class Passing(Plain):
    """Gives its argument itself, into which is written later."""

    def forward(self, x, _notes):
        return x


KINDS = [Plain, Writing, Keeping, Noting, Passing]


def chain(kind):
    torch.manual_seed(0)
    return Chain(kind()).double()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_does_beside_giving_an_output_is_not_left_out(kind):
    model = chain(kind)
    found = ActivationPatching(model, model.second).attribute(
        X, Y, target=(-1, 1), by="token", perturbations_per_eval=1
    )
    runs = [lambda: model(X)[:, -1, 1], lambda: model(Y)[:, -1, 1]]
    assert found.equal(measured(model.second, *runs, "token", at_input=False))


@pytest.mark.parametrize("kind", [*KINDS, Adding])
def test_only_a_layer_that_does_nothing_else_is_left_out(kind):
    model = chain(kind)
    runs = []
    model.first.linear.register_forward_hook(lambda *_: runs.append(1))
    replay = Replay(model, [model.second], at_input=False)
    with replay.recorded():
        model(X)
    runs.clear()
    with replay.resumed(model.second):
        model(X)
    assert bool(runs) == (kind not in (Plain, Passing))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_of_a_transformer_all_blocks_before_the_layer_are_left_out(family):
    model = tiny(family, layers=4)
    base = model.base_model
    blocks = list(getattr(base, "layers", None) or getattr(base, "h", None) or base.encoder.layer)
    replay = Replay(model, blocks, at_input=True)
    with replay.recorded():
        expected = model(token_ids(), use_cache=False).logits
    runs = []
    for number, block in enumerate(blocks):
        first = next(each for each in block.modules() if isinstance(each, nn.LayerNorm | nn.Linear))
        inside = next(child for child in first.modules())
        inside.register_forward_hook(lambda *_, number=number: runs.append(number))
    with replay.resumed(blocks[2]):
        found = model(token_ids(seed=3), use_cache=False).logits
    assert set(runs) <= {2, 3}
    assert found.equal(expected), "everything before came from the first run"


def test_runs_of_other_threads_do_not_move_the_start():
    model = chain(Plain)
    replay = Replay(model, [model.second], at_input=False)
    with replay.recorded():
        model(X)
        start = replay.start(model.second)
        other = threading.Thread(target=model, args=(Y,))
        other.start()
        other.join()
    assert replay.start(model.second) == start


def test_a_model_that_writes_into_what_a_layer_gave():
    class InPlace(Chain):
        def forward(self, x):
            y = self.first(x, None)
            z = self.second(y)
            y += z
            return self.last(torch.tanh(y))

    torch.manual_seed(0)
    model = InPlace(Plain()).double()
    found = ActivationPatching(model, model.second).attribute(X, Y, target=(-1, 1), by="token")
    runs = [lambda: model(X)[:, -1, 1], lambda: model(Y)[:, -1, 1]]
    expected = measured(model.second, *runs, "token", at_input=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
