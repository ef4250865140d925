"""Logits at some positions only: where a head is a chain of modules, and nobody looks."""

from __future__ import annotations

import copy

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM

from captum_lrpx import LRP, LRPx, TokenLogits, propagation
from captum_lrpx.targets.chain import chain_to_logits


def head_of(model):
    return model.get_output_embeddings()


def logits(model):
    return TokenLogits(model)(token_ids(), None, 2)


def check(model, *, chain):
    """Whether there is one, and that logits are the model's own in either case."""
    assert bool(chain_to_logits(model)) is chain
    torch.testing.assert_close(logits(model), model(token_ids()).logits[:, 2])


@pytest.mark.parametrize("family", FAMILIES | MORE_FAMILIES)
def test_the_head_of_each_family_is_a_chain(family):
    model = tiny(family)
    chain = chain_to_logits(model)
    assert head_of(model) in chain[-1].modules()
    assert chain_to_logits(model) is chain
    check(model, chain=True)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "opt"])
def test_who_looks_sees_what_the_model_computes(family):
    model = tiny(family)
    seen = []
    head_of(model).register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape))
    check(model, chain=False)
    assert {shape[:2] for shape in seen} == {token_ids().shape}


HIDDEN = {
    "a hook on the output layer": lambda model: head_of(model).register_forward_pre_hook(
        lambda _module, args: (2 * args[0],)
    ),
    "a hook inside of the head": lambda model: (
        model.cls.predictions.transform.dense.register_forward_hook(
            lambda _module, _args, output: output.tanh()
        )
    ),
    "another forward of the output layer": lambda model: setattr(
        head_of(model), "forward", lambda x: nn.functional.linear(x, head_of(model).weight) * 3
    ),
    "a module around the head": lambda model: setattr(model, "cls", nn.Sequential(model.cls)),
}


@pytest.mark.parametrize("change", HIDDEN)
def test_a_change_of_the_head_is_noticed_after_it_was_known(change):
    model = tiny("bert")
    before = logits(model)
    HIDDEN[change](model)
    torch.testing.assert_close(logits(model), model(token_ids()).logits[:, 2])
    assert (change == "a module around the head") == torch.allclose(logits(model), before)


def granite(scaling):
    config = GraniteConfig(
        vocab_size=19,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        logits_scaling=scaling,
        pad_token_id=0,
    )
    return GraniteForCausalLM(config).eval()


def test_a_number_that_changes_nothing_may_do_so_later():
    model = granite(1.0)
    check(model, chain=True)
    model.config.logits_scaling = 5.0
    check(model, chain=False)
    check(granite(5.0), chain=False)


def test_so_may_a_parameter_that_is_loaded():
    class Biased(nn.Module):
        """A head that adds something after its last module."""

        def __init__(self, decoder):
            super().__init__()
            self.decoder = decoder
            self.weight = decoder.weight
            self.offset = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, states):
            return self.decoder(states) + self.offset

    model = tiny("distilbert")
    model.vocab_projector = Biased(model.vocab_projector)
    check(model, chain=True)
    with torch.no_grad():
        model.vocab_projector.offset.fill_(2.0)
    check(model, chain=True)


def test_a_parameter_of_the_model_itself_may_be_used_anywhere():
    model = tiny("gpt2")
    model.scale = nn.Parameter(torch.ones(()))
    check(model, chain=False)


def test_an_adapter_is_one_step_whether_it_is_on_or_off():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        tiny("llama"), peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=True)
    ).double()
    model = adapted.get_base_model().eval()
    check(model, chain=True)
    with adapted.disable_adapter():
        check(model, chain=True)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3
    check(model, chain=True)
    adapted.merge_adapter()
    check(model, chain=True)
    adapted.unmerge_adapter()
    check(model, chain=True)
    assert chain_to_logits(model)[-1] is model.lm_head


def test_in_training_mode_the_whole_model_runs():
    check(tiny("llama").train(), chain=False)


def test_rules_that_are_attached_are_no_onlookers():
    model = tiny("llama")
    expected = LRPx(TokenLogits(model)).attribute(token_ids(), 7)
    fresh = copy.deepcopy(model)
    with propagation(fresh, LRP):
        assert chain_to_logits(fresh)
        embeds = fresh.get_input_embeddings()(token_ids()).detach().requires_grad_()
        value = TokenLogits(fresh)(embeds)[:, 7].sum()
        (gradient,) = torch.autograd.grad(value, embeds)
    torch.testing.assert_close((embeds * gradient).sum(-1), expected)
