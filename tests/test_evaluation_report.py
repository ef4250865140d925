"""Scores, intervals, contributions and tables, from relevances that are made up."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from captum_lrpx.cli import main
from captum_lrpx.sva import generate
from captum_lrpx.sva.evaluation import (
    Contender,
    Evaluation,
    ModelResults,
    Report,
    Settings,
    read_reference,
)
from captum_lrpx.sva.evaluation.scores import ALL, VIEWS
from captum_lrpx.sva.evaluation.statistics import estimates, resampling

SAMPLES = tuple(generate(6, "test", 0, attractors=(1, 2)))
TOKENS = 4  # a special one, the evidence, two others


def results(relevances, model="m"):
    """Six samples of four tokens; the second one is the evidence, the first one special."""
    mask = torch.ones(6, TOKENS, dtype=torch.bool)
    evidence, special = torch.zeros_like(mask), torch.zeros_like(mask)
    evidence[:, 1], special[:, 0] = True, True
    found = {key: torch.tensor(rows, dtype=torch.float64) for key, rows in relevances.items()}
    counts = {"given": 7, "kept": 6}
    values = torch.ones(6, dtype=torch.float64)
    return ModelResults(
        model, counts, 1.0, tuple(range(6)), SAMPLES, values, mask, evidence, special, found, {}
    )


POINTS = [[0.1, 0.9, 0.0, 0.0]] * 6
SINKS = [[0.9, 0.5, 0.1, 0.0]] * 6
MISSES = [[0.0, 0.1, 0.9, 0.5]] * 6
UNDEFINED = [[float("nan")] * TOKENS] * 6


@pytest.fixture
def report():
    random = {("random", draw): rows for draw, rows in enumerate([POINTS, MISSES])}
    found = results({("a_b", 0): POINTS, ("sink", 0): SINKS, **random})
    contenders = (
        Contender("a_b", "lrpx"),
        Contender("sink", "lrpx"),
        Contender("random", "random", draws=2),
    )
    return Report(Evaluation((found,), contenders, Settings()))


def cell(report, method, measure, view=VIEWS[0], group=ALL):
    (found,) = (
        each.estimate
        for each in report.cells
        if (each.method, each.measure, each.view, each.group) == (method, measure, view, group)
    )
    return found


def test_measures_with_and_without_special_tokens(report):
    assert cell(report, "a_b", "PG-1").mean == 1
    assert cell(report, "sink", "PG-1").mean == 0
    assert cell(report, "sink", "PG-2").mean == 1
    assert cell(report, "sink", "MRR").mean == pytest.approx(0.5)
    assert cell(report, "sink", "RMA").mean == pytest.approx(0.5 / 1.5)
    assert cell(report, "sink", "PG-1", VIEWS[1]).mean == 1
    assert cell(report, "sink", "RMA", VIEWS[1]).mean == pytest.approx(0.5 / 0.6)


def test_a_random_method_is_the_mean_of_its_draws(report):
    found = cell(report, "random", "PG-1")
    assert found.mean == pytest.approx(0.5)
    assert found.spread == pytest.approx(np.std([1, 0], ddof=1))
    assert cell(report, "a_b", "PG-1").spread is None


def test_groups(report):
    groups = {each.group for each in report.cells}
    attractors = {sample.n_attractors for sample in SAMPLES}
    numbers = {sample.number for sample in SAMPLES}
    assert groups == {ALL, *numbers} | {
        f"{count} attractor{'s' * (count != 1)}" for count in attractors
    }
    for number in numbers:
        count = sum(sample.number == number for sample in SAMPLES)
        assert cell(report, "a_b", "PG-1", group=number).count == count


# Intervals --------------------------------------------------------------------------------------


def test_intervals_are_those_of_a_loop_over_resamples():
    values = torch.rand(1, 1, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = resampling(30, seed=1, resamples=200)
    assert weights.sum(-1).eq(30).all()
    means = [np.mean(np.repeat(values[0, 0].numpy(), row.long().numpy())) for row in weights]
    (found,) = estimates(values, weights)
    assert found.mean == pytest.approx(values.mean().item())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_intervals_cover_the_true_mean():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(300, 1, 50, generator=generator, dtype=torch.float64)
    found = estimates(values, resampling(50))
    covered = sum(each.low <= 0.5 <= each.high for each in found)
    assert 0.9 <= covered / len(found) <= 0.98


def test_what_is_not_defined_does_not_count():
    values = torch.tensor([[[1.0, float("nan"), 3.0]], [[float("nan")] * 3]], dtype=torch.float64)
    found, nothing = estimates(values, resampling(3))
    assert (found.mean, found.count) == (2, 2)
    assert 1 <= found.low <= found.high <= 3
    assert np.isnan(nothing.mean)
    assert nothing.count == 0


def test_resamples_are_seeded_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    assert torch.equal(resampling(20, 5), resampling(20, 5))
    assert not torch.equal(resampling(20, 5), resampling(20, 6))
    assert torch.equal(torch.get_rng_state(), before)


# Forms ------------------------------------------------------------------------------------------


def test_csv_has_every_mean(report):
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(rows) == len(report.cells)
    for row, each in zip(rows, report.cells, strict=True):
        assert float(row["mean"]) == each.estimate.mean
        assert (row["method"], row["group"]) == (each.method, each.group)
        assert row["published"] == ""


def test_markdown_and_latex(report):
    text = report.to_markdown()
    assert "| a_b | 1.000 [1.000, 1.000] |" in text
    assert "6 of 7 samples" in text
    latex = report.to_latex()
    assert r"a\_b & 1.000 & 1.000 &" in latex
    assert r"0.500 $\pm$ 0.707" in latex
    rows = [line for line in latex.splitlines() if line.startswith((r"a\_b", "sink", "random"))]
    assert [row.count("&") for row in rows] == [6, 6, 6]


def test_a_model_without_explained_samples_leaves_the_others_their_columns(report):
    nothing = replace(results({}, "nothing"), samples=())
    shown = replace(report.evaluation, models=(nothing, *report.evaluation.models))
    assert Report(shown).to_latex() == report.to_latex()
    none = Report(replace(report.evaluation, models=(nothing,)))
    assert r"a\_b \\" in none.to_latex()
    assert none.cells == list(none.grids()) == list(none.records()) == []
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="no sample of any model was explained"):
        none.plot("plot.svg")


def test_both_views_are_shown_of_all_samples_and_of_groups(report):
    titles = [grid.title for grid in report.grids()]
    assert titles == [
        *(f"m (6 samples), {view}" for view in VIEWS),
        *(f"m: PG-1 by group, {view}" for view in VIEWS),
    ]
    assert "as in Arras et al. (2025); text tokens: without them" in report.notes()


def test_pta_goes_by_the_sign_and_pta_k_by_the_rank(report):
    """Those of "sink" are positive for three of four tokens, the second of which is evidence."""
    assert cell(report, "sink", "PTA").mean == pytest.approx(2 / 4)
    assert cell(report, "sink", "PTA-K").mean == pytest.approx(2 / 4)
    assert cell(report, "sink", "PTA", VIEWS[1]).mean == pytest.approx(2 / 3)
    assert cell(report, "sink", "PTA-K", VIEWS[1]).mean == 1


def test_what_a_reader_has_to_know_is_in_the_notes():
    contenders = (Contender("altilogit", "altilogit"), Contender("lrpx", "lrpx"))
    relevances = {("altilogit", 0): POINTS, ("lrpx", 0): SINKS}

    def shown(*, include_wrong=False, **kind):
        found = replace(results(relevances), **kind)
        settings = Settings(include_wrong=include_wrong)
        return Report(Evaluation((found,), contenders, settings)).to_markdown()

    assert "extension of this package" not in shown()
    extended = shown(task="masked-lm")
    assert "| altilogit † |" in extended
    assert "† ALTI-Logit for masked language models is an extension of this package" in extended
    assert "m: with a gated MLP, LRP's results rest on" in shown(gated=True)
    assert "gated MLP" not in shown()
    assert "the form that it predicts" in shown(include_wrong=True)
    assert "the form that it predicts" not in shown()


def test_published_values_stand_beside_ours(report, tmp_path):
    path = tmp_path / "published.json"
    path.write_text(json.dumps({"source": "Someone", "values": {"m": {"sink": {"PG-2": 0.25}}}}))
    shown = Report(report.evaluation, read_reference(path))
    assert "(published 0.250, +0.750)" in shown.to_markdown()
    assert "Published values: Someone." in shown.to_markdown()
    published = [
        row for row in csv.DictReader(io.StringIO(shown.to_csv())) if row["published"] != ""
    ]
    assert [(row["method"], row["measure"], row["view"]) for row in published] == [
        ("sink", "PG-2", VIEWS[0])
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"source": "x", "values": {"m": 3}}'),
        "[" * 100_000,
        f'{{"source": "x", "values": {{"m": {{"lrpx": {{"PG-1": 1{"0" * 400}}}}}}}}}',
    ],
    ids=["empty", "list", "object", "number", "deep", "huge"],
)
def test_a_file_without_published_values(tmp_path, text):
    path = tmp_path / "published.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="has no published values"):
        read_reference(path)


def test_files(report, tmp_path):
    report.write(tmp_path)
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 6 * (1 + 1 + 2)
    first = json.loads(lines[0])
    assert first["PG-1 (all tokens)"] == 1
    assert (tmp_path / "table.md").read_text() == report.to_markdown()
    assert (tmp_path / "table.csv").read_text() == report.to_csv()
    assert (tmp_path / "table.tex").read_text() == report.to_latex()


def test_a_picture(report, tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert text.startswith("<?xml")


@pytest.mark.parametrize("rows", [POINTS, UNDEFINED], ids=["defined", "undefined"])
def test_parquet_and_json_lines_are_the_same_table(tmp_path, rows):
    pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    found = results({("a_b", 0): SINKS, ("random", 0): rows, ("random", 1): MISSES})
    contenders = (Contender("a_b", "lrpx"), Contender("random", "random", draws=2))
    report = Report(Evaluation((found,), contenders, Settings()))
    report.write(tmp_path)
    report.write_parquet(tmp_path / "samples.parquet")
    of_parquet = pd.read_parquet(tmp_path / "samples.parquet")
    of_json = pd.read_json(tmp_path / "samples.jsonl", lines=True, precise_float=True)
    pd.testing.assert_frame_equal(of_parquet, of_json, check_exact=True, check_dtype=False)
    pd.testing.assert_frame_equal(of_parquet, pd.DataFrame(report.records()), check_exact=True)
    assert len(of_parquet) == 6 * 3
    assert of_parquet["RMA (all tokens)"].isna().any() == (rows is not POINTS)


def test_a_measure_that_is_not_defined_is_null(tmp_path):
    found = results({("a_b", 0): UNDEFINED})
    report = Report(Evaluation((found,), (Contender("a_b", "lrpx"),), Settings()))
    report.write(tmp_path)
    assert "NaN" not in (tmp_path / "samples.jsonl").read_text()
    first = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert first["RMA (all tokens)"] is None


@pytest.mark.parametrize(
    ("module", "extra"),
    [("matplotlib.figure", "plot"), ("pandas", "parquet"), ("pyarrow", "parquet")],
)
def test_extras_that_are_missing(report, tmp_path, monkeypatch, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    write = report.plot if extra == "plot" else report.write_parquet
    with pytest.raises(ImportError, match=rf"captum-lrpx\[{extra}\]"):
        write(tmp_path / "file.png")


@pytest.mark.parametrize(
    ("module", "option"), [("matplotlib.figure", "--plot"), ("pyarrow", "--parquet")]
)
def test_extras_are_asked_for_before_the_run(tmp_path, monkeypatch, capsys, module, option):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    words = ["evaluate", "--output", str(tmp_path / "run"), option, str(tmp_path / "file")]
    assert main(words) == 2
    assert f"captum-lrpx[{option.strip('-')}]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# The command ------------------------------------------------------------------------------------


def test_the_command_on_a_file_of_samples(tmp_path, capsys):
    from captum_lrpx.sva import write_jsonl

    write_jsonl(tmp_path / "samples.jsonl", SAMPLES)
    words = ["evaluate", "--models", "sva-gpt2", "--samples", str(tmp_path / "samples.jsonl")]
    words += [
        "--methods",
        "lrpx",
        "integrated_gradients",
        "--option",
        "n_steps=3",
        "--faithfulness",
    ]
    assert main([*words, "--output", str(tmp_path / "run"), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    measures = {row["measure"] for row in rows}
    assert {"PG-1", "RMA", "LOO-r", "LOO-rho", "ABPC"} <= measures
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["methods"][1]["options"]["n_steps"] == 3
    assert manifest["samples"]["count"] == 6
    assert main([*words, "--output", str(tmp_path / "run")]) == 2
    assert "resume it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ablate", "--methods", "lrpx"], "give one of them"),
        (["--sentences", "0"], "at least 1"),
        (["--methods", "nope"], "Unknown method"),
        (["--models", "sva-bert", "sva-bert"], "different names"),
        (["--option", "n_steps=3", "--methods", "lrpx"], "no option 'n_steps'"),
        (["--plot", "nowhere/plot.svg"], "no folder 'nowhere' for 'nowhere/plot.svg'"),
        (["--reference", "nowhere.json"], "nowhere.json"),
        (["--ablate", "heads"], "A role is one of attention, gate, activation, norm, not heads"),
        (["--ablate", "--layout", "paper"], "--ablate compares rules"),
        (["--layout", "paper", "--methods", "attention_rollout"], "has rows for altilogit"),
    ],
)
def test_errors_of_usage(words, message, capsys):
    assert main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err
