"""What a call has made is freed when it returns, without waiting for Python's garbage collector.

Tensors in a cycle of references stay until the collector runs, which it does by counting objects,
not by their size: some calls on long inputs would fill the memory.
"""

import gc

import pytest
import torch
from models import tiny, token_ids

from captum_lrpx import (
    ActivationPatching,
    ALTILogit,
    AttentionRollout,
    AttnLRPx,
    InformationFlow,
    LayerLRPx,
    LLMRelevance,
    LRPx,
    NeuronLRPx,
    RelevancePatching,
    TokenLogits,
    explain,
    ledger,
    zoo,
)

IDS = token_ids(2)
QUESTION = {"additional_forward_args": (None, 3), "target": 4}


def block_of(model):
    return model.model.layers[0]


def patched(kind):
    def call(model):
        layers = [each.self_attn.o_proj for each in model.model.layers]
        return kind(TokenLogits(model), layers).attribute(IDS, IDS.flip(1), by="head", **QUESTION)

    return call


CALLS = {
    "LRPx": lambda model: LRPx(TokenLogits(model)).attribute(IDS, **QUESTION),
    "AttnLRPx": lambda model: AttnLRPx(TokenLogits(model)).attribute(IDS, **QUESTION),
    "checkpointing": lambda model: LRPx(TokenLogits(model), checkpointing=True).attribute(
        IDS, **QUESTION
    ),
    "slow": lambda model: AttnLRPx(TokenLogits(model), fast=False).attribute(IDS, **QUESTION),
    "several targets": lambda model: LRPx(TokenLogits(model)).attribute_targets(IDS, [1, 2]),
    "ALTILogit": lambda model: ALTILogit(TokenLogits(model)).attribute(IDS, **QUESTION),
    "ALTILogit, targets": lambda model: ALTILogit(TokenLogits(model)).attribute_targets(
        IDS, [1, 2]
    ),
    "decompose": lambda model: ALTILogit(TokenLogits(model)).decompose(IDS, **QUESTION),
    "coverage": lambda model: LRPx(TokenLogits(model)).coverage(IDS),
    "ledger": lambda model: ledger(AttnLRPx(TokenLogits(model)), IDS, **QUESTION),
    "ledger of ALTILogit": lambda model: ledger(ALTILogit(TokenLogits(model)), IDS, **QUESTION),
    "layer": lambda model: LayerLRPx(TokenLogits(model), block_of(model)).attribute(
        IDS, **QUESTION
    ),
    "neuron": lambda model: NeuronLRPx(TokenLogits(model), block_of(model)).attribute(IDS, (2, 3)),
    "rollout": lambda model: AttentionRollout(TokenLogits(model)).attribute(IDS, **QUESTION),
    "flow": lambda model: InformationFlow(TokenLogits(model)).attribute(IDS, **QUESTION),
    "relevance patching": patched(RelevancePatching),
    "activation patching": patched(ActivationPatching),
}


def left_behind(call):
    """The tensors that only the collector would free after a call, once it is warm."""
    for _ in range(2):
        call()
    gc.collect()
    gc.disable()
    try:
        call()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [each.shape for each in gc.garbage if isinstance(each, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_collector(name):
    model = tiny("llama")
    assert left_behind(lambda: CALLS[name](model)) == []


@pytest.mark.parametrize("method", ["lrpx", "attnlrpx", "altilogit"])
@pytest.mark.parametrize("certify", [True, "full"])
def test_nor_of_an_explanation(method, certify):
    model, tokenizer = zoo.load("sva-gpt2")
    text = "the keys to the cabinet"
    call = lambda: explain(model, tokenizer, text, "are", method=method, certify=certify)  # noqa: E731
    assert left_behind(call) == []


@pytest.mark.parametrize("kind", [LRPx, ALTILogit])
def test_nor_of_a_continuation(kind):
    model, tokenizer = zoo.load("sva-llama")
    llm = LLMRelevance(kind(model), tokenizer, "logit")
    call = lambda: llm.attribute("the keys to the cabinet", target="are old .")  # noqa: E731
    assert left_behind(call) == []
