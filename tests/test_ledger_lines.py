"""What the lines of a ledger are called, in modules that nobody has declared."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx import AttnLRPx, LRPx, ledger
from captum_lrpx.rules import node_rules

WIDTH, LENGTH = 4, 5
IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 0, 0, 0]])


class Embedded(nn.Module):
    """Words, positions and segments, put together in some way, and a linear head.

    Args:
        put: Gives the sum of the three.
        index: Gives what positions are looked up with.
    """

    def __init__(self, put=None, index=None):
        super().__init__()
        self.words = nn.Embedding(7, WIDTH)
        self.positions = nn.Embedding(16, WIDTH)
        self.segments = nn.Embedding(2, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("counter", torch.arange(16).expand(1, -1))
        self.put = put or (lambda words, positions, segments: words + positions + segments)
        self.index = index or (lambda _, mask: torch.arange(mask.shape[1]))
        self.double().eval()

    def forward(self, ids, mask=MASK, segments=SEGMENTS):
        positions = self.positions(self.index(self, mask))
        return self.head(self.put(self.words(ids), positions, self.segments(segments))).mean(1)

    def by_hand(self):
        """Amounts by kind: what goes in is linear in all of them."""
        weights = self.head.weight[1] / LENGTH
        given = {
            "tokens": self.words(IDS),
            "positions": self.positions(self.index(self, MASK)).expand(2, -1, -1),
            "token_types": self.segments(SEGMENTS),
        }
        amounts = {kind: (each @ weights).sum(1).detach() for kind, each in given.items()}
        return amounts | {"bias": self.head.bias[1].detach().expand(2)}


def padded(mask):
    counted = (mask.cumsum(1) - 1).clamp(min=0)
    return counted.masked_fill(mask == 0, 1)


GIVEN = padded(MASK)
COUNTERS = {
    "a range": lambda _, mask: torch.arange(mask.shape[1]),
    "a range with an offset": lambda _, mask: torch.arange(mask.shape[1]).unsqueeze(0) + 2,
    "a slice of a buffer": lambda module, mask: module.counter[:, 1 : mask.shape[1] + 1],
    "what is not padding, counted": lambda _, mask: padded(mask),
    "given position ids": lambda *_: GIVEN,
}
SUMS = {
    "one after the other": lambda words, positions, segments: words + positions + segments,
    "the others first": lambda words, positions, segments: words + (segments + positions),
    "the others first, reshaped": lambda words, positions, segments: (
        (positions + segments).contiguous().view(-1, LENGTH, WIDTH)[:] + words
    ),
    "in place": lambda words, positions, segments: words.add_(positions).add_(segments),
    "subtracted": lambda words, positions, segments: words - (-positions) - segments.neg(),
    "scaled": lambda words, positions, segments: (
        torch.add(words, positions / 2, alpha=2) + 0.5 * (segments * 2)
    ),
    "expanded": lambda words, positions, segments: positions.expand_as(words) + words + segments,
}


def assert_entries(module, paths):
    book = ledger(LRPx(module), IDS, 1)
    assert book.closes(1e-12)
    assert {entry.kind: entry.path for entry in book.entries} == paths
    for entry in book.entries:
        expected = module.by_hand()[entry.kind]
        torch.testing.assert_close(entry.amount, expected, rtol=1e-6, atol=1e-7)


PATHS = {
    "tokens": "words",
    "positions": "positions",
    "token_types": "segments",
    "bias": "head.bias",
}


@pytest.mark.parametrize("index", COUNTERS.values(), ids=COUNTERS)
def test_a_table_that_a_counter_looks_up_is_one_of_positions(index):
    assert_entries(Embedded(index=index), PATHS)


@pytest.mark.parametrize("put", SUMS.values(), ids=SUMS)
def test_tables_are_told_apart_however_they_are_added(put):
    assert_entries(Embedded(put), PATHS)


def test_what_several_tables_make_together_is_one_line():
    inner = Embedded(
        lambda words, positions, segments: words + F.layer_norm(positions + segments, (WIDTH,))
    )
    book = ledger(LRPx(nn.Sequential(inner)), IDS, 1)
    assert book.closes(1e-12)
    lines = [(entry.kind, entry.path) for entry in book.entries]
    assert lines == [("tokens", "0.words"), ("token_types", "0"), ("bias", "0.head.bias")]


# Parameters ---------------------------------------------------------------------------------------


class Parameters(nn.Module):
    """Parameters and buffers that are added without a module of their own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 8, WIDTH))
        self.register_buffer("wave", torch.randn(8, WIDTH))
        self.inner = nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.GroupNorm(2, WIDTH)
        self.convolution = nn.Conv1d(2 * WIDTH, WIDTH, 2)
        self.double().eval()
        for bias in (self.norm.bias, self.convolution.bias, self.inner.bias):
            nn.init.normal_(bias)

    def forward(self, x):
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1)
        x = self.inner(x + self.places[:, : x.shape[1]] + self.wave[: x.shape[1]])
        x /= 2
        return self.norm(self.convolution(x.mT) - 3.0).mean(-1)


def test_parameters_and_buffers_have_their_names():
    module = Parameters()
    book = ledger(LRPx(module), torch.randn(2, LENGTH, WIDTH, dtype=torch.float64), 1)
    assert book.closes(1e-12, to="value")
    amounts = {entry.path: entry.amount for entry in book.entries}
    biases = ["inner.bias", "convolution.bias", "torch.Tensor.sub", "norm.bias"]
    assert list(amounts) == ["inputs", "first", "places", "wave", *biases]
    torch.testing.assert_close(amounts["norm.bias"], module.norm.bias[1].detach().expand(2))


def test_a_bias_in_what_is_written_over_and_used_before():
    class Overwritten(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)
            self.double().eval()

        def forward(self, x):
            z = self.inner(x)
            y = z * 2
            z.mul_(3)
            return (y + z).sum(1)

    module = Overwritten()
    book = ledger(LRPx(module), torch.randn(2, LENGTH, WIDTH, dtype=torch.float64), 1)
    (line,) = book.of("bias")
    assert line.path == "inner.bias"
    torch.testing.assert_close(line.amount, 5 * LENGTH * module.inner.bias[1].detach().expand(2))


class Attention(nn.Module):
    """Attention with a table of distances, as T5 has one."""

    def __init__(self, *, fused):
        super().__init__()
        self.fused = fused
        self.distances = nn.Embedding(2 * LENGTH, 1)
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.double().eval()

    def forward(self, x):
        place = torch.arange(x.shape[1])
        bias = self.distances(place - place[:, None] + LENGTH).squeeze(-1)
        q, k, v = self.mix(x)[:, None].chunk(3, -1)
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, bias).sum((1, 2))
        return ((q @ k.mT / WIDTH**0.5 + bias).softmax(-1) @ v).sum((1, 2))


def test_distances_are_constants_of_scores_however_attention_is_computed():
    torch.manual_seed(0)
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    modules = [Attention(fused=fused) for fused in (False, True)]
    modules[1].load_state_dict(modules[0].state_dict())
    books = [ledger(AttnLRPx(module), x, 1) for module in modules]
    for book in books:
        assert book.closes(1e-12)
        assert (book.by_kind()["score_bias"] != 0).all()
        assert not book.of("positions")
    for kind, amount in books[0].by_kind().items():
        torch.testing.assert_close(books[1].by_kind()[kind], amount)


# A bias has its own amount and no more ------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.LayerNorm(WIDTH), nn.GroupNorm(2, WIDTH)])
def test_a_wrong_rule_at_a_norm_does_not_pass_for_its_bias(norm, monkeypatch):
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), norm, nn.Linear(WIDTH, 3)).double().eval()
    nn.init.normal_(norm.bias)
    x = torch.randn(2, WIDTH, dtype=torch.float64)
    assert ledger(LRPx(module), x, 1).closes(1e-12)
    monkeypatch.setattr(node_rules, "frozen_norm", lambda *_: node_rules.scaled((0.9, None, None)))
    assert not ledger(LRPx(module), x, 1).closes(1e-3)


ADDCMUL = {
    "a function": torch.addcmul,
    "a method": lambda bias, x, factor: bias.expand_as(x).addcmul(x, factor),
    "in place": lambda bias, x, factor: (torch.ones_like(x) * bias).addcmul_(x, factor),
}


@pytest.mark.parametrize("form", ADDCMUL)
def test_a_constant_to_which_a_product_is_added(form):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias, self.factor = (nn.Parameter(torch.randn(WIDTH)) for _ in range(2))
            self.head = nn.Linear(WIDTH, 3)

        def forward(self, x):
            return self.head(ADDCMUL[form](self.bias, x, self.factor))

    torch.manual_seed(0)
    model, x = Model().double().eval(), torch.randn(2, WIDTH, dtype=torch.float64)
    book = ledger(LRPx(model), x, 1)
    constant = model.head.weight[1] @ model.bias + model.head.bias[1]
    assert book.closes(1e-12)
    torch.testing.assert_close(book.by_kind()["bias"], constant.detach().expand(2))
