"""Forward modules: the same numbers as the whole model, usable with every Captum method."""

import pytest
import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients
from captum.metrics import infidelity
from models import FAMILIES, tiny, token_ids
from target_cases import POSITIONS, ROWS, inputs_of, whole
from torch import nn

from captum_lrpx import (
    LRP,
    AnswerLogits,
    AttnLRPx,
    ClassLogits,
    LogitDifference,
    LRPx,
    TokenLogits,
    propagation,
)
from captum_lrpx.rules import Epsilon


@pytest.mark.parametrize("position", POSITIONS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_token_logits_are_the_models(family, position):
    model = tiny(family)
    for x in inputs_of(model):
        logits = TokenLogits(model)(x, None, position)
        torch.testing.assert_close(logits, whole(model, position), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_logit_difference_is_the_models(family):
    model = tiny(family)
    good, bad = torch.tensor([3, 4]), torch.tensor([5, 6])
    logits = whole(model, 2)
    expected = logits[ROWS, good] - logits[ROWS, bad]
    for x in inputs_of(model):
        difference = LogitDifference(model)(x, None, good, bad, 2)
        assert difference.shape == (2,)
        torch.testing.assert_close(difference, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_needed_part_of_the_output_layer_is_computed(family, monkeypatch):
    model = tiny(family)
    output, computed = model.get_output_embeddings(), []
    linear = nn.Linear.forward

    def record(self, x):
        result = linear(self, x)
        if self is output:
            computed.append(tuple(result.shape))
        return result

    TokenLogits(model)(token_ids(), None, 2)  # the first time it is seen what the head is
    monkeypatch.setattr(nn.Linear, "forward", record)
    TokenLogits(model)(token_ids(), None, 2)  # finds out what the head is
    computed.clear()
    TokenLogits(model)(token_ids(), None, 2)
    assert computed == [(2, output.weight.shape[0])]  # one position
    computed.clear()
    LogitDifference(model)(token_ids(), None, 3, 4, 2)
    # two rows of the matrix; RoBERTa's head has an activation between its layers, so it runs whole
    assert computed == ([(2, output.weight.shape[0])] if family == "roberta" else [])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_on_the_output_layer_is_kept(family):
    model = tiny(family)
    recipe = LRP.override("*", Epsilon(0.5))
    expected = LRPx(model, recipe=recipe).attribute(token_ids(), target=(2, 3))
    forward = TokenLogits(model)
    result = LRPx(forward, recipe=recipe).attribute(
        token_ids(), target=3, additional_forward_args=(None, 2)
    )
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-9)
    with propagation(model, recipe):
        difference = LogitDifference(model)(token_ids(), None, 3, 4, 2)
    expected = whole(model, 2)
    torch.testing.assert_close(difference, expected[:, 3] - expected[:, 4], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_relevances_through_a_forward_module_are_those_of_the_whole_model(family):
    model = tiny(family)
    for method in (LRPx, AttnLRPx):
        expected = method(model).attribute(token_ids(), target=(2, 3))
        result = method(TokenLogits(model)).attribute(
            token_ids(), target=3, additional_forward_args=(None, 2)
        )
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-7)


def test_the_default_position_is_the_last_real_token():
    model = tiny("gpt2")
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    logits = TokenLogits(model)(token_ids(), mask)
    expected = model(token_ids(), attention_mask=mask).logits[ROWS, torch.tensor([4, 2])]
    torch.testing.assert_close(logits, expected)


def test_a_masked_model_needs_a_position():
    with pytest.raises(ValueError, match="give `position`"):
        TokenLogits(tiny("bert"))(token_ids())


@pytest.mark.parametrize(
    ("position", "error"),
    [(5, IndexError), (-6, IndexError), (torch.tensor([0, 1, 2]), ValueError), (1.5, ValueError)],
    ids=str,
)
def test_positions_that_do_not_fit(position, error):
    with pytest.raises(error, match="position"):
        TokenLogits(tiny("gpt2"))(token_ids(), None, position)


def test_token_ids_that_do_not_exist():
    with pytest.raises(IndexError):
        LogitDifference(tiny("gpt2"))(token_ids(), None, 3, 10**6)


def test_inputs_of_the_wrong_rank():
    with pytest.raises(ValueError, match=r"token ids \[B, T\] or embeddings"):
        TokenLogits(tiny("gpt2"))(torch.zeros(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_class_logits(family):
    model = tiny(family, head="sequence")
    ids = token_ids(batch=1)
    expected = model(ids).logits
    torch.testing.assert_close(ClassLogits(model)(ids), expected)
    for method in (LRPx, AttnLRPx):
        relevance, delta = method(ClassLogits(model)).attribute(
            ids, target=1, return_convergence_delta=True
        )
        torch.testing.assert_close(relevance.sum(1) + delta, expected[:, 1].detach())


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_class_logits_of_embeddings_and_a_mask(family):
    model = tiny(family, head="sequence")
    ids, embeds = inputs_of(model)
    mask = torch.ones_like(ids)
    torch.testing.assert_close(ClassLogits(model)(embeds, mask), model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_classes(family):
    model = tiny(family, head="token")
    logits = TokenLogits(model)(token_ids(), None, 2)
    torch.testing.assert_close(logits, model(token_ids()).logits[:, 2])


@pytest.mark.parametrize("end", ["start", "end"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers(family, end):
    model = tiny(family, head="qa")
    logits = AnswerLogits(model, end)(token_ids())
    torch.testing.assert_close(logits, getattr(model(token_ids()), f"{end}_logits"))
    assert LRPx(AnswerLogits(model, end)).attribute(token_ids(), target=1).shape == (2, 5)


def test_an_end_that_does_not_exist():
    with pytest.raises(ValueError, match="'start' or 'end'"):
        AnswerLogits(tiny("bert", head="qa"), "middle")


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_every_captum_method_takes_them(family):
    model = tiny(family, dtype=torch.float32)
    embeds = inputs_of(model)[1]
    args = (torch.ones(2, 5), torch.tensor([3, 4]), torch.tensor([5, 6]), torch.tensor([2, 3]))
    forward = LogitDifference(model)
    for method in (LRPx, AttnLRPx, InputXGradient, IntegratedGradients, FeatureAblation):
        attributions = method(forward).attribute(embeds, additional_forward_args=args)
        assert attributions.shape == embeds.shape
        assert torch.isfinite(attributions).all()

    def perturb(inputs):
        noise = 0.01 * torch.randn_like(inputs)
        return noise, inputs - noise

    relevance = LRPx(forward).attribute(embeds, additional_forward_args=args)
    score = infidelity(forward, perturb, embeds, relevance, additional_forward_args=args)
    assert score.shape == (2,)
