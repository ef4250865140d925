"""Continuations, models and methods that cannot be explained, refused by name."""

import pytest
import torch
from captum.attr import InputXGradient, LayerGradientXActivation
from generation_cases import some_ids, words
from models import tiny

from captum_lrpx import LayerLRPx, LLMRelevance, LRPx, TokenLogits


def test_models_that_predict_no_continuation():
    for head, family in (("lm", "bert"), ("sequence", "gpt2")):
        model = tiny(family, head)
        with pytest.raises(
            (ValueError, TypeError), match=r"continuation to explain|language model"
        ):
            LLMRelevance(LRPx(model), words()).attribute(*some_ids())


def test_a_decoder_that_sees_what_comes_later():
    from transformers import BertLMHeadModel

    model = tiny("bert")
    model = BertLMHeadModel(model.config).double().eval()
    with pytest.raises(ValueError, match="is_decoder=True"):
        LLMRelevance(LRPx(model), words()).attribute(*some_ids())


def test_methods_that_are_not_taken():
    model = tiny("gpt2")
    layers = [model.transformer.h[0], model.transformer.h[1]]
    for method, message in [
        (InputXGradient(model), "LLMGradientAttribution"),
        (LayerGradientXActivation(model, layers[0]), "LLMGradientAttribution"),
        (LayerLRPx(model, layers), "one layer"),
        (LRPx(TokenLogits(model)), "not TokenLogits"),
        (LRPx(lambda x: x, model=model), "not function"),
    ]:
        with pytest.raises(TypeError, match=message):
            LLMRelevance(method, words())
    with pytest.raises(ValueError, match="Unknown quantity 'odds'"):
        LLMRelevance(LRPx(model), words(), "odds")
    with pytest.raises(NotImplementedError):
        LLMRelevance(LRPx(model), words()).attribute_future()


@pytest.mark.parametrize(
    ("prompt", "continuation", "error", "message"),
    [
        ("", "w4", ValueError, "empty"),
        ([], "w4", ValueError, "is empty"),
        ("w3", "", ValueError, "continuation is empty"),
        ("w3", [], ValueError, "continuation is empty"),
        ("w3", " ".join(["w4"] * 25), ValueError, "takes at most 24"),
        ("w3", "w4 nonsense", ValueError, "does not know a part of the continuation"),
        ([3, 99], "w4", ValueError, "tokenizer that belongs to the model"),
        ("w3", [-1], ValueError, "tokenizer that belongs to the model"),
        ([[3, 4], [5, 6]], "w4", ValueError, "one text is explained at a time"),
        ([3.5], "w4", ValueError, "must be integers"),
        (3, "w4", TypeError, "give a text, a pair of texts"),
        ("w3", 4, TypeError, "continuation must be a text or token ids"),
    ],
)
def test_texts_that_cannot_be_used(prompt, continuation, error, message):
    llm = LLMRelevance(LRPx(tiny("gpt2")), words())
    with pytest.raises(error, match=message):
        llm.attribute(prompt, continuation)


def test_a_tokenizer_of_another_model():
    llm = LLMRelevance(LRPx(tiny("gpt2")), words(50))
    with pytest.raises(ValueError, match=r"vocabulary of 19 does not know \(40\)"):
        llm.attribute("w3 w40", "w4")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"foil": "w4 w5"}, ValueError, r"2 tokens \('w4' \+ 'w5'\), and the continuation is 4"),
        ({"foil": [[4]] * 2}, ValueError, "foil must be integers"),
        ({"spans": []}, ValueError, "`spans` is empty"),
        ({"spans": [(2, 2)]}, IndexError, r"span \(2, 2\) is empty or out of range"),
        ({"spans": [(0, 9)]}, IndexError, "out of range"),
        ({"targets_per_backward": 0}, ValueError, "must be positive"),
        ({"gen_args": {"max_new_tokens": 2}}, ValueError, "`target` gives one"),
    ],
)
def test_arguments_that_do_not_fit(arguments, error, message):
    llm = LLMRelevance(LRPx(tiny("gpt2")), words())
    with pytest.raises(error, match=message):
        llm.attribute(*some_ids(), **arguments)


def test_several_generated_texts():
    llm = LLMRelevance(LRPx(tiny("gpt2", dtype=torch.float32)), words())
    gen_args = {"max_new_tokens": 2, "num_return_sequences": 2, "do_sample": True}
    with pytest.raises(ValueError, match="2 continuations"):
        llm.attribute(some_ids()[0], gen_args=gen_args)


def test_under_inference_mode():
    llm = LLMRelevance(LRPx(tiny("gpt2")), words())
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        llm.attribute(*some_ids())


def test_a_backward_pass_that_cannot_be_batched():
    class Unbatched(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

        @staticmethod
        def backward(_ctx, grad):
            return grad * float(grad.sum() * 0 + 1)  # reads a number out of the tensor

    model, (prompt, continuation) = tiny("gpt2"), some_ids()
    llm = LLMRelevance(LRPx(model, strict=False), words())
    expected = llm.attribute(prompt, continuation).context_attr
    model.transformer.h[1].register_forward_hook(lambda *args: Unbatched.apply(args[2]))
    with (
        pytest.warns(match="Unbatched"),
        pytest.raises(RuntimeError, match="targets_per_backward=1"),
    ):
        llm.attribute(prompt, continuation)
    with pytest.warns(match="Unbatched"):
        found = llm.attribute(prompt, continuation, targets_per_backward=1).context_attr
    torch.testing.assert_close(found, expected)
