"""Checkpointed blocks: the same relevances, bit for bit, from less memory."""

import gc
import threading
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, outputs, tiny, token_ids
from passes import opened
from plain_functions import WIDTH
from plain_models import LENGTH, NanoGpt, Plain, encoder, randomize
from questions import asked, plain_logits
from state import snapshot
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from captum_lrpx import LRP, AttnLRPx, LLMRelevance, LRPx, TokenLogits, zoo
from captum_lrpx.fast import checkpointing as module_of_blocks
from captum_lrpx.fast.checkpointing import Checkpoints
from captum_lrpx.rules import Epsilon
from captum_lrpx.structure import blocks_of
from captum_lrpx.traced import TracedPass

METHODS = [LRPx, AttnLRPx]
TARGET = (-1, 5)


@pytest.fixture
def repeated(monkeypatch):
    """The blocks that are computed once more, in their order."""
    found, plain = [], Checkpoints._repeat

    def repeat(checkpoints, run):
        found.append(run)
        plain(checkpoints, run)

    monkeypatch.setattr(Checkpoints, "_repeat", repeat)
    return found


def require_equal(method, forward, inputs, target=TARGET, model=None, **options):
    """Relevances are the same bits with and without, in the first calls and in later ones."""
    for fast in (True, False):
        plain = method(forward, model, fast=fast, **options)
        saving = method(forward, model, fast=fast, checkpointing=True, **options)
        for _ in range(2):
            expected = plain.attribute(inputs, target=target)
            found = saving.attribute(inputs, target=target)
            assert all(map(torch.equal, tuple(found), tuple(expected)))


# Everything that has blocks -----------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_relevances_are_equal_bit_by_bit(family, method, attn, repeated):
    model = tiny(family, attn=attn, layers=3)
    require_equal(method, model, token_ids())
    assert len(repeated) == 4 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_in_every_precision(dtype, method):
    require_equal(method, tiny("llama", dtype=dtype, attn="sdpa", layers=3), token_ids())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("mapping", "kind", "trunks"),
    [
        ("CAUSAL_LM", "mixtral", 1),
        ("CAUSAL_LM", "gemma2", 1),
        ("CAUSAL_LM", "mamba", 1),
        ("SEQ_TO_SEQ_CAUSAL_LM", "t5", 2),
        ("SEQ_TO_SEQ_CAUSAL_LM", "bart", 2),
        ("MASKED_LM", "albert", 1),
        ("IMAGE_CLASSIFICATION", "vit", 1),
        ("IMAGE_TEXT_TO_TEXT", "qwen2_vl", 2),
    ],
)
def test_of_other_architectures(mapping, kind, trunks, method, repeated):
    """A model called as it is fills a cache, to which the blocks add."""
    question = asked(kind, mapping)
    assert len(blocks_of(question.model)) == trunks
    require_equal(method, question.logits, question.inputs, question.target, question.model)
    assert repeated


def gelu_in_steps(x):
    return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))


PLAIN = {
    "gelu": Plain(lambda: NanoGpt(F.gelu), "ids"),
    "written out": Plain(lambda: NanoGpt(gelu_in_steps), "ids"),  # no node saves what tanh takes
    "encoder of PyTorch's": Plain(encoder),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PLAIN)
def test_of_plain_modules(name, method, repeated):
    require_equal(method, PLAIN[name].module(), PLAIN[name].batch(), PLAIN[name].target)
    assert repeated


@pytest.mark.parametrize("method", METHODS)
def test_of_embeddings_and_padded_batches(method):
    model = tiny("llama", attn="sdpa", layers=3)
    embeds = model.get_input_embeddings()(token_ids()).detach()
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[0, :2] = 0

    def forward(embeds):
        return model(inputs_embeds=embeds, attention_mask=mask).logits

    require_equal(method, forward, embeds, model=model)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_cache_that_the_blocks_add_to(family):
    model, lengths = tiny(family, attn="sdpa", layers=4), []

    def forward(ids):
        found = model(ids, use_cache=True)
        lengths.append(found.past_key_values.get_seq_length())
        return found.logits

    require_equal(AttnLRPx, forward, token_ids(), model=model)
    assert set(lengths) == {5}


@pytest.mark.parametrize("method", METHODS)
def test_under_autocast(method):
    model = tiny("gpt2", dtype=torch.float32, attn="sdpa", layers=3)

    def forward(ids):
        with torch.autocast("cpu", torch.bfloat16):
            return model(ids).logits

    require_equal(method, forward, token_ids(), model=model)


@pytest.mark.parametrize("method", METHODS)
def test_with_another_kernel_of_attention(method):
    model = tiny("llama", attn="sdpa", layers=3)

    def forward(ids):
        with sdpa_kernel(SDPBackend.MATH):
            return model(ids).logits

    require_equal(method, forward, token_ids(), model=model)


def test_the_default_device_is_that_of_the_first_run():
    devices = []

    def function(_x, y):
        devices.append(torch.get_default_device().type)
        return F.gelu(y) + F.gelu(y, approximate="tanh")

    model = Stack(function)

    def forward(x):
        with torch.device("meta"):
            return model(x)

    LRPx(forward, model, checkpointing=True).attribute(vectors(), target=3)
    assert devices == ["meta"] * 5


def test_with_rules_that_are_attached_to_layers():
    recipe = replace(LRP, linear=Epsilon(0.1))
    require_equal(LRPx, tiny("gpt2", attn="sdpa", layers=3), token_ids(), recipe=recipe)


@pytest.mark.parametrize("at_once", [1, 2, None])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_many_targets_of_one_forward_pass(family, method, at_once):
    forward = TokenLogits(tiny(family, attn="sdpa", layers=3))
    arguments = [4, 5, 6], (None, 3)
    plain, saving = (
        method(forward, checkpointing=each).attribute_targets(
            token_ids(), *arguments, targets_per_backward=at_once
        )
        for each in (False, True)
    )
    assert torch.equal(saving, plain)


def test_many_targets_of_functions_that_save_no_input():
    model, ids = PLAIN["written out"].module(), PLAIN["written out"].batch()
    plain, saving = (
        LRPx(model, checkpointing=each).attribute_targets(ids, [(-1, 3), (0, 2)])
        for each in (False, True)
    )
    assert torch.equal(saving, plain)


def test_a_continuation():
    model, tokenizer = zoo.load("sva-gpt2")
    plain, saving = (
        LLMRelevance(AttnLRPx(model, checkpointing=checkpointing), tokenizer).attribute(
            "the keys to the cabinet", target="are old"
        )
        for checkpointing in (False, True)
    )
    assert torch.equal(saving.context_attr, plain.context_attr)


# What is kept -------------------------------------------------------------------------------------


def storages():
    """Address and size of all tensors that Python knows of."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    found = [each.untyped_storage() for each in tensors if each.layout is torch.strided]
    return {each.data_ptr(): each.nbytes() for each in found}


def kept(method, model, ids, *, checkpointing):
    """Bytes that are there at the end of the forward pass of a second call, and not before."""
    found = []

    def forward(ids):
        before = storages()
        output = outputs(model, input_ids=ids)
        found.append(sum(size for at, size in storages().items() if before.get(at) != size))
        return output

    attribution = method(forward, model, checkpointing=checkpointing)
    for _ in range(2):
        attribution.attribute(ids, target=TARGET)
    return found[1]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_does_not_grow_with_what_a_block_computes(method):
    model = tiny("gpt2", layers=8, intermediate=400, attn="sdpa")
    plain, saving = (
        kept(method, model, token_ids(length=20), checkpointing=each) for each in (False, True)
    )
    assert saving < 0.25 * plain  # the last of the eight blocks, and the inputs of the others


@pytest.mark.parametrize("method", METHODS)
def test_tensors_of_one_block_are_there_at_a_time(method, monkeypatch):
    """Also where the graph is needed again."""
    model, ids = tiny("gpt2", layers=6, intermediate=200, attn="sdpa"), token_ids(length=20)
    there, plain = [], Checkpoints._repeat

    def repeat(checkpoints, run):
        there.append(sum(storages().values()))
        plain(checkpoints, run)

    monkeypatch.setattr(Checkpoints, "_repeat", repeat)
    targets = [(-1, 3), (-1, 4), (-1, 5)]
    method(model, checkpointing=True).attribute_targets(ids, targets, targets_per_backward=1)
    assert len(there) == 3 * 5
    assert max(there[5:]) < 1.05 * max(there[:5])


def test_what_no_rule_reads_is_not_kept_of_a_repeated_block(monkeypatch):
    model, there, plain = tiny("llama", attn="sdpa", layers=3), [], Checkpoints._repeat

    def repeat(checkpoints, run):
        plain(checkpoints, run)
        pieces = [each() for each in run.pieces]
        there.append(sum(each is not None and each.found is not None for each in pieces))

    monkeypatch.setattr(Checkpoints, "_repeat", repeat)
    for fast in (False, True):
        LRPx(model, checkpointing=True, fast=fast).attribute(token_ids(), target=TARGET)
    everything, economical = there[:2], there[2:]
    assert 0 < max(economical) < 0.5 * min(everything)


@pytest.mark.parametrize(("after", "times"), [(1, 3 + 3), (10**9, 0)])
def test_memory_is_given_back_after_large_blocks(after, times, monkeypatch):
    calls = []
    library = SimpleNamespace(malloc_trim=calls.append)
    monkeypatch.setattr(module_of_blocks, "_C_LIBRARY", library)
    monkeypatch.setattr(module_of_blocks, "_GIVEN_BACK_AFTER", after)
    model = tiny("llama", attn="sdpa", layers=4)
    LRPx(model, checkpointing=True).attribute(token_ids(), target=TARGET)
    assert len(calls) == times


class Largest(TorchDispatchMode):
    """Notes the size of the largest result of any operation."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(each, torch.Tensor):
                self.size = max(self.size, each.numel())
        return found


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_the_size_of_all_attention_weights_is_computed(method):
    length, heads = 128, 4
    model = tiny("llama", attn="sdpa", heads=heads, layers=3, max_position_embeddings=length)
    with Largest() as largest:
        method(TokenLogits(model), checkpointing=True).attribute(
            token_ids(1, length), target=5, additional_forward_args=(None, length - 1)
        )
    assert 0 < largest.size < heads * length * length


def test_a_block_runs_twice_and_the_last_one_and_the_head_once():
    model = tiny("gpt2", layers=3)
    runs = []
    inner = [block.ln_1 for block in model.transformer.h]
    for module in [*inner, model.lm_head]:
        module.register_forward_hook(lambda module, *_: runs.append(module))
    AttnLRPx(model, checkpointing=True).attribute(token_ids(), target=TARGET)
    # The backward pass begins in the last block, which is still there.
    assert [runs.count(module) for module in inner] == [2, 2, 1]
    assert runs.count(model.lm_head) == 1


def test_a_block_does_not_run_on_for_what_nothing_asks_for():
    model, runs = tiny("llama", attn="sdpa", layers=3), []
    for block in model.model.layers:
        block.register_forward_hook(lambda *_: runs.append("block"))
        block.mlp.down_proj.register_forward_hook(lambda *_: runs.append("down"))
        block.mlp.up_proj.register_forward_hook(lambda *_: runs.append("up"))
    AttnLRPx(model, checkpointing=True).attribute(token_ids(), target=TARGET)
    assert [runs.count(name) for name in ("up", "down", "block")] == [5, 3, 3]


# The model is left alone --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "kind"), [("CAUSAL_LM", "gemma2"), ("SEQ_TO_SEQ_CAUSAL_LM", "t5")]
)
def test_the_forward_pass_is_unchanged_and_nothing_is_left_behind(mapping, kind):
    question, seen = asked(kind, mapping), []

    def forward(*inputs):
        seen.append(question.logits(*inputs))
        return seen[-1]

    before = snapshot(question.model)
    attribution = LRPx(forward, question.model, checkpointing=True)
    for _ in range(2):
        attribution.attribute(question.inputs, target=question.target)
    assert all(torch.equal(each, plain_logits(question)) for each in seen)
    assert snapshot(question.model) == before


class Interrupts:
    """A hook that raises at its n-th call."""

    def __init__(self, error, at):
        self.error, self.left = error, at

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("at", [1, 2, 4, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("of the model's own")])
def test_an_error_in_either_run_of_a_block_leaves_nothing_behind(error, at):
    model = tiny("llama", attn="sdpa", layers=3)
    attribution = AttnLRPx(model, checkpointing=True)
    expected, before = attribution.attribute(token_ids(), target=TARGET), snapshot(model)
    random = torch.get_rng_state()
    hooks = [
        block.mlp.register_forward_pre_hook(hook)
        for hook in [Interrupts(error, at)]
        for block in model.model.layers
    ]
    with pytest.raises(type(error)):
        attribution.attribute(token_ids(), target=TARGET)
    for hook in hooks:
        hook.remove()
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(attribution.attribute(token_ids(), target=TARGET), expected)


def test_a_wrong_target_leaves_nothing_behind():
    model = tiny("llama", attn="sdpa", layers=3)
    before = snapshot(model)
    with pytest.raises(IndexError):
        LRPx(model, checkpointing=True).attribute(token_ids(), target=(-1, 10**6))
    assert snapshot(model) == before


def test_nothing_is_kept_when_it_is_over(monkeypatch):
    runs = []
    plain = module_of_blocks.Repetition.__init__

    def made(self, *args):
        runs.append(weakref.ref(self))
        plain(self, *args)

    monkeypatch.setattr(module_of_blocks.Repetition, "__init__", made)
    AttnLRPx(PLAIN["written out"].module(), checkpointing=True).attribute(
        PLAIN["written out"].batch(), target=TARGET
    )
    gc.collect()
    assert runs
    assert not any(run() for run in runs)


def test_a_watch_sees_each_block_once(monkeypatch):
    watches, plain = [], TracedPass.attach

    def attach(rules, *outputs, **options):
        plain(rules, *outputs, **options)
        watches.append(rules.watch)

    monkeypatch.setattr(TracedPass, "attach", attach)
    for checkpointing in (False, True):
        model = PLAIN["written out"].module()
        attribution = LRPx(model, checkpointing=checkpointing)
        attribution.attribute(PLAIN["written out"].batch(), target=TARGET)
    without, with_them = watches
    assert len(with_them.calls) == len(without.calls)
    assert len(with_them.entered) == len(without.entered) == 1
    assert len(with_them.outputs) == len(without.outputs)


def test_what_one_value_does_not_need_of_a_block_and_another_does():
    """The gate of a product is constant for what the product gives, and can be explained itself."""

    def function(x, y):
        gate = F.gelu(y)
        return gate * x, gate

    class Gated(Stack):
        def forward(self, x):
            gates = []
            for block in self.blocks:
                x, gate = block(x)
                gates.append(gate)
            return x.sum(1)[:, 3], gates[0].sum(1)[:, 3]

    model, found = Gated(function), {}
    for checkpointing in (False, True):
        inputs = vectors().requires_grad_()
        traced = TracedPass(model, LRP, "gates", fast=checkpointing, checkpointing=checkpointing)
        with opened(traced) as rules:
            for value in model(inputs):
                rules.attach(value)
                (slope,) = torch.autograd.grad(value.sum(), inputs, retain_graph=True)
                found.setdefault(checkpointing, []).append(slope)
    assert not torch.equal(*found[True])
    assert all(map(torch.equal, found[True], found[False]))


@pytest.mark.parametrize("dropout", ["resid_pdrop", "attn_pdrop"])
def test_dropout_is_the_same_in_both_runs_of_a_block(dropout):
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) | {dropout: 0.5}
    model = tiny("gpt2", attn="eager", layers=3, **rates).train()
    found, after = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        attribution = AttnLRPx(model, checkpointing=checkpointing)
        with pytest.warns(UserWarning, match="training mode"):
            found.append(attribution.attribute(token_ids(), target=TARGET))
        after.append(torch.rand(3))
    assert torch.equal(*found)
    assert torch.equal(*after)


def test_checkpointing_of_the_models_own():
    model = tiny("llama", attn="sdpa", layers=3)
    expected = LRPx(model).attribute(token_ids(), target=TARGET)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    saving = LRPx(model, checkpointing=True)
    assert torch.equal(saving.attribute(token_ids(), target=TARGET), expected)
    before = snapshot(model.train())
    for checkpointing in (True, False):
        again = LRPx(model, checkpointing=checkpointing).attribute(token_ids(), target=TARGET)
        assert torch.equal(again, expected)
    assert snapshot(model) == before


def test_offloaded_weights():
    accelerate = pytest.importorskip("accelerate")
    model = tiny("llama", attn="sdpa", layers=3)
    expected = AttnLRPx(model, fast=False).attribute(token_ids(), target=TARGET)
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=False)
    before = [each.device.type for each in model.parameters()]
    found = AttnLRPx(model, fast=False, checkpointing=True).attribute(token_ids(), target=TARGET)
    assert torch.equal(found, expected)
    assert [each.device.type for each in model.parameters()] == before
    assert "meta" in before


# Several at once ----------------------------------------------------------------------------------


def test_threads_do_not_see_each_others_blocks():
    model = tiny("llama", attn="sdpa", layers=4)
    inputs = [(method, token_ids(seed=seed)) for seed in range(3) for method in METHODS]
    expected = [method(model).attribute(ids, target=TARGET) for method, ids in inputs]
    found = [None] * len(inputs)

    def explain(place):
        method, ids = inputs[place]
        attribution = method(model, checkpointing=place % 3 != 2)
        for _ in range(3):
            found[place] = attribution.attribute(ids, target=TARGET)

    before = snapshot(model)
    threads = [threading.Thread(target=explain, args=[place]) for place in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, found, expected))
    assert snapshot(model) == before


def test_an_explanation_inside_of_another():
    model, inner = tiny("llama", attn="sdpa", layers=3), []
    plain = LRPx(model).attribute(token_ids(seed=1), target=TARGET)
    expected = AttnLRPx(model).attribute(token_ids(), target=TARGET)

    def forward(ids):
        within = LRPx(model, checkpointing=True)
        inner.append(within.attribute(token_ids(seed=1), target=TARGET))
        return model(ids).logits

    found = AttnLRPx(forward, model, checkpointing=True).attribute(token_ids(), target=TARGET)
    assert torch.equal(found, expected)
    assert torch.equal(inner[0], plain)


# What blocks do -----------------------------------------------------------------------------------


class Stack(nn.Module):
    """Blocks of a function of a vector and of their number."""

    def __init__(self, function):
        super().__init__()
        self.blocks = nn.ModuleList(Block(function) for _ in range(3))
        randomize(self.double(), zero_biases=False)

    def forward(self, x, *others):
        for block in self.blocks:
            x = block(x, *others)
        return x.sum(1)


class Block(nn.Module):
    """A layer and a function of what it gives."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(WIDTH, WIDTH), function

    def forward(self, x, *others):
        return self.function(x, self.layer(x), *others)


def vectors():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, LENGTH, WIDTH, generator=generator, dtype=torch.float64)


def into_its_input(x, y):
    gate = torch.sigmoid(x)
    x += F.gelu(y)
    return x * gate


def test_a_block_that_writes_into_its_input():
    require_equal(LRPx, Stack(into_its_input), vectors(), 3)


def test_an_operation_without_a_rule_is_named():
    model = Stack(lambda x, y: x * y)
    messages = []
    for checkpointing in (False, True):
        with pytest.raises(ValueError, match="without a rule") as refused:
            LRPx(model, checkpointing=checkpointing).attribute(vectors(), target=3)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]
    assert "Tensor.mul in 'blocks.*' (Block) (in 3 blocks)" in messages[1]


def test_what_depends_on_two_blocks_is_decided_in_the_whole_graph():
    """A gate that was made in the block before: nothing inside of a block tells what it is."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block(self.gated) for _ in range(3))
            randomize(self.double(), zero_biases=False)

        def gated(self, x, y, gate):
            return F.gelu(y) * gate, torch.sigmoid(x)

        def forward(self, x):
            gate = torch.sigmoid(x)
            for block in self.blocks:
                x, gate = block(x, gate)
            return x.sum(1)

    for method in METHODS:
        require_equal(method, Gated(), vectors(), 3)


def test_a_block_that_is_not_the_same_again():
    calls = []

    def function(_x, y):
        calls.append(1)
        return F.gelu(y) if len(calls) <= 3 else F.gelu(y[:, :1])

    with pytest.raises(RuntimeError, match=r"Block computes something else .* `checkpointing` out"):
        LRPx(Stack(function), checkpointing=True).attribute(vectors(), target=3)


def test_something_that_is_written_over_after_a_block_has_read_it():
    scale = torch.ones(WIDTH, dtype=torch.float64)

    def function(_x, y, scale):
        found = y + scale
        scale += 1
        return F.gelu(found)

    attribution = LRPx(Stack(function), checkpointing=True)
    with pytest.raises(RuntimeError, match=r"Block .* has been written over.*`checkpointing`"):
        attribution.attribute(vectors(), target=3, additional_forward_args=scale)


def test_gradients_inside_of_a_block():
    def function(_x, y):
        (slope,) = torch.autograd.grad(F.gelu(y).sum(), y, retain_graph=True)
        return y * slope.detach()

    with pytest.raises(RuntimeError, match="takes gradients of its own"):
        LRPx(Stack(function), checkpointing=True, strict=False).attribute(vectors(), target=3)


# Refusals -----------------------------------------------------------------------------------------


def test_a_module_without_blocks_is_refused():
    for model in (nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))):
        with pytest.raises(ValueError, match=r"has no blocks .*leave `checkpointing` out"):
            LRPx(model, checkpointing=True)


def test_experts_are_no_blocks():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(Block(None) for _ in range(4))

    trunk = nn.ModuleList(Mixture() for _ in range(2))
    model = nn.ModuleDict({"trunk": trunk, "head": nn.Linear(2, 2)})
    assert blocks_of(model) == [list(trunk)]


def test_blocks_of_classes_that_take_turns():
    class Other(Block):
        pass

    alike, other = (nn.Sequential(*(Block(None) for _ in range(2))), Other(None))
    mixed = nn.ModuleList([Block(None), other, Block(None)])
    model = nn.ModuleDict({"first": alike, "second": mixed, "no": nn.ModuleList([nn.Linear(2, 2)])})
    assert blocks_of(model) == [list(alike), list(mixed)]
