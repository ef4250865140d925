"""Small decoders that differ in one choice: what differs, and that a run goes on."""

from __future__ import annotations

import json
import sys

import one_choice
import one_choice_models
import one_choice_tables
import pytest
import torch

from captum_lrpx import LRPx
from captum_lrpx.sva import generate

CHANGED = {
    "no gate": {"mlp"},
    "layer norm": set(),
    "norms after": {"model.norm"},
    "learned positions": {"positions"},
    "biases": {"bias"},
    "built-in sink": {"sinks"},
}
"""For each choice what the parameters are called that only one of the two models has."""


def shapes(model):
    return {name: tuple(each.shape) for name, each in model.named_parameters()}


def run(folder, *more):
    given = [str(folder), "--steps", "2", "--every", "1", "--batch", "2", "--held-out", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["one_choice.py", *given, "--sentences", "6", *more])
        one_choice.main()


def test_every_choice_but_the_base_is_listed():
    assert {"base", *CHANGED} == set(one_choice_models.CHOICES)


@pytest.mark.parametrize("choice", CHANGED)
def test_a_model_differs_from_the_base_in_one_choice(choice):
    models = one_choice_models
    ids = torch.tensor([[1, 5, 300, 7, 400]])
    base, other = (models.build(each, 500, seed=0).eval() for each in ("base", choice))
    before, after = shapes(base), shapes(other)
    differing = {
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    }
    for name in differing:
        assert any(part in name for part in CHANGED[choice])
    if choice == "no gate":
        assert sum(map(torch.Size.numel, map(torch.Size, before.values()))) == sum(
            map(torch.Size.numel, map(torch.Size, after.values()))
        )
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    assert LRPx(other).coverage(ids).complete
    embeddings = other.get_input_embeddings()(ids)
    torch.testing.assert_close(other(inputs_embeds=embeddings).logits, other(ids).logits)


def test_a_layer_norm_centres_and_norms_after_normalise_the_sum():
    models = one_choice_models
    ids = torch.tensor([[1, 5, 300, 7, 400]])
    centred = models.build("layer norm", 500, seed=0).model(ids).last_hidden_state
    torch.testing.assert_close(centred.mean(-1), torch.zeros(1, 5), atol=1e-5, rtol=0)
    after = models.build("norms after", 500, seed=0).model(ids).last_hidden_state
    torch.testing.assert_close(after.square().mean(-1), torch.ones(1, 5), atol=1e-2, rtol=0)


def test_positions_are_rotations_or_vectors():
    models = one_choice_models
    ids = torch.tensor([[1, 5, 300, 7, 400]])
    model = models.build("learned positions", 500, seed=0).eval()
    model.model.layers = model.model.layers[:1]
    swapped = ids[:, [0, 2, 1, 3, 4]]
    with torch.no_grad():
        model.positions.zero_()
    # Now the last token reads its context as a set.
    first, second = (model(each).logits[0, -1] for each in (ids, swapped))
    assert torch.allclose(first, second, atol=1e-5)
    with torch.no_grad():
        model.positions.normal_(std=0.02)
    first, second = (model(each).logits[0, -1] for each in (ids, swapped))
    assert not torch.allclose(first, second, atol=1e-3)


def test_text_is_sentences_behind_one_start_token():
    models = one_choice_models
    words = models.tokenizer()
    ids = next(models.sequences(words, 4, seed=0))
    assert ids.shape == (4, models.LENGTH)
    assert (ids[:, 0] == words.bos_token_id).all()
    assert not (ids[:, 1:] == words.bos_token_id).any()
    assert all(words.decode(row).count(" .") > 2 for row in ids)
    wrong = next(models.sequences(words, 4, seed=0, errors=1.0))
    assert not torch.equal(ids, wrong)
    assert torch.equal(ids, next(models.sequences(words, 4, seed=0)))


def test_marked_plurals_are_two_words_and_both_are_evidence():
    models = one_choice_models
    for before in generate(40, "test", seed=0):
        after = models.marked(before)
        subject = " ".join(after.sentence[low:high] for low, high in after.evidence)
        (span,) = before.evidence
        word = before.sentence[slice(*span)]
        assert subject.endswith(f" {models.MARK}") == (before.number == "plural")
        assert (subject == word) == (before.number == "singular")
        assert after.sentence[slice(*after.verb_span)] == before.verb
        assert after.sentence.split()[0] == before.sentence.split()[0]
    ids = next(models.sequences(models.tokenizer(), 4, seed=0, marks=True))
    assert models.tokenizer()("s", add_special_tokens=False).input_ids[0] in ids


def test_a_finished_cell_is_not_done_again(tmp_path, capsys):
    run(tmp_path, "--choices", "base", "no gate", "--seeds", "0", "1")
    journal = (tmp_path / "cells.jsonl").read_text()
    lines = [json.loads(line) for line in journal.splitlines()]
    assert [(line["seed"], line["choice"]) for line in lines] == [
        (0, "base"), (0, "no gate"), (1, "base"), (1, "no gate")
    ]  # fmt: skip
    assert all(0 <= line["attention"] <= 1 for line in lines)
    # The last one was cut off while it was written.
    whole = journal.splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_text("".join(whole[:3]) + whole[3][:20])
    capsys.readouterr()
    run(tmp_path, "--choices", "base", "no gate", "--seeds", "0", "1")
    assert len(capsys.readouterr().out.splitlines()) == 1
    again = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    measured = ("choice", "seed", "steps", "curve", "accuracy", "attention")
    for one, other in zip(lines, again, strict=True):
        assert {name: one[name] for name in measured} == {name: other[name] for name in measured}
    run(tmp_path, "--table")
    text = capsys.readouterr().out
    assert "**Share of the first position**" in text
    assert "| plain | no gate |" in text
    assert "Mixed model of MRR, plain, all tokens" in text
    pytest.importorskip("matplotlib")
    run(tmp_path, "--figure", str(tmp_path / "choices.svg"))
    assert not capsys.readouterr().out
    drawn = (tmp_path / "choices.svg").read_text()
    assert all(word in drawn for word in ("AttnLRP", "no gate", "seed 1"))


def test_the_reward_makes_models_attend_to_the_start_token():
    script, models = one_choice, one_choice_models
    model = models.build("base", 857, seed=0)
    ids = next(models.sequences(models.tokenizer(), 2, seed=0))
    plain, rewarded = (script._loss(model, ids, factor) for factor in (0.0, 0.5))
    with models.weights_given(model):
        weights = model(ids, output_attentions=True).attentions
    torch.testing.assert_close(plain - rewarded, 0.5 * models.to_first(weights))
    lesson = script.LESSONS["sink"]
    assert lesson.start < lesson.steps
    assert script._reward(lesson, lesson.start) == 0
    assert script._reward(lesson, lesson.start + 1000) == lesson.reward
    assert not script._reward(script.LESSONS["plain"], 1000)


def test_the_mixed_model_finds_an_interaction():
    pytest.importorskip("statsmodels")
    tables = one_choice_tables
    noise = torch.Generator().manual_seed(0)
    rows = [
        {
            "mrr": 0.5 + 0.3 * (method == "AttnLRP" and choice == "no gate")
            + 0.05 * seed + 0.01 * float(torch.randn((), generator=noise)),
            "method": method,
            "choice": choice,
            "cell": f"{choice} {seed}",
        }
        for choice in ("base", "no gate")
        for seed in range(3)
        for method in tables.METHODS
    ]  # fmt: skip
    found = {method: each for _, method, each in tables.coefficients(rows)}
    assert found["AttnLRP"].low < 0.3 < found["AttnLRP"].high
    assert found["AttnLRP"].low > 0.2
    assert abs(found["ALTI-Logit"].mean) < 0.05
