"""The estimate of memory is below what is needed, and near it; what cannot fit is refused."""

import gc
import weakref

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from tiny_models import build
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from captum_lrpx import AttnLRPx, LRPx, TokenLogits, memory
from captum_lrpx.memory import available, estimate

LENGTH = 100
WITHIN = 2.5
"""Factor between the estimate and the peak of a pass."""


class Live(TorchDispatchMode):
    """Bytes of the tensors that are made meanwhile, at the moment when they are most."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.alive = set()

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        given = self.storages((args, kwargs))
        result = function(*args, **(kwargs or {}))
        for storage in self.storages(result):
            key = storage._cdata
            if key not in self.alive and all(key != each._cdata for each in given):
                self.alive.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.freed, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    @staticmethod
    def storages(value):
        leaves = pytree.tree_leaves(value)
        return [each.untyped_storage() for each in leaves if isinstance(each, torch.Tensor)]

    def freed(self, key, size):
        self.alive.discard(key)
        self.now -= size


@pytest.fixture
def peak_of(everything_fast):  # noqa: ARG001 - however small a model is
    """Gives the bytes that a pass takes at its peak once it is known what it needs."""

    def measured(attribution, ids):
        with Live() as live:
            attribution.attribute(ids, (-1, 7))
            gc.collect()  # the graph of the first call is garbage with cycles
            live.peak = live.now
            attribution.attribute(ids, (-1, 7))
        return live.peak

    return measured


def wide(family, **options):
    """A wide model, where a norm's scale and a mask count little."""
    options |= {} if family == "bloom" else {"max_position_embeddings": LENGTH + 10}
    model = tiny(family, heads=4, head_dim=32, intermediate=512, **options)
    model.config._attn_implementation = options["attn"]
    return model


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", FAMILIES | MORE_FAMILIES)
def test_the_estimate_is_a_lower_bound_and_near(family, method, attn, peak_of):
    model = wide(family, attn=attn, layers=4)
    peak = peak_of(method(model), token_ids(2, LENGTH))
    guess = estimate(model, method.default_recipe, 2, LENGTH, logit_positions=LENGTH)
    assert guess <= peak <= WITHIN * guess


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ["bert", "llama", "mistral", "qwen2", "qwen3"])
def test_of_usual_models_it_is_within_15_percent(family, method, checkpointing, peak_of):
    model = wide(family, attn="sdpa", layers=12)
    peak = peak_of(method(model, checkpointing=checkpointing), token_ids(2, LENGTH))
    options = {"logit_positions": LENGTH, "checkpointing": checkpointing}
    guess = estimate(model, method.default_recipe, 2, LENGTH, **options)
    assert guess <= peak <= 1.15 * guess


OTHERS = ["bamba", "jamba", "lfm2_moe", "lfm3", "moshi", "nemotron_h", "zaya", "zamba2", "funnel"]
"""Types whose blocks are not all alike, or whose shape means something else."""


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, use_cache=False).logits


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("kind", OTHERS)
def test_for_other_models_it_is_a_lower_bound_at_least(kind, method, attn, peak_of):
    if kind == "funnel":
        model = build(kind, "MASKED_LM", attention="eager")
        model.forward = lambda ids, own=model.forward, **_: own(ids)
    else:
        model = build(kind, "CAUSAL_LM", attention=attn)
    peak = peak_of(method(Logits(model), model), token_ids(1, LENGTH))
    assert estimate(model, method.default_recipe, 1, LENGTH, logit_positions=0) <= peak


def test_of_a_model_without_a_known_shape_nothing_is_said():
    assert estimate(torch.nn.Linear(2, 2), LRPx.default_recipe, 1, 10) == 0


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_so_it_is_with_checkpointing(method, attn, peak_of):
    model = wide("gpt2", attn=attn, layers=12)
    peak = peak_of(method(model, checkpointing=True), token_ids(2, LENGTH))
    options = {"checkpointing": True, "logit_positions": LENGTH}
    guess = estimate(model, method.default_recipe, 2, LENGTH, **options)
    assert guess <= peak
    assert guess < 0.5 * estimate(model, method.default_recipe, 2, LENGTH, logit_positions=LENGTH)


def test_the_estimate_grows_with_rows_tokens_and_positions_of_logits():
    model = tiny("gpt2", attn="sdpa")
    recipe = AttnLRPx.default_recipe
    one = estimate(model, recipe, 1, 10, logit_positions=0)
    assert estimate(model, recipe, 3, 10, logit_positions=0) == 3 * one
    assert estimate(model, recipe, 1, 20, logit_positions=0) == 2 * one
    working = 2 * 12 * 10 * 8
    assert estimate(model, recipe, 1, 10, logit_positions=2) == one
    many = estimate(model, recipe, 1, 10, logit_positions=1000)
    assert many == one - working + 2 * 1000 * 19 * 8
    assert estimate(model.half(), recipe, 1, 10, logit_positions=0) == one // 4


def test_what_is_free_is_what_the_system_says(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\nSwapFree: 1000 kB\n")
    limit, usage = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", ((limit, usage),))
    cpu = torch.device("cpu")
    assert available(cpu) == 5000 * 1024
    limit.write_text("max\n")
    usage.write_text("100\n")
    assert available(cpu) == 5000 * 1024
    limit.write_text("1000\n")
    assert available(cpu) == 900
    (tmp_path / "memory.stat").write_text("anon 60\nactive_file 10\ninactive_file 30\n")
    assert available(cpu) == 940
    usage.write_text("2000\n")
    assert available(cpu) == 0
    meminfo.write_text("MemTotal: 9000 kB\n")
    assert available(cpu) is None
    assert available(torch.device("meta")) is None


def test_this_machine_has_memory():
    assert available(torch.device("cpu")) is None or available(torch.device("cpu")) > 2**20


@pytest.fixture
def little(monkeypatch):
    """A machine with hardly any memory left."""
    monkeypatch.setattr(memory, "_NEGLIGIBLE", 0)
    monkeypatch.setattr(memory, "available", lambda _device: 10)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_what_will_not_fit_is_refused_with_the_ways_out(method, monkeypatch):
    model = tiny("gpt2")
    with pytest.raises(MemoryError, match=r"2 x 5 tokens.*checkpointing=True.*2 rows.*TokenLog"):
        method(model).attribute(token_ids(), target=(-1, 5))
    saving = method(TokenLogits(model), checkpointing=True)
    with pytest.raises(MemoryError) as refused:
        saving.attribute_targets(token_ids(1), [5])
    assert "`checkpointing" not in str(refused.value)
    assert "rows" not in str(refused.value)
    monkeypatch.setenv(memory.SWITCH, "0")
    assert method(model).attribute(token_ids(), target=(-1, 5)).shape == token_ids().shape


@pytest.mark.usefixtures("little")
def test_inputs_of_other_shapes_are_not_judged():
    model = tiny("gpt2")
    weights = torch.ones(2, dtype=torch.float64)

    def forward(scale):
        embeds = model.get_input_embeddings()(token_ids())
        return model(inputs_embeds=embeds * scale[:, None, None]).logits[:, -1]

    assert LRPx(forward, model).attribute(weights, target=5).shape == (2,)


def test_ordinary_inputs_are_not_judged_at_all(monkeypatch):
    def fail(_device):
        raise AssertionError("asked the system for a small input")

    monkeypatch.setattr(memory, "available", fail)
    LRPx(tiny("gpt2")).attribute(token_ids(), target=(-1, 5))
