"""The first explanation of a model is like any later one, whatever it is asked for."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, StaticCache

from captum_lrpx import (
    ALTILogit,
    AttnLRPx,
    LayerAttnLRPx,
    LRPx,
    NeuronAttnLRPx,
    TokenLogits,
    ledger,
)
from captum_lrpx.recipes import NAMED_RECIPES

TARGET = 5
METHODS = {
    "LRPx": lambda f, m, ids, args: LRPx(f, m).attribute(ids, TARGET, args),
    "AttnLRPx": lambda f, m, ids, args: AttnLRPx(f, m).attribute(ids, TARGET, args),
    "targets": lambda f, m, ids, args: AttnLRPx(f, m).attribute_targets(ids, [TARGET], args)[0],
    "embeddings": lambda f, m, ids, args: (
        AttnLRPx(f, m).attribute(m.get_input_embeddings()(ids).detach(), TARGET, args).sum(-1)
    ),
    "layer": lambda f, m, ids, args: (
        LayerAttnLRPx(f, m.get_input_embeddings(), model=m).attribute(ids, TARGET, args).sum(-1)
    ),
    "neuron": lambda f, m, ids, args: NeuronAttnLRPx(f, m.lm_head, model=m).attribute(
        ids, (-1, TARGET), args
    ),
    "ledger": lambda f, m, ids, args: ledger(AttnLRPx(f, m), ids, TARGET, args).attributions,
}
methods = pytest.mark.parametrize("method", METHODS)

# Caches of keys and values ---------------------------------------------------------------------

PREFIX, LAST = token_ids(1)[:, :-1], token_ids(1)[:, -1:]


def run(model, new, **others):
    name = "inputs_embeds" if new.is_floating_point() else "input_ids"
    return model(**{name: new}, **others).logits[:, -1]


def filled(model, kind="dynamic"):
    if kind == "dynamic":
        cache = DynamicCache(config=model.config)
    else:
        cache = StaticCache(config=model.config, max_cache_len=8)
    with torch.no_grad():
        model(PREFIX, past_key_values=cache, use_cache=True)
    return cache


def as_argument(model, kind):
    return lambda new, past: run(model, new, past_key_values=past), (filled(model, kind),)


def in_a_dictionary(model, kind):
    others = {"past_key_values": filled(model, kind), "use_cache": True}
    return lambda new, given: run(model, new, **given), (others,)


def in_a_closure(model, kind):
    past = filled(model, kind)
    return lambda new: run(model, new, past_key_values=past), ()


def in_a_module(model, kind):
    class Continued(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.past = model, filled(model, kind)

        def forward(self, new):
            return run(self.model, new, past_key_values=self.past)

    return Continued(), ()


@pytest.mark.filterwarnings("ignore:A cache of keys and values")
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("place", [as_argument, in_a_dictionary, in_a_closure, in_a_module])
@methods
def test_a_cache_grows_once_in_each_explanation(method, place, kind):
    model = tiny("llama", attn="sdpa")
    whole = METHODS[method](lambda x: run(model, x), model, token_ids(1), None)[0, -1]
    for _ in range(2):
        forward, args = place(model, kind)
        found = METHODS[method](forward, model, LAST, args or None)
        torch.testing.assert_close(found[0, -1], whole)


@methods
@pytest.mark.parametrize("place", [as_argument, in_a_dictionary, in_a_closure])
def test_a_cache_comes_with_one_warning(method, place):
    model = tiny("llama")
    forward, args = place(model, "dynamic")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        METHODS[method](forward, model, LAST, args or None)
    (warning,) = [each for each in caught if "cache of keys and values" in str(each.message)]
    assert warning.filename == __file__
    empty = DynamicCache(config=model.config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        METHODS[method](lambda x, p: run(model, x, past_key_values=p), model, LAST, (empty,))


def test_the_table_of_operations_leaves_a_cache_as_it_was():
    model = tiny("llama")
    forward, (cache,) = as_argument(model, "dynamic")
    assert AttnLRPx(forward, model).coverage(LAST, (cache,)).complete
    assert cache.get_seq_length() == PREFIX.shape[1]


# Functions with a state ------------------------------------------------------------------------


class Counted(nn.Module):
    """A module that looks at how often it has run."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        return run(self.model, x) * self.runs


@methods
def test_a_function_runs_once_in_each_explanation(method):
    model = tiny("llama")
    counted = Counted(model)
    first = METHODS[method](counted, model, token_ids(), None)
    assert counted.runs == 1
    second = METHODS[method](counted, model, token_ids(), None)
    assert counted.runs == 2
    if method != "neuron":
        torch.testing.assert_close(second, 2 * first)


def test_so_does_alti_logit():
    counted = Counted(tiny("llama"))
    first = ALTILogit(counted, counted.model).attribute(token_ids(), TARGET)
    second = ALTILogit(counted, counted.model).attribute(token_ids(), TARGET)
    assert counted.runs == 2
    torch.testing.assert_close(second, 2 * first)


def test_so_does_one_that_is_refused():
    counted = Counted(tiny("gpt2"))
    mlp = counted.model.transformer.h[0].mlp
    mlp.forward = lambda x: mlp.c_proj(torch.lgamma(mlp.c_fc(x)))
    for runs in (1, 2):
        with pytest.raises(ValueError, match="lgamma"):
            AttnLRPx(counted).attribute(token_ids(), TARGET)
        assert counted.runs == runs


def test_buffers_are_as_before_the_table_of_operations():
    counted = Counted(tiny("llama"))
    assert AttnLRPx(counted).coverage(token_ids()).complete
    assert counted.runs == 0


# Options ---------------------------------------------------------------------------------------

CALLS = {
    "plain": lambda m: AttnLRPx(m).attribute(token_ids(), (-1, TARGET)),
    "positions": lambda m: AttnLRPx(TokenLogits(m)).attribute(token_ids(), TARGET),
    "lrp": lambda m: LRPx(TokenLogits(m)).attribute(token_ids(), TARGET),
    "checkpointing": lambda m: AttnLRPx(TokenLogits(m), checkpointing=True).attribute(
        token_ids(), TARGET
    ),
    "checkpointing of lrp": lambda m: LRPx(TokenLogits(m), checkpointing=True).attribute(
        token_ids(), TARGET
    ),
    "checkpointed targets": lambda m: AttnLRPx(
        TokenLogits(m), checkpointing=True
    ).attribute_targets(token_ids(), [TARGET, 7]),
    "not strict": lambda m: AttnLRPx(m, strict=False).attribute(token_ids(), (-1, TARGET)),
    "delta": lambda m: AttnLRPx(TokenLogits(m)).attribute(
        token_ids(), TARGET, return_convergence_delta=True
    )[1],
    "targets": lambda m: AttnLRPx(TokenLogits(m)).attribute_targets(token_ids(), [TARGET, 7]),
    "layer": lambda m: LayerAttnLRPx(m, m.get_input_embeddings()).attribute(
        token_ids(), (-1, TARGET)
    ),
    "neuron": lambda m: NeuronAttnLRPx(m, m.get_input_embeddings()).attribute(token_ids(), (-1, 3)),
    "alti-logit": lambda m: ALTILogit(TokenLogits(m)).attribute(token_ids(), TARGET),
    "ledger": lambda m: ledger(AttnLRPx(TokenLogits(m)), token_ids(), TARGET).attributions,
} | {
    f"recipe {name}": lambda m, recipe=recipe: LRPx(TokenLogits(m), recipe=recipe).attribute(
        token_ids(), TARGET
    )
    for name, recipe in NAMED_RECIPES.items()
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_option_gives_in_the_first_call_what_it_gives_later(family, call):
    model = tiny(family, attn="sdpa", layers=3)
    first = CALLS[call](model)
    for _ in range(2):
        assert torch.equal(CALLS[call](model), first)
    assert first.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES | MORE_FAMILIES)
def test_checkpointing_first_is_checkpointing_later(family):
    model = tiny(family, attn="sdpa", layers=3)
    inputs, position = token_ids(), 2
    first = AttnLRPx(TokenLogits(model), checkpointing=True).attribute(
        inputs, TARGET, (None, position)
    )
    later = AttnLRPx(TokenLogits(model)).attribute(inputs, TARGET, (None, position))
    assert torch.equal(first, later)


def test_a_checkpoint_of_the_users_own_around_the_model():
    """It works where no rule reads what is computed again, and is refused by name elsewhere."""
    model = tiny("llama", attn="sdpa")

    def forward(embeds):
        return checkpoint(lambda x: run(model, x), embeds, use_reentrant=False)

    embeds = model.get_input_embeddings()(token_ids()).detach()
    plain = LRPx(lambda x: run(model, x), model).attribute(embeds, TARGET)
    for _ in range(2):
        torch.testing.assert_close(LRPx(forward, model).attribute(embeds, TARGET), plain)
        with pytest.raises(ValueError, match=r"silu in .* inside of torch\.utils\.checkpoint"):
            AttnLRPx(forward, model).attribute(embeds, TARGET)


def test_in_a_fresh_process():
    """Nothing else has run there: no other test, no other model."""
    program = """
import torch
from captum_lrpx import AttnLRPx, TokenLogits, zoo
model, tokenizer = zoo.load("sva-llama")
ids = tokenizer("the keys to the cabinet", return_tensors="pt").input_ids
first = AttnLRPx(TokenLogits(model), checkpointing=True).attribute(ids, target=5)
assert torch.equal(AttnLRPx(TokenLogits(model), checkpointing=True).attribute(ids, target=5), first)
assert torch.equal(AttnLRPx(TokenLogits(model)).attribute(ids, target=5), first)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
