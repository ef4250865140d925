"""The value that is explained is the value of the object that was given, whatever is around."""

from __future__ import annotations

import copy

import pytest
import torch
from models import tiny, token_ids
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM

from captum_lrpx import (
    AnswerLogits,
    AttnLRPx,
    ClassLogits,
    LLMRelevance,
    LogitDifference,
    LRPx,
    Target,
    TokenLogits,
    TokenSum,
    explain,
    ledger,
)
from captum_lrpx.targets import ask_batch
from captum_lrpx.wrappers import unwrapped

TEXT = "the keys to the cabinet"
ARE = 5


class Around(nn.Module):
    """A module around a model, as anybody writes one."""

    def __init__(self, model):
        super().__init__()
        self.inner = model


class ReturnsOutput(Around):
    def forward(self, input_ids=None, **others):
        output = self.inner(input_ids, **others)
        output.logits = 2 * output.logits + 0.7
        return output


class ReturnsTensor(Around):
    def forward(self, ids):
        return 2 * self.inner(ids).logits + 0.7


class TakesAnything(Around):
    def forward(self, *args, **others):
        return self.inner(*args, **others).logits.tanh()


class ReturnsMapping(Around):
    def forward(self, input_ids, attention_mask=None):
        return {"logits": -self.inner(input_ids, attention_mask).logits}


class OnlyForwards(Around):
    def forward(self, *args, **others):
        return self.inner(*args, **others)


def with_hook(model):
    model.register_forward_hook(lambda _module, _args, output: output.logits * 3)
    return model


def with_own_forward(model):
    own = model.forward
    model.forward = lambda *args, **others: -own(*args, **others).logits
    return model


def of_a_subclass(model):
    class Scaled(type(model)):
        def forward(self, *args, **others):
            output = super().forward(*args, **others)
            output.logits = output.logits / 4
            return output

    model.__class__ = Scaled
    return model


WRAPPERS = [
    ReturnsOutput,
    ReturnsTensor,
    TakesAnything,
    ReturnsMapping,
    OnlyForwards,
    with_hook,
    with_own_forward,
    of_a_subclass,
]


def logits_of(wrapped, ids):
    output = wrapped(ids)
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_logits_are_those_of_the_module_around_the_model(wrap):
    wrapped = wrap(tiny("llama"))
    own = logits_of(wrapped, token_ids())[:, -1]
    torch.testing.assert_close(TokenLogits(wrapped)(token_ids()), own)
    difference = LogitDifference(wrapped)(token_ids(), None, ARE, 7)
    torch.testing.assert_close(difference, own[:, ARE] - own[:, 7])
    torch.testing.assert_close(
        TokenSum(wrapped)(token_ids(), None, [ARE, 7]), own[:, [5, 7]].sum(1)
    )
    relevance, delta = AttnLRPx(TokenLogits(wrapped)).attribute(
        token_ids(), ARE, return_convergence_delta=True
    )
    torch.testing.assert_close(relevance.sum(1) + delta, own[:, ARE])
    direct = AttnLRPx(wrapped) if isinstance(wrapped(token_ids()), torch.Tensor) else None
    if direct is not None:
        torch.testing.assert_close(direct.attribute(token_ids(), (-1, ARE)), relevance)


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_explain_explains_the_module_around_the_model(wrap, loaded):
    model, tokenizer = loaded["sva-llama"]
    wrapped = wrap(copy.deepcopy(model))
    explanation = explain(wrapped, tokenizer, TEXT, "are")
    number = tokenizer.convert_tokens_to_ids("▁are")
    own = logits_of(wrapped, torch.tensor([explanation.ids]))[0, -1, number].item()
    assert explanation.value == pytest.approx(own, rel=1e-5)
    assert explanation.certificate.forward_unchanged
    assert explanation.certificate.holds, str(explanation.certificate)


def test_a_batch_of_texts_is_asked_of_the_module_around_the_model(loaded):
    model, tokenizer = loaded["sva-llama"]
    wrapped = ReturnsOutput(model)
    batch = ask_batch(wrapped, tokenizer, [TEXT, "the author"], ["are", Target("is")])
    values = batch.forward(batch.inputs, *batch.additional_forward_args)
    plain = ask_batch(model, tokenizer, [TEXT, "the author"], ["are", Target("is")])
    expected = 2 * plain.forward(plain.inputs, *plain.additional_forward_args) + 0.7
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_padded_batch(side, family):
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    mask = mask if side == "right" else mask.flip(1)
    model = tiny(family, dtype=torch.float32, attn="sdpa")
    wrapped = TokenLogits(ReturnsOutput(model))(token_ids(), mask)
    torch.testing.assert_close(wrapped, 2 * TokenLogits(model)(token_ids(), mask) + 0.7)


def test_classes_and_answers_of_the_module_around_the_model():
    model = tiny("bert", head="sequence")
    double = with_hook(copy.deepcopy(model))
    torch.testing.assert_close(
        ClassLogits(double)(token_ids()), 3 * ClassLogits(model)(token_ids())
    )
    answering = tiny("bert", head="qa")

    def swap(_module, _args, output):
        output.start_logits, output.end_logits = output.end_logits, output.start_logits
        return output

    swapped = copy.deepcopy(answering)
    swapped.register_forward_hook(swap)
    start, end = (
        AnswerLogits(each, side)(token_ids())
        for each, side in ((swapped, "start"), (answering, "end"))
    )
    torch.testing.assert_close(start, end)


def test_a_family_that_scales_its_logits_behind_its_head():
    config = GraniteConfig(
        vocab_size=19,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        logits_scaling=5.0,
        pad_token_id=0,
    )
    model = GraniteForCausalLM(config).eval()
    own = model(token_ids()).logits[:, -1]
    torch.testing.assert_close(TokenLogits(model)(token_ids()), own)
    assert not torch.allclose(model.lm_head(model.model(token_ids())[0][:, -1]), own)


# What is looked through -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: nn.DataParallel(model, device_ids=[]),
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.compile(nn.DataParallel(model, device_ids=[]), backend="eager"),
    ],
    ids=["data parallel", "compiled", "both"],
)
def test_wrappers_that_change_nothing_are_looked_through(wrap):
    model = tiny("llama")
    assert unwrapped(wrap(model)) is model


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_others_are_not(wrap):
    assert unwrapped(wrap(tiny("llama"))) is None
    assert unwrapped(nn.DataParallel(wrap(tiny("llama")), device_ids=[])) is None


# PEFT -----------------------------------------------------------------------------------------


def adapted(model, kind, **options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **options)
    found = peft.get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name or "ia3_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return found


VIRTUAL = {
    "PromptTuning": {"num_virtual_tokens": 3},
    "PrefixTuning": {"num_virtual_tokens": 3},
    "PromptEncoder": {"num_virtual_tokens": 2, "encoder_hidden_size": 8},
}


@pytest.mark.parametrize("kind", VIRTUAL)
def test_prompt_and_prefix_tuning_are_explained_whole(kind, loaded):
    model, tokenizer = loaded["sva-llama"]
    tuned = adapted(model, kind, **VIRTUAL[kind])
    explanation = explain(tuned, tokenizer, TEXT, "are")
    ids, number = torch.tensor([explanation.ids]), tokenizer.convert_tokens_to_ids("▁are")
    assert explanation.value == pytest.approx(tuned(ids).logits[0, -1, number].item(), rel=1e-5)
    assert explanation.value != pytest.approx(model(ids).logits[0, -1, number].item(), rel=1e-2)
    assert len(explanation.relevances) == len(explanation.tokens) == ids.shape[1]
    certificate = explanation.certificate
    assert certificate.forward_unchanged
    assert certificate.coverage_complete
    assert "virtual tokens" in certificate.ledger_missing
    direct = AttnLRPx(tuned).attribute(ids, (-1, number))
    torch.testing.assert_close(torch.tensor([explanation.relevances]).float(), direct)
    with pytest.raises(ValueError, match="virtual tokens"):
        ledger(LRPx(tuned), ids, (-1, number))


@pytest.mark.parametrize("position", [0, 2, -1])
def test_positions_are_those_of_the_given_tokens(position, loaded):
    tuned = adapted(loaded["sva-llama"][0], "PromptTuning", num_virtual_tokens=3)
    ids = torch.tensor([[4, 5, 6, 7]])
    own = tuned(ids).logits[:, -4:][:, position]
    torch.testing.assert_close(TokenLogits(tuned)(ids, None, position), own)


@pytest.mark.parametrize("options", [("LoRA", "Lora", {"r": 2}), ("IA3", "IA3", {})], ids=str)
def test_adapters_inside_of_layers_are_looked_through(options, loaded):
    model, tokenizer = loaded["sva-llama"]
    _, kind, others = options
    tuned = adapted(model, kind, **others)
    assert unwrapped(tuned) is tuned.get_base_model()
    explanation = explain(tuned, tokenizer, TEXT, "are")
    ids, number = torch.tensor([explanation.ids]), tokenizer.convert_tokens_to_ids("▁are")
    assert explanation.value == pytest.approx(tuned(ids).logits[0, -1, number].item(), rel=1e-5)
    assert explanation.certificate.holds


# What is refused ------------------------------------------------------------------------------


def test_a_continuation_of_a_module_that_computes_more_is_refused(loaded):
    model, tokenizer = loaded["sva-llama"]
    tuned = adapted(model, "PromptTuning", num_virtual_tokens=3)
    hooked = with_hook(copy.deepcopy(model))
    for given in (tuned, hooked):
        with pytest.raises(ValueError, match=r"module computes more.*TokenLogits"):
            LLMRelevance(AttnLRPx(given), tokenizer)


class Last(Around):
    def forward(self, input_ids, attention_mask=None):
        return self.inner(input_ids, attention_mask).logits[:, -1]


class Loss(Around):
    def forward(self, input_ids, attention_mask=None):
        return self.inner(input_ids, attention_mask).logits.mean(), input_ids


class Unmasked(Around):
    def forward(self, input_ids):
        return self.inner(input_ids).logits


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (Last, r"Last returned logits of the shape \(2, 19\) for \(2, 5\) tokens"),
        (Loss, "returned tuple without `logits`"),
        (Unmasked, "Unmasked takes no `attention_mask`"),
    ],
)
def test_outputs_that_cannot_be_read_are_refused(wrap, message):
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with pytest.raises(ValueError, match=message):
        TokenLogits(wrap(tiny("llama")))(token_ids(), mask)


def test_answers_that_cannot_be_read_are_refused():
    model = tiny("bert", head="qa")
    model.register_forward_hook(lambda _module, _args, output: output.start_logits)
    with pytest.raises(ValueError, match="returned Tensor without `start_logits`"):
        AnswerLogits(model)(token_ids())
