"""The comparison of rules, first tokens and sinks, on an embedded model."""

from __future__ import annotations

import itertools
import sys

import pytest
import sinks
import torch
import why
import why_page
import why_scores

from captum_lrpx import LRPx, zoo
from captum_lrpx.metrics import mean_reciprocal_rank
from captum_lrpx.sva import generate, write_jsonl
from captum_lrpx.targets import LogitDifference

FIRST = "<s>"


@pytest.fixture(scope="module")
def llama():
    model, tokenizer = zoo.load("sva-llama")
    return model.requires_grad_(False), tokenizer


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("why") / "samples.jsonl"
    write_jsonl(path, generate(12, "test", seed=0, attractors=(1, 2)))
    return path


@pytest.fixture(scope="module")
def journal(samples, tmp_path_factory):
    """What all parts find of eight sentences."""
    path = tmp_path_factory.mktemp("why") / "journal.jsonl"
    run(samples, path)
    return path


def run(samples, path, *more):
    given = [str(samples), "--model", "sva-llama", "--journal", str(path), "--first-token", FIRST]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["why.py", *given, "--sentences", "8", "--few", "3", *more])
        why.main()


def asked(llama, text="the keys to the cabinet"):
    model, tokenizer = llama
    ids = tokenizer(text, return_tensors="pt").input_ids
    good, bad = tokenizer("is are", add_special_tokens=False).input_ids
    return LogitDifference(model), ids, (None, good, bad)


def test_a_run_goes_on_where_it_was_cut_off(samples, journal, tmp_path):
    whole = journal.read_text()
    cut = tmp_path / "cut.jsonl"
    cut.write_text(whole[: len(whole) // 2])
    run(samples, cut)

    def found(path):
        scores = why_scores.Scores(path)
        return {
            (setting, method): scores.relevance(setting, method)
            for setting in scores.settings()
            for method in scores.methods(setting)
        }

    assert found(cut) == found(journal)
    run(samples, journal)
    assert journal.read_text() == whole


def test_sentences_are_those_of_the_evaluation_and_fewer_are_the_first_of_more(
    samples, journal, tmp_path
):
    assert len(why.draw(samples, 8, 0)) == 8
    some = tmp_path / "some.jsonl"
    run(samples, some, "--parts", "firsts", "--some", "4")
    fewer = why_scores.Scores(some).relevance("none", "AttnLRP")
    more = why_scores.Scores(journal).relevance("none", "AttnLRP")
    assert len(fewer) == 4 < len(more)
    for row, relevances in fewer.items():
        assert relevances == pytest.approx(more[row], abs=1e-4)


def test_measures_are_those_of_the_package(journal):
    scores = why_scores.Scores(journal)
    found = scores.relevance("right", "LRP")
    with_first, without = (scores.measure("LRP", "MRR", first=first) for first in (True, False))
    samples = scores._found["right", "samples"]
    for row, relevances in found.items():
        one, evidence = torch.tensor([relevances]), torch.tensor([samples["evidence"][row]]) > 0
        assert samples["special"][row] == [1] + [0] * (len(relevances) - 1)
        assert with_first[row] == pytest.approx(float(mean_reciprocal_rank(one, evidence)))
        rest = mean_reciprocal_rank(one[:, 1:], evidence[:, 1:])
        assert without[row] == pytest.approx(float(rest))
        share = abs(relevances[0]) / sum(map(abs, relevances))
        assert scores.measure("LRP", "first")[row] == pytest.approx(share, abs=1e-5)
    same = why_scores.difference(without, without)
    assert (same.mean, same.low, same.high, same.count) == (0, 0, 0, len(found))
    assert set(scores.account("AttnLRP")) >= {"tokens", "softmax"}
    totals = [
        sum(parts)
        for parts in zip(
            *(book.values() for book in scores.account("AttnLRP").values()), strict=True
        )
    ]
    assert totals == pytest.approx([1] * 3, abs=1e-3)


def test_without_the_softmax_in_all_layers_attnlrp_is_lrp_with_a_uniform_gate(journal):
    scores = why_scores.Scores(journal)
    names = [name for name in scores.methods() if "constant from" in name]
    found = [scores.relevance("right", name) for name in names]
    assert found[0] == scores.relevance("right", "LRP, uniform gate")
    assert all(one != other for one, other in itertools.pairwise(found) if one.keys())


def test_the_first_token_gives_nothing_to_others(llama):
    forward, ids, arguments = asked(llama)
    before = forward(ids, *arguments)
    usual = LRPx(forward).attribute(ids, additional_forward_args=arguments)
    with sinks.zero_values(llama[0]):
        assert not torch.allclose(forward(ids, *arguments), before, atol=1e-3)
        changed = LRPx(forward).attribute(ids, additional_forward_args=arguments)
    assert usual[0, 0].abs() > 1e-3
    assert changed[0, 0] == 0
    assert torch.equal(forward(ids, *arguments), before)
    with (
        pytest.raises(ValueError, match="no value projections"),
        sinks.zero_values(torch.nn.Linear(2, 2)),
    ):
        pass


def test_the_sink_rule_changes_the_explanation_alone(llama):
    forward, ids, arguments = asked(llama)
    before = forward(ids, *arguments)
    implementation = llama[0].config._attn_implementation
    with sinks.constant_value(llama[0]):
        torch.testing.assert_close(forward(ids, *arguments), before)
        method = LRPx(forward, recipe=sinks.SINK_RULE)
        found = method.attribute(ids, additional_forward_args=arguments)
    assert llama[0].config._attn_implementation == implementation
    assert found[0, 0] == 0
    assert found[0, 1:].abs().max() > 1e-2


def test_the_first_token_is_read_with_a_constant_weight(llama):
    forward, ids, arguments = asked(llama)
    noted = {}
    before = forward(ids, *arguments)
    with sinks.weights_noted(llama[0], noted):
        torch.testing.assert_close(forward(ids, *arguments), before)
    assert sorted(noted) == list(range(len(llama[0].model.layers)))
    (weights,) = noted[0]
    assert weights.shape == (1, llama[0].config.num_attention_heads, ids.shape[1] - 1)
    # Of two tokens, the second alone reads the first: with its own weights nothing changes.
    two = ids[:, :2]
    noted.clear()
    with sinks.weights_noted(llama[0], noted):
        usual = forward(two, *arguments)
    own = {layer: each[0, :, 0] for layer, (each,) in noted.items()}
    with sinks.constant_weight(llama[0], own):
        torch.testing.assert_close(forward(two, *arguments), usual)
    with sinks.constant_weight(llama[0], {layer: each / 2 for layer, each in own.items()}):
        assert not torch.allclose(forward(two, *arguments), usual, atol=1e-3)


def test_masking_the_first_token_is_leaving_it_out(llama):
    """With rotary positions; so it is no setting of its own."""
    forward, ids, arguments = asked(llama)
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    masked = forward(ids, mask, *arguments[1:])
    torch.testing.assert_close(masked, forward(ids[:, 1:], *arguments), atol=1e-4, rtol=1e-4)


def test_dropping_what_flows_to_the_first_token_is_not_counting_it(llama):
    """Nothing comes back from the first position: what the other tokens have does not change."""
    forward, ids, arguments = asked(llama)
    usual = LRPx(forward).attribute(ids, additional_forward_args=arguments)

    def dropped(_module, _inputs, values):
        first, others = values[:, :1].detach(), values[:, 1:]
        return torch.cat([first, others], 1)

    handles = [
        module.register_forward_hook(dropped)
        for name, module in llama[0].named_modules()
        if name.endswith("self_attn.v_proj")
    ]
    try:
        with pytest.warns(UserWarning, match="no rule"):
            found = LRPx(forward, strict=False).attribute(ids, additional_forward_args=arguments)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(found[:, 1:], usual[:, 1:])
    assert found[0, 0] == 0


def test_tables_and_figures_are_made_of_a_journal(journal, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "images").mkdir()
    sections = [*why_page.TABLES, "why-short"]
    marks = "\n".join(f"<!-- begin {name} -->\nold\n<!-- end {name} -->" for name in sections)
    (tmp_path / "tables.md").write_text(f"# Tables\n\n{marks}\n\nthe rest\n")
    monkeypatch.setattr(why_page, "DOCS", tmp_path)
    monkeypatch.setattr(why_page, "PAGE", tmp_path / "tables.md")
    monkeypatch.setattr(sys, "argv", ["why_page.py", f"toy={journal}", "--short", f"toy={journal}"])
    why_page.main()
    assert "toy process time:" in capsys.readouterr().out
    text = (tmp_path / "tables.md").read_text()
    assert text.startswith("# Tables")
    assert text.endswith("the rest\n")
    assert "old" not in text
    scores = why_scores.Scores(journal)
    each = why_scores.mean(scores.measure("AttnLRP", "MRR"))
    assert f"{each.mean:.3f} [{each.low:.3f}, {each.high:.3f}]" in text
    assert "| a full stop as first token |" in text
    found = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert found == [
        f"benchmark-{name}.svg"
        for name in ("causes", "faithful", "methods", "rules", "shares", "sink")
    ]
    assert all("<svg" in path.read_text() for path in (tmp_path / "images").iterdir())
    with pytest.raises(ValueError, match="no section 'other'"):
        why_page.put(text, "other", "")
