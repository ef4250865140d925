"""Checkpointed blocks: the same relevances, bit for bit, from less memory."""

import threading

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from state import snapshot
from torch.autograd.graph import saved_tensors_hooks

from captum_lrpx import ATTN_LRP, LRP, AttnLRPx, LLMRelevance, LRPx, TokenLogits, propagation
from captum_lrpx.propagation import sites_of

ALL = [*FAMILIES, *MORE_FAMILIES]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ALL)
def test_relevances_are_equal_bit_by_bit(family, method, attn):
    forward = TokenLogits(tiny(family, attn=attn))
    arguments = {"target": 5, "additional_forward_args": (None, 3)}
    plain = method(forward).attribute(token_ids(), **arguments)
    saving = method(forward, checkpointing=True).attribute(token_ids(), **arguments)
    assert torch.equal(saving, plain)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_many_targets_from_checkpointed_blocks(family):
    forward, arguments = TokenLogits(tiny(family, attn="sdpa")), (None, 3)
    plain = AttnLRPx(forward).attribute_targets(token_ids(), [4, 5, 6], arguments)
    saving = AttnLRPx(forward, checkpointing=True)
    assert torch.equal(saving.attribute_targets(token_ids(), [4, 5, 6], arguments), plain)


def saved_bytes(attribution, ids):
    """Bytes of different tensors that the graph keeps, parameters aside."""
    kept = {}
    weights = {parameter.data_ptr() for parameter in attribution.model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with attribution.rules(), saved_tensors_hooks(keep, lambda tensor: tensor):
        embeds = attribution.model.get_input_embeddings()(ids).detach().requires_grad_()
        output = attribution.forward_func(embeds)  # kept alive: so are its saved tensors
        size = sum(kept.values())
    return size, output


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_what_the_graph_keeps_does_not_grow_with_what_a_block_computes(method):
    forward = TokenLogits(tiny("gpt2", layers=8, intermediate=400, attn="sdpa"))
    plain, _ = saved_bytes(method(forward), token_ids(length=20))
    saving, _ = saved_bytes(method(forward, checkpointing=True), token_ids(length=20))
    assert saving < 0.25 * plain  # the last of the eight blocks, and the inputs of the others


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP])
def test_the_backward_pass_of_an_outer_propagation_has_the_outer_rules(recipe):
    """Recomputed inside of another propagation on the same model."""
    model = tiny("gpt2", attn="sdpa")
    other = LRP if recipe is ATTN_LRP else ATTN_LRP
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()

    def gradient(*, checkpointing):
        with propagation(model, recipe, checkpointing=checkpointing):
            logit = model(inputs_embeds=embeds).logits[:, -1, 5].sum()
            with propagation(model, other):
                (found,) = torch.autograd.grad(logit, embeds)
        return found

    assert torch.equal(gradient(checkpointing=True), gradient(checkpointing=False))


def test_a_backward_pass_in_another_thread_has_the_rules_too():
    """As autograd's own threads, in which accelerators run it."""
    model = tiny("gpt2", attn="sdpa")
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    found = []
    with propagation(model, ATTN_LRP):
        logit = model(inputs_embeds=embeds).logits[:, -1, 5].sum()
        (expected,) = torch.autograd.grad(logit, embeds)
    with propagation(model, ATTN_LRP, checkpointing=True):
        logit = model(inputs_embeds=embeds).logits[:, -1, 5].sum()
        thread = threading.Thread(target=lambda: found.extend(torch.autograd.grad(logit, embeds)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


def test_the_forward_pass_is_unchanged_and_nothing_is_left_behind():
    model = tiny("llama", attn="sdpa", layers=3)
    before, plain = snapshot(model), model(token_ids()).logits
    with propagation(model, checkpointing=True):
        embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
        assert torch.equal(model(inputs_embeds=embeds).logits, plain)
    with pytest.raises(IndexError):
        LRPx(model, checkpointing=True).attribute(token_ids(), target=(-1, 10**6))
    assert snapshot(model) == before


def test_dropout_is_the_same_in_both_runs_of_a_block():
    model = tiny("gpt2", attn="sdpa", resid_pdrop=0.5, embd_pdrop=0.0, attn_pdrop=0.0).train()
    relevances = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        attribution = LRPx(TokenLogits(model), checkpointing=checkpointing)
        with pytest.warns(UserWarning, match="training mode"):
            relevances.append(attribution.attribute(token_ids(), target=5))
    assert torch.equal(*relevances)


def test_what_is_in_a_block_runs_twice_and_the_last_block_and_the_head_once():
    model = tiny("gpt2", layers=3)
    runs = []
    inner = [block.attention_norm.module for block in sites_of(model).blocks]
    for module in [*inner, model.lm_head]:
        module.register_forward_hook(lambda module, *_: runs.append(module))
    method = AttnLRPx(model, checkpointing=True)
    method.attribute(token_ids(), target=(-1, 5))  # traces the model
    runs.clear()
    method.attribute(token_ids(), target=(-1, 5))
    # The backward pass begins in the last block, which is still there.
    assert [runs.count(module) for module in inner] == [2, 2, 1]
    assert runs.count(model.lm_head) == 1


def test_a_continuation_from_checkpointed_blocks():
    from captum_lrpx import zoo

    model, tokenizer = zoo.load("sva-gpt2")
    plain, saving = (
        LLMRelevance(AttnLRPx(model, checkpointing=checkpointing), tokenizer).attribute(
            "the keys to the cabinet", target="are old"
        )
        for checkpointing in (False, True)
    )
    assert torch.equal(saving.context_attr, plain.context_attr)


def test_several_targets_at_all_positions():
    model, ids = tiny("gpt2"), token_ids()
    targets = [(-1, 3), (-2, 4)]
    plain = LRPx(model).attribute_targets(ids, targets)
    again = LRPx(model, checkpointing=True).attribute_targets(ids, targets)
    torch.testing.assert_close(again, plain)
