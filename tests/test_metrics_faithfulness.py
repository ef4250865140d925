"""Faithfulness: replaced tokens one by one, in plain loops, and on an additive model by hand."""

import math

import pytest
import torch
from captum.attr import InputXGradient
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from models import FAMILIES, tiny, token_ids

from captum_lrpx import AttnLRPx, ClassLogits, LRPx, TokenLogits
from captum_lrpx.metrics import (
    abpc,
    leave_one_out,
    leave_one_out_alignment,
    pearson,
    perturbation_curve,
    spearman,
)

METHODS = [LRPx, AttnLRPx, InputXGradient]
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def additive(x):
    """A model without interactions: embeddings ``[B, T, D]`` to ``[B]``."""
    return x.sum((1, 2))


# Slow references: one row, one token, one forward pass at a time.


def slow_value(forward, row, baseline, gone, row_args):
    changed = row.clone()
    for token in gone:
        changed[token] = baseline
    return forward(changed[None], *row_args).item()


def slow_effects(forward, inputs, baseline, mask, args):
    result = torch.zeros(inputs.shape[:2], dtype=torch.float64)
    for b, row in enumerate(inputs):
        row_args = [arg[b : b + 1] for arg in args]
        whole = slow_value(forward, row, baseline, [], row_args)
        for token in range(len(row)):
            if mask[b, token]:
                result[b, token] = whole - slow_value(forward, row, baseline, [token], row_args)
    return result


def slow_order(relevances, mask, order):
    tokens = [token for token, here in enumerate(mask) if here]
    sign = -1 if order == "morf" else 1
    return sorted(tokens, key=lambda token: sign * relevances[token])  # stable


def slow_curve(forward, row, relevances, baseline, mask, order, counts, row_args):
    tokens = slow_order(relevances.tolist(), mask.tolist(), order)
    return [slow_value(forward, row, baseline, tokens[:count], row_args) for count in counts]


def slow_area(values, counts):
    area = 0.0
    for s in range(len(counts) - 1):
        area += (counts[s + 1] - counts[s]) * (values[s] + values[s + 1]) / 2
    return area / counts[-1]


class Case:
    """Padded texts for one model, the target selected inside the forward function."""

    def __init__(self, family, length=5):
        self.model = tiny(family, attn="sdpa")
        self.forward = TokenLogits(self.model)
        self.ids = token_ids(2, length)
        self.embeds = self.model.get_input_embeddings()(self.ids).detach()
        self.padding = torch.ones(2, length, dtype=torch.long)
        self.padding[0, -2:] = 0
        self.mask = self.padding.bool()
        self.mask[:, 0] = False  # a special token, seen by the model but not counted
        self.args = (self.padding, torch.tensor([1, 3]))
        self.common = {"target": 7, "additional_forward_args": self.args, "mask": self.mask}

    def chosen(self, x, *args):
        return self.forward(x, *args)[:, 7]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def llama():
    return Case("llama")


@pytest.mark.parametrize("per_eval", [1, 2, 100])
def test_leaving_one_out_is_a_loop(case, per_eval):
    expected = slow_effects(case.chosen, case.embeds, 0.0, case.mask, case.args)
    found = leave_one_out(case.forward, case.embeds, perturbations_per_eval=per_eval, **case.common)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (found[~case.mask] == 0).all()


@pytest.mark.parametrize("per_eval", [1, 3])
def test_ids_are_replaced_by_an_id(llama, per_eval):
    expected = slow_effects(llama.chosen, llama.ids, 4, llama.mask, llama.args)
    found = leave_one_out(
        llama.forward, llama.ids, 4, perturbations_per_eval=per_eval, **llama.common
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    one = llama.model.get_input_embeddings()(torch.tensor(4)).detach()  # [D]
    of_embeds = leave_one_out(llama.forward, llama.embeds, one, **llama.common)
    torch.testing.assert_close(found, of_embeds, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_alignment_is_the_correlation_with_the_effects(llama, method):
    arguments = {"target": 7, "additional_forward_args": llama.args}
    attributions = method(llama.forward).attribute(llama.embeds, **arguments)
    effects = slow_effects(llama.chosen, llama.embeds, 0.0, llama.mask, llama.args)
    found = leave_one_out_alignment(llama.forward, llama.embeds, attributions, **llama.common)
    relevances = attributions.detach().sum(-1)
    torch.testing.assert_close(
        found.pearson, pearson(relevances, effects, mask=llama.mask), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(found.spearman, spearman(relevances, effects, mask=llama.mask))
    assert not found.pearson.requires_grad


@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"fraction": 0.5}, {"steps": 7}])
@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("method", METHODS)
def test_a_curve_is_a_loop(case, method, order, options):
    arguments = {"target": 7, "additional_forward_args": case.args}
    attributions = method(case.forward).attribute(case.embeds, **arguments).detach()
    curve = perturbation_curve(
        case.forward,
        case.embeds,
        attributions,
        order=order,
        perturbations_per_eval=2,
        **options,
        **case.common,
    )
    for b, row in enumerate(case.embeds):
        tokens = int(case.mask[b].sum())
        end = max(1, round(options.get("fraction", 1.0) * tokens))
        longest = max(1, round(options.get("fraction", 1.0) * int(case.mask.sum(-1).max())))
        steps = options.get("steps")
        counts = [
            min(s, end) if steps is None else s * end // steps
            for s in range((steps or longest) + 1)
        ]
        values = slow_curve(
            case.chosen,
            row,
            attributions[b].sum(-1),
            0.0,
            case.mask[b],
            order,
            counts,
            [arg[b : b + 1] for arg in case.args],
        )
        assert curve.replaced[b].tolist() == counts
        assert curve.values[b].tolist() == pytest.approx(values, rel=1e-6, abs=1e-6)
        assert curve.area()[b].item() == pytest.approx(slow_area(values, counts), abs=1e-6)
        assert curve.fractions[b, -1].item() == pytest.approx(end / tokens)


def test_a_batch_gives_what_single_texts_give(llama):
    relevances = LRPx(llama.forward).attribute(
        llama.embeds, target=7, additional_forward_args=llama.args
    )
    together = abpc(
        llama.forward, llama.embeds, relevances, perturbations_per_eval=4, **llama.common
    )
    for b in range(2):
        rows = slice(b, b + 1)
        alone = abpc(
            llama.forward,
            llama.embeds[rows],
            relevances[rows],
            target=7,
            additional_forward_args=tuple(arg[rows] for arg in llama.args),
            mask=llama.mask[rows],
        )
        torch.testing.assert_close(together[rows], alone, rtol=1e-6, atol=1e-6)


def test_every_form_of_target(llama):
    relevances = torch.randn(2, 5, dtype=torch.float64)
    results = [
        abpc(llama.forward, llama.embeds, relevances, perturbations_per_eval=3, **options)
        for options in (
            llama.common | {"target": target} for target in (7, [7, 7], torch.tensor([7, 7]))
        )
    ]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_a_hugging_face_model_is_a_forward_function(llama):
    relevances = torch.randn(2, 5, dtype=torch.float64)
    found = abpc(llama.model, llama.embeds, relevances, target=(-1, 7))
    expected = abpc(
        lambda x: llama.model(inputs_embeds=x).logits[:, -1, 7], llama.embeds, relevances
    )
    torch.testing.assert_close(found, expected)
    effects = leave_one_out(llama.model, llama.ids, 4, target=(-1, 7))
    assert effects.shape == (2, 5)


def test_a_classifier():
    model = tiny("bert", head="sequence")
    embeds = model.get_input_embeddings()(token_ids(2, 4)).detach()
    forward = ClassLogits(model)
    expected = slow_effects(lambda x: forward(x)[:, 1], embeds, 0.0, torch.ones(2, 4), ())
    torch.testing.assert_close(leave_one_out(forward, embeds, target=1), expected, **TOLERANCE)


# An additive model: everything by hand; these examples are those of docs/metrics.md.
TOKENS = torch.tensor([[[3.0], [1.0], [-2.0]]])


def test_the_examples_of_the_page():
    relevances = torch.tensor([[3.0, 1.0, -2.0]])
    torch.testing.assert_close(leave_one_out(additive, TOKENS), relevances)
    morf = perturbation_curve(additive, TOKENS, relevances)
    lerf = perturbation_curve(additive, TOKENS, relevances, order="lerf")
    assert morf.values.tolist() == [[2, -1, -2, 0]]
    assert lerf.values.tolist() == [[2, 4, 3, 0]]
    assert morf.area().item() == pytest.approx(-2 / 3)
    assert lerf.area().item() == pytest.approx(8 / 3)
    assert abpc(additive, TOKENS, relevances).item() == pytest.approx(10 / 3)
    assert leave_one_out_alignment(additive, TOKENS, relevances).pearson.item() == pytest.approx(1)


rows = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 2.0, 4.0]), min_size=1, max_size=6)


@examples(150)
@given(
    row=rows,
    data=st.data(),
    order=st.sampled_from(["morf", "lerf"]),
    steps=st.sampled_from([None, 1, 2, 3, 9]),
    fraction=st.sampled_from([0.1, 0.34, 0.5, 0.8, 1.0]),
    per_eval=st.integers(1, 12),
)
def test_any_curve_of_an_additive_model_is_a_loop(row, data, order, steps, fraction, per_eval):
    length = len(row)
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5]), min_size=length, max_size=length)
    relevances = torch.tensor([data.draw(values)], dtype=torch.float64)
    mask = torch.tensor([data.draw(st.lists(st.booleans(), min_size=length, max_size=length))])
    inputs = torch.tensor(row, dtype=torch.float64).view(1, -1, 1)
    curve = perturbation_curve(
        additive,
        inputs,
        relevances,
        order=order,
        steps=steps,
        fraction=fraction,
        mask=mask,
        perturbations_per_eval=per_eval,
    )
    tokens = int(mask.sum())
    end = min(tokens, max(1, round(fraction * tokens)))
    points = range((end if steps is None else steps) + 1)
    counts = [s if steps is None else s * end // steps for s in points]
    expected = slow_curve(additive, inputs[0], relevances[0], 0.0, mask[0], order, counts, [])
    assert curve.replaced[0].tolist() == counts
    assert curve.tokens.tolist() == [tokens]
    assert curve.values[0].tolist() == pytest.approx(expected)
    if tokens:
        assert curve.area().item() == pytest.approx(slow_area(expected, counts))
    else:
        assert math.isnan(curve.area().item())
        assert curve.fractions.isnan().all()


@examples(50)
@given(row=rows)
def test_attributions_that_are_all_the_same_have_no_area_between(row):
    inputs = torch.tensor(row, dtype=torch.float64).view(1, -1, 1)
    assert abpc(additive, inputs, torch.ones(1, len(row))).item() == 0


def test_tokens_that_stay_are_never_replaced():
    seen = []

    def watching(x):
        seen.append(x.clone())
        return additive(x)

    inputs = torch.randn(2, 4, 3) + 5
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    relevances = torch.randn(2, 4)
    relevances[~mask] = math.nan
    found = abpc(watching, inputs, relevances, mask=mask, perturbations_per_eval=2)
    assert leave_one_out_alignment(watching, inputs, relevances, mask=mask).pearson.isfinite().all()
    assert found.isfinite().all()
    for x in seen:
        kept = x.view(-1, 2, 4, 3)
        assert (kept[:, ~mask] == inputs[~mask]).all()
    assert any((x == 0).any() for x in seen)


def test_nan_has_no_order():
    relevances = torch.tensor([[1.0, math.nan, 2.0], [1.0, 3.0, 2.0]])
    inputs = torch.randn(2, 3, 1)
    assert abpc(additive, inputs, relevances).isnan().tolist() == [True, False]
    assert perturbation_curve(additive, inputs, relevances).values[0].isnan().all()
    aligned = leave_one_out_alignment(additive, inputs, relevances)
    assert aligned.pearson.isnan().tolist() == aligned.spearman.isnan().tolist() == [True, False]


def test_nothing_is_left_behind(llama):
    embeds = llama.embeds.clone().requires_grad_()
    relevances = torch.randn(2, 5, requires_grad=True)
    before = [(parameter.requires_grad, parameter.grad) for parameter in llama.model.parameters()]
    found = abpc(llama.forward, embeds, relevances, **llama.common)
    assert not found.requires_grad
    assert embeds.grad is None
    assert torch.equal(embeds, llama.embeds)
    after = [(parameter.requires_grad, parameter.grad) for parameter in llama.model.parameters()]
    assert before == after


def test_progress(capsys):
    relevances = torch.ones(1, 3)
    abpc(additive, TOKENS, relevances, show_progress=True)
    shown = capsys.readouterr().err
    assert "Perturbation (morf)" in shown
    assert "Perturbation (lerf)" in shown
    abpc(additive, TOKENS, relevances)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"order": "best"}, ValueError, "morf or lerf"),
        ({"steps": 0}, ValueError, "`steps` must be an integer of 1"),
        ({"fraction": 0.0}, ValueError, "share of the tokens"),
        ({"fraction": 1.5}, ValueError, "share of the tokens"),
        ({"perturbations_per_eval": 0}, ValueError, "`perturbations_per_eval` must be"),
        ({"attributions": torch.ones(1, 4)}, AssertionError, "do not belong to inputs"),
        ({"attributions": torch.ones(1, 3).long()}, AssertionError, "floating-point"),
        ({"inputs": torch.ones(1, 3)}, AssertionError, r"token ids \[B, T\] or embeddings"),
        ({"inputs": torch.ones(1, 3).long()}, ValueError, "no natural baseline"),
        ({"inputs": torch.ones(1, 3).long(), "baselines": 0.5}, AssertionError, "integers"),
        ({"inputs": (TOKENS, TOKENS)}, ValueError, "one input"),
        ({"baselines": torch.ones(2, 7)}, AssertionError, "cannot be broadcast"),
        ({"mask": torch.ones(1, 3)}, AssertionError, "tensor of booleans"),
        ({"forward_func": lambda x: x.sum(2)}, AssertionError, "one value per example"),
        ({"forward_func": lambda x: x.sum()}, AssertionError, "one value per example"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message):
    arguments = {"forward_func": additive, "inputs": TOKENS, "attributions": torch.ones(1, 3)}
    with pytest.raises(error, match=message):
        perturbation_curve(**arguments | changes)
    if not {"order", "steps", "fraction"} & set(changes):
        with pytest.raises(error, match=message):
            leave_one_out_alignment(**arguments | changes)
