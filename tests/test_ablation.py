"""Combinations of propagation rules: which there are, what each contributes, the command."""

import csv
import io

import pytest
import torch
from models import FAMILIES, tiny, token_ids

from captum_lrpx import ATTN_LRP, LRP, LRPx, TokenLogits, zoo
from captum_lrpx.cli import main
from captum_lrpx.sva import generate
from captum_lrpx.sva.evaluation import Evaluation, ModelResults, Report, Settings, ablation
from captum_lrpx.sva.evaluation.ablation import (
    ALONE,
    IN_ATTNLRP,
    ON_AVERAGE,
    RULES,
    contributions,
)
from captum_lrpx.sva.evaluation.scores import VIEWS, Scores

SAMPLES = tuple(generate(6, "test", 0, attractors=(1, 2)))
POINTS = [[0.2, 0.9, 0.0, 0.0]] * 6
SINKS = [[0.9, 0.5, 0.1, 0.0]] * 6
MISSES = [[0.0, 0.1, 0.9, 0.5]] * 6


def scores(relevances, contenders):
    """Six samples of four tokens; the second one is the evidence, the first one special."""
    mask = torch.ones(6, 4, dtype=torch.bool)
    evidence, special = torch.zeros_like(mask), torch.zeros_like(mask)
    evidence[:, 1], special[:, 0] = True, True
    found = ModelResults(
        model="m",
        counts={"given": 6, "kept": 6},
        accuracy=1.0,
        indices=tuple(range(6)),
        samples=SAMPLES,
        values=torch.ones(6, dtype=torch.float64),
        mask=mask,
        evidence=evidence,
        special=special,
        relevances={
            (each.name, 0): torch.tensor(relevances(each.name), dtype=torch.float64)
            for each in contenders
        },
        faithfulness={},
    )
    return Scores(found, contenders)


def test_all_combinations_of_rules():
    found = ablation()
    assert len(found) == len({each.recipe for each in found}) == 3 * 4 * 2 * 2
    by_name = {each.name: each.recipe for each in found}
    for name, recipe in (("values/signal", LRP), ("uniform/uniform", ATTN_LRP)):
        ours = by_name[f"{name}/identity/frozen"]
        for role in ("attention", "gate", "activation", "norm", "linear"):
            assert getattr(ours, role) == getattr(recipe, role)


def test_combinations_of_the_rules_of_some_roles():
    found = [each.name for each in ablation(["gate", "attention"])]
    assert len(found) == 12
    assert all(name.endswith("/identity/frozen") for name in found)
    assert [each.name for each in ablation(["norm"])] == [
        "values/signal/identity/frozen",
        "values/signal/identity/gradient",
    ]
    with pytest.raises(ValueError, match="not heads"):
        ablation(["heads", "gate"])


def test_a_contribution_is_the_difference_that_a_rule_makes():
    contenders = ablation()

    def relevances(name):
        points = name.startswith("uniform") or name == "values/uniform/identity/frozen"
        return POINTS if points else MISSES

    for view in VIEWS:
        found = {
            (each.change, each.kind): each.estimate
            for each in contributions(scores(relevances, contenders), contenders)
            if (each.measure, each.view) == ("PG-1", view)
        }
        assert len(found) == 3 * (2 + 3 + 1 + 1)
        assert found["attention: uniform", ALONE].mean == 1
        assert found["attention: uniform", IN_ATTNLRP].mean == 0  # the gate alone points
        assert found["attention: uniform", ON_AVERAGE].mean == pytest.approx(15 / 16)
        assert found["attention: gradient", ALONE].mean == 0
        assert found["attention: gradient", ON_AVERAGE].mean == pytest.approx(-1 / 16)
        assert found["gate: uniform", ALONE].mean == 1
        assert found["gate: uniform", ON_AVERAGE].mean == pytest.approx(1 / 12)
        assert found["norm: gradient", ALONE].mean == 0


def test_a_rule_that_takes_relevance_off_a_special_token_contributes_to_one_view_only():
    contenders = ablation(["attention"])
    made = scores(lambda name: POINTS if name.startswith("uniform") else SINKS, contenders)
    found = {
        (each.change, each.kind, each.view): each.estimate.mean
        for each in contributions(made, contenders)
        if each.measure == "PG-1"
    }
    assert {change for change, _, _ in found} == {"attention: uniform", "attention: gradient"}
    for kind in (ALONE, ON_AVERAGE):
        assert found["attention: uniform", kind, VIEWS[0]] == 1
        assert found["attention: uniform", kind, VIEWS[1]] == 0


def test_no_contributions_of_other_comparisons():
    contenders = (*ablation(["norm"]), *ablation(["gate"])[1:])
    assert list(contributions(scores(lambda _: POINTS, contenders), contenders))
    renamed = tuple(
        type(each)("lrp", each.method) if place == 0 else each
        for place, each in enumerate(contenders)
    )
    assert not list(contributions(scores(lambda _: POINTS, renamed), renamed))


def test_both_views_are_tables(tmp_path):
    contenders = ablation(["gate"])
    made = scores(lambda _: POINTS, contenders)
    report = Report(Evaluation((made.results,), contenders, Settings()))
    for view in VIEWS:
        assert f"**m: what a rule contributes, {view}**" in report.to_markdown()
    report.write(tmp_path)
    assert not (tmp_path / "paper.md").exists()  # no method of the paper


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.gated])
@pytest.mark.parametrize("contender", ablation(["gate", "activation"]), ids=lambda each: each.name)
def test_every_rule_for_a_gate_is_covered_beside_every_rule_for_its_activation(family, contender):
    """Nothing of a gated MLP is left without a rule: the call would raise."""
    forward = TokenLogits(tiny(family))
    found = LRPx(forward, recipe=contender.recipe).attribute(token_ids(), target=5)
    assert found.isfinite().all()


@pytest.mark.parametrize("name", zoo.names())
def test_every_combination_runs_on_every_embedded_model(name, tmp_path, capsys):
    """A gate, where there is one, under all of its rules, and all others beside it."""
    words = ["evaluate", "--ablate", "--models", name, "--sentences", "3", "--format", "csv"]
    assert main([*words, "--output", str(tmp_path)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len({row["method"] for row in rows}) == 48
    means = {
        row["method"]: float(row["mean"])
        for row in rows
        if (row["view"], row["group"], row["measure"]) == ("all tokens", "all", "RMA")
    }
    by_gate = {
        gate: [mean for method, mean in means.items() if method.split("/")[1] == gate]
        for gate in RULES["gate"]
    }
    assert (by_gate["signal"] != by_gate["gradient"]) == (name == "sva-llama")
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert f"{name}: what a rule contributes, all tokens" in table
    assert ("with a gated MLP" in table) == (name == "sva-llama")
