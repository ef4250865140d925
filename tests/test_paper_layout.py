"""Table 2 of Arras et al. (2025): its definitions on the embedded models, layout and values."""

import csv
import io
from dataclasses import replace

import pytest
import torch
from test_ablation import SAMPLES

from captum_lrpx import zoo
from captum_lrpx.cli import main
from captum_lrpx.metrics import per_token_accuracy
from captum_lrpx.sva import generate
from captum_lrpx.sva.evaluation import (
    PAPER_METHODS,
    Contender,
    Evaluation,
    ModelResults,
    PaperLayout,
    Report,
    Settings,
    contenders,
    evaluate,
    paper_reference,
    read_reference,
)
from captum_lrpx.sva.evaluation.scores import VIEWS, Scores

# Six samples of four tokens; the second one is the evidence, the first one special.
FIRST = [[0.1, 0.9, -0.2, -0.1]] * 6
SECOND = [[0.9, 0.5, 0.1, 0.0]] * 6
THIRD = [[0.9, 0.1, 0.5, 0.2]] * 6
NAMES = {
    "altilogit": FIRST,
    "lrpx": SECOND,
    "attnlrpx": FIRST,
    "saliency_l1": THIRD,
    "saliency_l2_squared": SECOND,
    "input_x_gradient": THIRD,
}


def evaluation(model="gpt2", **kind):
    mask = torch.ones(6, 4, dtype=torch.bool)
    evidence, special = torch.zeros_like(mask), torch.zeros_like(mask)
    evidence[:, 1], special[:, 0] = True, True
    relevances = {(name, 0): rows for name, rows in NAMES.items()}
    relevances |= {("random", draw): rows for draw, rows in enumerate([FIRST, THIRD])}
    found = ModelResults(
        model=model,
        counts={"given": 6, "kept": 6},
        accuracy=1.0,
        indices=tuple(range(6)),
        samples=SAMPLES,
        values=torch.ones(6, dtype=torch.float64),
        mask=mask,
        evidence=evidence,
        special=special,
        relevances={
            key: torch.tensor(rows, dtype=torch.float64) for key, rows in relevances.items()
        },
        faithfulness={},
        **kind,
    )
    compared = (*map(Contender, NAMES, NAMES), Contender("random", "random", draws=2))
    return Evaluation((found,), compared, Settings())


def cells(layout, view=VIEWS[0]):
    return {(cell.row, cell.measure): cell for cell in layout.cells if cell.view == view}


# Definitions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.names())
def test_random_relevances_and_norms_score_what_they_score_in_the_paper(name):
    """Random 0.50 (the paper: 0.500, 0.501); a norm the share of evidence, its random RMA."""
    methods = contenders(["random", "saliency_l1", "saliency_l2_squared"])
    samples = generate(150, "test", 1, attractors=(1, 3))
    (found,) = evaluate({name: lambda: zoo.load(name)}, samples, methods).models
    scores = Scores(found, methods)
    shares = found.evidence.sum(-1) / found.mask.sum(-1)
    for view in VIEWS:
        assert abs(scores.values["random", view, "PTA"].mean().item() - 0.5) < 0.01
    for norm in ("saliency_l1", "saliency_l2_squared"):
        of_norm = scores.values[norm, VIEWS[0], "PTA"][0]
        torch.testing.assert_close(of_norm, shares.double(), check_dtype=False)
    # Uniform relevances have the mass of the evidence's share, as in the paper's random row.
    mass = scores.values["random", VIEWS[0], "RMA"].mean().item()
    assert mass == pytest.approx(shares.mean().item(), abs=0.02)


def test_zero_counts_as_no_evidence():
    evidence = torch.tensor([[True, False]])
    assert per_token_accuracy(torch.tensor([[0.0, 0.0]]), evidence).item() == 0.5
    assert per_token_accuracy(torch.tensor([[0.1, -0.0]]), evidence).item() == 1


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "method", "measure", "value"),
    [
        ("bert-base-uncased", "attnlrpx", "PG-2", 0.775),
        ("google-bert/bert-large-uncased", "input_x_gradient", "PTA", 0.513),
        ("gpt2", "altilogit", "MRR", 0.808),
        ("openai-community/gpt2-xl", "lrpx", "RMA", 0.407),
        ("meta-llama/Llama-3.2-1B", "saliency_l1", "PG-2", 0.283),
        ("Llama-3.2-3B", "saliency_l2_squared", "PG-2", 0.275),
        ("meta-llama/Llama-3.2-3B", "random", "PTA", 0.501),
        ("bert-base-uncased", "altilogit", "PG-2", None),
        ("sva-gpt2", "lrpx", "PG-2", None),
    ],
)
def test_published_values_come_with_the_package(model, method, measure, value):
    reference = paper_reference()
    assert reference.get(model, method, measure) == value
    assert "2502.15886" in reference.source


def test_all_published_values_are_there():
    values = paper_reference().values
    assert len(values) == 6
    for model, methods in values.items():
        expected = set(PAPER_METHODS) - ({"altilogit"} if "bert" in model else set())
        assert set(methods) == expected
        assert all(set(each) == {"PG-2", "MRR", "RMA", "PTA"} for each in methods.values())


# Layout -----------------------------------------------------------------------------------------


def test_rows_and_columns_are_the_papers():
    for grid in PaperLayout(evaluation()).grids():
        assert grid.heads == ("method", "PG2", "MRR", "RMA", "PTA")
        assert [row[0] for row in grid.rows] == [
            *("ALTI-Logit", "LRP", "AttnLRP", "Gradient", "Gradient x Input", "Random")
        ]


def test_the_published_value_and_the_difference_stand_beside_ours():
    layout = PaperLayout(evaluation())
    found = cells(layout)["ALTI-Logit", "PG2"]
    assert (found.published, str(found)) == (0.867, "1.000 (0.867, +0.133)")
    assert "**1.000** (0.867, +0.133)" in layout.to_markdown()
    assert "arXiv 2502.15886, Table 2" in layout.notes()
    # They are of all tokens.
    assert cells(layout, VIEWS[1])["ALTI-Logit", "PG2"].published is None
    # Another model has none.
    other = PaperLayout(evaluation("mine"))
    assert cells(other)["LRP", "PG2"].published is None
    assert "published" not in other.notes()


def test_values_of_others_may_take_their_place(tmp_path):
    path = tmp_path / "published.json"
    path.write_text('{"source": "Someone", "values": {"gpt2": {"lrpx": {"PG-2": 0.25}}}}')
    layout = PaperLayout(evaluation(), reference=read_reference(path))
    assert str(cells(layout)["LRP", "PG2"]) == "1.000 (0.250, +0.750)"
    assert "Someone" in layout.notes()


def test_best_and_second_best():
    found = cells(PaperLayout(evaluation()))
    mrr = {row: (cell.number, cell.rank) for (row, name), cell in found.items() if name == "MRR"}
    assert mrr == {
        "ALTI-Logit": ("1.000", "best"),
        "LRP": ("0.500", "second"),
        "AttnLRP": ("1.000", "best"),
        "Gradient": ("0.500", "second"),
        "Gradient x Input": ("0.250", ""),
        "Random": ("0.625", ""),  # better than the second, but no method
    }
    shown = next(PaperLayout(evaluation()).grids())
    assert shown.styles[0, 2] == "bold"
    assert shown.styles[1, 2] == "underline"
    assert "<u>0.500</u>" in PaperLayout(evaluation()).to_markdown()


def test_one_row_is_the_better_norm_of_the_gradient():
    layout = PaperLayout(evaluation())
    assert cells(layout)["Gradient", "PG2"].method == "saliency_l2_squared"
    assert "saliency_l2_squared (gpt2)" in layout.notes()
    given = evaluation()
    one = tuple(each for each in given.contenders if each.name != "saliency_l2_squared")
    layout = PaperLayout(replace(given, contenders=one))
    assert cells(layout)["Gradient", "PG2"].method == "saliency_l1"


def test_random_has_a_mean_and_a_standard_deviation():
    found = cells(PaperLayout(evaluation("mine")))["Random", "MRR"]
    assert found.estimate.mean == pytest.approx((1 + 0.25) / 2)
    assert str(found) == "0.625 +-0.530"


def test_alti_logit_of_a_masked_model_is_an_extension():
    layout = PaperLayout(evaluation("bert-base-uncased", task="masked-lm"))
    found = cells(layout)["ALTI-Logit", "PG2"]
    assert str(found) == "1.000\u2020"
    assert (found.published, found.rank) == (None, "")
    assert "extension of this package" in layout.notes()
    assert r"1.000$^\dagger$" in layout.to_latex()


def test_csv_and_latex():
    layout = PaperLayout(evaluation())
    rows = list(csv.DictReader(io.StringIO(layout.to_csv())))
    assert len(rows) == len(layout.cells) == 6 * 4 * 2
    first = rows[0]
    assert (first["method"], first["measure"], first["rank"]) == ("altilogit", "PG2", "best")
    assert float(first["difference"]) == pytest.approx(1 - 0.867)
    latex = layout.to_latex()
    assert r"\textbf{1.000} {\scriptsize 0.867, +0.133}" in latex
    assert r"\underline{0.500}" in latex
    lines = [line for line in latex.splitlines() if line.startswith(("LRP", "Random"))]
    assert [line.count("&") for line in lines] == [4] * 4


def test_a_comparison_of_other_methods_has_no_rows():
    given = evaluation()
    others = tuple(Contender(f"my_{each.name}", each.method) for each in given.contenders)
    relevances = {
        (f"my_{name}", draw): rows for (name, draw), rows in given.models[0].relevances.items()
    }
    found = replace(given.models[0], relevances=relevances)
    with pytest.raises(ValueError, match="rows for its methods only"):
        PaperLayout(replace(given, models=(found,), contenders=others))


def test_a_report_writes_it_beside_the_others(tmp_path):
    given = evaluation()
    Report(given).write(tmp_path)
    layout = PaperLayout(given)
    assert (tmp_path / "paper.md").read_text(encoding="utf-8") == layout.to_markdown()
    assert (tmp_path / "paper.csv").read_text() == layout.to_csv()
    assert (tmp_path / "paper.tex").read_text() == layout.to_latex()


def test_the_command(capsys):
    words = ["evaluate", "--models", "sva-llama", "--sentences", "6", "--layout", "paper"]
    assert main([*words, "--dtype", "float64", "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert "| method | PG2 | MRR | RMA | PTA |" in shown
    assert "with a gated MLP" in shown
    assert main([*words, "--methods", "lrpx"]) == 0
    assert "Gradient" not in capsys.readouterr().out
