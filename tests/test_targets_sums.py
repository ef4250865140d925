"""Forward modules of several tokens or classes, of probabilities, of a function of the outputs."""

import pytest
import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, NoiseTunnel
from models import FAMILIES, outputs, tiny, token_ids
from target_cases import ROWS, inputs_of, whole

from captum_lrpx import (
    AttnLRPx,
    ClassDifference,
    ClassLogits,
    LogProbabilities,
    LRPx,
    OutputFunction,
    OutputSum,
    Probabilities,
    Target,
    TokenLogits,
    TokenSum,
)


@pytest.mark.parametrize("of", ["logit", "log_prob", "prob"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sums_over_tokens(family, of):
    model = tiny(family)
    function = {"logit": lambda z: z, "log_prob": torch.log_softmax, "prob": torch.softmax}[of]
    values = function(*((whole_text(model),) if of == "logit" else (whole_text(model), -1)))
    tokens, weights = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[1, 1, -1], [2.0, 0, 1]])
    places = torch.tensor([[0, 1, 2], [3, 3, 1]])
    forward, rows = TokenSum(model, of), ROWS[:, None]
    for x in inputs_of(model):
        for args, expected in [
            ((tokens, 2), values[:, 2].gather(1, tokens).sum(1)),
            ((tokens, torch.tensor([1, 3])), values[rows, [[1], [3]], tokens].sum(1)),
            ((tokens, places), values[rows, places, tokens].sum(1)),
            ((tokens, places, weights), (values[rows, places, tokens] * weights).sum(1)),
            (([3, 4], 2, [1, -1]), values[:, 2, 3] - values[:, 2, 4]),
            ((tokens[:1], places[:1]), values[rows, places[:1], tokens[:1]].sum(1)),
        ]:
            found = forward(x, None, *args)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def whole_text(model):
    return outputs(model, input_ids=token_ids()).detach()


@pytest.mark.parametrize(
    ("tokens", "position", "weights", "error"),
    [
        (torch.tensor([3, 4, 5]), 2, None, ValueError),
        (torch.zeros(3, 2, dtype=torch.long), 2, None, ValueError),
        ([], 2, None, ValueError),
        ([3, 4], torch.zeros(2, 3, dtype=torch.long), None, ValueError),
        ([3, 4], 2, torch.ones(2), ValueError),
        ([3, 10**6], 2, None, IndexError),
        ([3, 4], torch.tensor([[0, 9]]), None, IndexError),
    ],
)
def test_sums_that_do_not_fit(tokens, position, weights, error):
    with pytest.raises(error):
        TokenSum(tiny("gpt2"))(token_ids(), None, tokens, position, weights)


def test_an_unknown_quantity():
    for make in (lambda: TokenSum(tiny("gpt2"), "odds"), lambda: Target("a", quantity="odds")):
        with pytest.raises(ValueError, match="Unknown quantity 'odds'"):
            make()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_relevance_of_a_log_probability_is_that_of_the_logits_by_its_slope(family, method):
    """As the softmax has no rule: R(log p_t) = R(z_t) - sum_v p_v R(z_v)."""
    model = tiny(family)
    x, args = token_ids(), (None, 2)
    probabilities = whole(model, 2).softmax(-1).detach()
    logits = torch.stack(
        [
            method(TokenLogits(model)).attribute(x, token, args)
            for token in range(probabilities.shape[1])
        ]
    )
    mean = torch.einsum("bv,vbt->bt", probabilities, logits)
    found = method(LogProbabilities(TokenLogits(model))).attribute(x, 3, args)
    torch.testing.assert_close(found, logits[3] - mean, rtol=1e-5, atol=1e-8)
    found = method(Probabilities(TokenLogits(model))).attribute(x, 3, args)
    expected = probabilities[:, 3:4] * (logits[3] - mean)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_probabilities_in_half_precision_are_normalized_in_float32():
    model = tiny("gpt2", dtype=torch.bfloat16)
    found = Probabilities(TokenLogits(model))(token_ids())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_differences_of_classes(family):
    model = tiny(family, head="sequence")
    ids = token_ids(batch=1)
    logits = model(ids).logits
    for good, bad in [(1, 0), (torch.tensor([2]), torch.tensor([1]))]:
        difference = ClassDifference(model)(ids, None, good, bad)
        torch.testing.assert_close(difference, logits[:, good].view(1) - logits[:, bad].view(1))
    args = (torch.tensor([[1, 0]]), torch.tensor([[1.0, -1.0]]), None)
    for method in (LRPx, AttnLRPx):
        single = [method(ClassLogits(model)).attribute(ids, label) for label in (1, 0)]
        for forward, arguments in [
            (ClassDifference(model), (None, 1, 0)),
            (OutputSum(ClassLogits(model)), args),
            (OutputSum(LogProbabilities(ClassLogits(model))), args),
            (OutputFunction(ClassLogits(model), lambda logits: logits[:, 1] - logits[:, 0]), None),
        ]:
            found = method(forward).attribute(ids, additional_forward_args=arguments)
            torch.testing.assert_close(found, single[0] - single[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(IndexError):
        ClassDifference(model)(ids, None, 1, 9)
    with pytest.raises(IndexError, match="out of range for 3 outputs"):
        OutputSum(ClassLogits(model))(ids, [1, 3])


def test_a_function_must_give_one_value_per_row():
    model = tiny("gpt2")
    for function in (torch.sum, lambda logits: float(logits.detach().sum())):
        with pytest.raises(ValueError, match=r"one value per row, \[2\]"):
            OutputFunction(TokenLogits(model), function)(token_ids())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_every_captum_method_takes_the_sums(family):
    model = tiny(family, dtype=torch.float32)
    embeds = inputs_of(model)[1]
    tokens, weights = torch.tensor([[3, 4], [5, 6]]), torch.tensor([[1.0, -1.0], [1.0, 0.5]])
    args = (torch.ones(2, 5), tokens, torch.tensor([[1, 2], [3, 3]]), weights)
    forwards = [
        (TokenSum(model), args),
        (TokenSum(model, "log_prob"), args),
        (OutputSum(Probabilities(TokenLogits(model))), (tokens, weights, args[0], 2)),
        (OutputFunction(TokenLogits(model), lambda z: z.logsumexp(-1)), (args[0], 2)),
    ]
    for forward, arguments in forwards:
        for method in (LRPx, InputXGradient, IntegratedGradients, FeatureAblation):
            found = method(forward).attribute(embeds, additional_forward_args=arguments)
            assert found.shape == embeds.shape
            assert torch.isfinite(found).all()
        found = LRPx(forward).attribute(embeds, additional_forward_args=arguments)
        noiseless = NoiseTunnel(LRPx(forward)).attribute(
            embeds, stdevs=0.0, nt_samples=2, additional_forward_args=arguments
        )
        torch.testing.assert_close(noiseless, found, rtol=1e-4, atol=1e-5)
