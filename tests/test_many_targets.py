"""Many targets from one forward pass are the single calls, whatever is computed at once."""

import pytest
import torch
from models import FAMILIES, LABELS, tiny, token_ids

from captum_lrpx import (
    ALTILogit,
    AttnLRPx,
    ClassLogits,
    LogProbabilities,
    LRPx,
    TokenLogits,
)

TARGETS = [4, 7, 5, 11, 9]


def single_calls(attribution, inputs, targets, arguments=None):
    return torch.stack(
        [
            attribution.attribute(inputs, target, additional_forward_args=arguments)
            for target in targets
        ]
    )


def assert_same(many, single):
    """To 1e-12; 1e-6 where Hugging Face computes norms or rotations in float32."""
    exact = many.dtype == torch.float64
    tolerance = (1e-12 if exact else 1e-5) * single.abs().max().item()
    torch.testing.assert_close(many, single, rtol=0, atol=tolerance)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", FAMILIES)
def test_many_targets_equal_single_calls(family, method, attn):
    attribution = method(TokenLogits(tiny(family, attn=attn)))
    ids, arguments = token_ids(), (None, torch.tensor([2, 4]))
    many = attribution.attribute_targets(ids, TARGETS, arguments, targets_per_backward=3)
    single = single_calls(attribution, ids, TARGETS, arguments)
    tolerance = 1e-12 if family in ("gpt2", "bert", "roberta", "distilbert") else 1e-6
    torch.testing.assert_close(many, single, rtol=0, atol=tolerance * single.abs().max().item())


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_embeddings_in_any_number_at_once(at_once):
    model = tiny("gpt2")
    embeds = model.get_input_embeddings()(token_ids()).detach()
    attribution = AttnLRPx(LogProbabilities(TokenLogits(model)))
    many = attribution.attribute_targets(embeds, TARGETS, targets_per_backward=at_once)
    assert many.shape == (len(TARGETS), *embeds.shape)
    assert_same(many, single_calls(attribution, embeds, TARGETS))


def test_one_at_once_is_bit_for_bit_the_single_call():
    attribution = LRPx(TokenLogits(tiny("gpt2", attn="sdpa")))
    many = attribution.attribute_targets(token_ids(), TARGETS, targets_per_backward=1)
    assert torch.equal(many, single_calls(attribution, token_ids(), TARGETS))


def test_targets_in_all_of_captums_forms():
    model = tiny("gpt2")
    attribution = AttnLRPx(model)
    targets = [(1, 5), [(1, 5), (2, 6)], (-1, 7)]
    assert_same(
        attribution.attribute_targets(token_ids(), targets),
        single_calls(attribution, token_ids(), targets),
    )
    pairs = torch.tensor([[3, 4], [6, 7]])
    by_row = [torch.tensor([3, 4]), 5, [6, 7]]
    attribution = AttnLRPx(TokenLogits(model))
    assert_same(
        attribution.attribute_targets(token_ids(), by_row),
        single_calls(attribution, token_ids(), by_row),
    )
    for method in (attribution, ALTILogit(TokenLogits(model))):
        for tensor in (pairs, pairs[0]):
            assert torch.equal(
                method.attribute_targets(token_ids(), tensor),
                method.attribute_targets(token_ids(), list(tensor)),
            )


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_all_classes_without_targets(method):
    attribution = method(ClassLogits(tiny("bert", "sequence")))
    many = attribution.attribute_targets(token_ids())
    assert many.shape == (LABELS, *token_ids().shape)
    assert_same(many, single_calls(attribution, token_ids(), range(LABELS)))


def test_inputs_as_a_tuple_give_a_tuple():
    model = tiny("gpt2")
    attribution = LRPx(TokenLogits(model))
    (many,) = attribution.attribute_targets((token_ids(),), TARGETS)
    assert torch.equal(many, attribution.attribute_targets(token_ids(), TARGETS))


@pytest.mark.parametrize(("at_once", "passes"), [(1, 5), (2, 3), (5, 1)])
def test_as_many_backward_passes_as_the_bound_asks_for(at_once, passes):
    model, runs = tiny("gpt2", attn="sdpa"), []

    def count(_module, _args, output):
        output.register_hook(runs.append)

    handle = model.transformer.h[0].ln_1.register_forward_hook(count)
    attribution = AttnLRPx(TokenLogits(model))
    attribution.attribute_targets(token_ids(), TARGETS, targets_per_backward=at_once)
    handle.remove()
    assert len(runs) == passes


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_alti_logit_of_many_targets(family):
    attribution = ALTILogit(TokenLogits(tiny(family, attn="sdpa")))
    arguments = (None, 3)
    many = attribution.attribute_targets(token_ids(), TARGETS, arguments)
    single = single_calls(attribution, token_ids(), TARGETS, arguments)
    torch.testing.assert_close(many, single, rtol=0, atol=1e-10 * single.abs().max().item())


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_a_recipes_rules_hold_and_are_gone_afterwards(method):
    model = tiny("gpt2")
    plain = model(token_ids()).logits
    method(TokenLogits(model)).attribute_targets(token_ids(), TARGETS)
    assert torch.equal(model(token_ids()).logits, plain)
    assert "forward" not in vars(model.transformer.h[0].ln_1)


def test_what_does_not_fit_is_refused():
    model = tiny("gpt2")
    attribution = LRPx(TokenLogits(model))
    with pytest.raises(ValueError, match="at least one target"):
        attribution.attribute_targets(token_ids(), [])
    with pytest.raises(ValueError, match="targets_per_backward must be positive, not 0"):
        attribution.attribute_targets(token_ids(), TARGETS, targets_per_backward=0)
    with pytest.raises(ValueError, match=r"without `targets` it must be \[B, C\]"):
        LRPx(model).attribute_targets(token_ids())
    with pytest.raises(AssertionError, match="Target not provided"):
        attribution.attribute_targets(token_ids(), [None])
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        attribution.attribute_targets(token_ids(), TARGETS)
    with pytest.raises(ValueError, match="at least one target"):
        ALTILogit(model).attribute_targets(token_ids(), [])
