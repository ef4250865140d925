"""Tables of what ``benchmarks/one_choice.py`` has found, and its mixed model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from why_scores import SHORT as METHODS
from why_scores import Scores, difference, mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from captum_lrpx.sva.evaluation.statistics import Estimate

    Line = dict[str, Any]
    ByRow = dict[int, float]

__all__ = ["METHODS", "coefficients", "figure", "tables"]

PAIRS = {
    "gate: uniform for signal": ("LRP, uniform gate", "LRP"),
    "attention: uniform for constant": ("AttnLRP", "LRP, uniform gate"),
    "AttnLRP above ALTI-Logit": ("AttnLRP", "ALTI-Logit"),
}
_STRIDE = 100_000
"""Rows of several seeds are put side by side at this distance."""


def tables(folder: Path, lines: Sequence[Line]) -> str:
    """All tables in Markdown.

    Args:
        folder: Where the journals are.
        lines: The finished cells.
    """
    known = {name(line): Scores(folder / f"{name(line)}.jsonl") for line in lines}
    kinds = list(dict.fromkeys((line["lesson"], line["choice"]) for line in lines))
    groups = {
        kind: [known[name(line)] for line in lines if (line["lesson"], line["choice"]) == kind]
        for kind in kinds
    }
    parts = [_cells(lines, known)]
    for title, measure, first in (
        ("Share of the first position", "first", False),
        ("MRR, without the first token", "MRR", False),
        ("MRR, all tokens", "MRR", True),
    ):
        rows = [
            [*kind, *(_text(mean(pooled(of, method, measure, first))) for method in METHODS)]
            for kind, of in groups.items()
        ]
        parts.append(_table(title, ["lesson", "model", *METHODS], rows))
    parts.append(_seeds(lines, known))
    for first in (False, True):
        rows = [
            [*kind, *(_text(_gain(of, pair, first), sign=True) for pair in PAIRS.values())]
            for kind, of in groups.items()
        ]
        title = f"Change of MRR, {'all tokens' if first else 'without the first token'}"
        parts.append(_table(title, ["lesson", "model", *PAIRS], rows))
    return "\n\n".join([*parts, *_mixed(lines, known)])


def name(line: Line) -> str:
    """What the files of a cell are called."""
    return f"{line['choice']} {line['lesson']} {line['seed']}".replace(" ", "-").replace(",", "")


def pooled(of: Sequence[Scores], method: str, measure: str, first: bool) -> ByRow:
    """A measure of a method in the models of several seeds, for each sentence of each."""
    return {
        _STRIDE * place + row: value
        for place, scores in enumerate(of)
        for row, value in scores.measure(method, measure, first=first).items()
    }


def _gain(of: Sequence[Scores], pair: tuple[str, str], first: bool) -> Estimate:
    one, other = (pooled(of, method, "MRR", first) for method in pair)
    return difference(one, other)


def _cells(lines: Sequence[Line], known: dict[str, Scores]) -> str:
    rows = [
        [
            line["lesson"],
            line["choice"],
            str(line["seed"]),
            str(line["steps"]),
            f"{line['accuracy']:.3f}",
            str(len(known[name(line)].measure("LRP", "first"))),
            f"{line['attention']:.3f}",
            *(_text(mean(known[name(line)].measure(each, "first"))) for each in METHODS[:3]),
        ]
        for line in lines
    ]
    head = ["lesson", "model", "seed", "steps", "accuracy", "n", "attention to the first"]
    return _table("Trainings", [*head, *(f"share, {each}" for each in METHODS[:3])], rows)


def _seeds(lines: Sequence[Line], known: dict[str, Scores]) -> str:
    """The MRR in each training: what another seed does."""
    rows = [
        [line["lesson"], line["choice"], str(line["seed"])]
        + [f"{mean(known[name(line)].measure(each, 'MRR')).mean:.3f}" for each in METHODS]
        for line in sorted(lines, key=lambda line: (line["lesson"], line["choice"], line["seed"]))
    ]
    title = "MRR of each training, without the first token"
    return _table(title, ["lesson", "model", "seed", *METHODS], rows)


def _text(found: Estimate, *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numbers = ["---:" if each.lstrip("+-")[:1].isdigit() else "---" for each in rows[0]]
    ruler = ["---" if place < 2 else each for place, each in enumerate(numbers)]
    body = "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *rows])
    return f"**{title}**\n\n{body}"


def figure(path: Path, folder: Path, lines: Sequence[Line], lesson: str = "plain") -> None:
    """The MRR of each training, a panel for each of three methods.

    Args:
        path: The file.
        folder: Where the journals are.
        lines: The finished cells.
        lesson: Of which lesson.
    """
    from why_figures import panels  # noqa: PLC0415 - needs matplotlib

    of = [line for line in lines if line["lesson"] == lesson]
    known = {name(line): Scores(folder / f"{name(line)}.jsonl") for line in of}
    plots: dict[str, dict[str, dict[str, Estimate]]] = {}
    for method in ("LRP", "AttnLRP", "ALTI-Logit"):
        plots[method] = {}
        for line in sorted(of, key=lambda line: line["seed"]):
            found = mean(known[name(line)].measure(method, "MRR"))
            plots[method].setdefault(f"seed {line['seed']}", {})[line["choice"]] = found
    rows = list(dict.fromkeys(line["choice"] for line in of))
    panels(path, rows, plots, "MRR of the subject")


# The mixed model --------------------------------------------------------------------------------


def _mixed(lines: Sequence[Line], known: dict[str, Scores]) -> Iterator[str]:
    """A table for each lesson that several models had."""
    for lesson in dict.fromkeys(line["lesson"] for line in lines):
        of = [line for line in lines if line["lesson"] == lesson]
        if len({line["choice"] for line in of}) < 2 or len(of) < 4:
            continue
        for first in (False, True):
            view = "all tokens" if first else "without the first token"
            title = f"Mixed model of MRR, {lesson}, {view}"
            try:
                found = coefficients(records(of, known, first))
            except ModuleNotFoundError:
                yield f"**{title}**: needs statsmodels (pip install statsmodels)."
                continue
            rows = [[*each[:2], _text(each[2], sign=True)] for each in found]
            yield _table(title, ["model", "method", "change against base and LRP"], rows)


def records(lines: Sequence[Line], known: dict[str, Scores], first: bool) -> list[Line]:
    """A row of data for each method and model: the mean over its sentences."""
    return [
        {
            "mrr": mean(known[name(line)].measure(method, "MRR", first=first)).mean,
            "method": method,
            "choice": line["choice"],
            "cell": name(line),
        }
        for line in lines
        for method in METHODS
    ]


def coefficients(rows: Sequence[Line]) -> list[tuple[str, str, Estimate]]:
    """Interactions of method and choice, with 95 % Wald intervals.

    A cell, which is a model of one seed, has a random intercept.

    Args:
        rows: Those of :func:`records`.
    """
    import pandas as pd  # noqa: PLC0415 - for this table alone
    from statsmodels.regression.mixed_linear_model import MixedLM  # noqa: PLC0415

    from captum_lrpx.sva.evaluation.statistics import Estimate  # noqa: PLC0415

    data = pd.DataFrame(rows)
    choices = [each for each in dict.fromkeys(data["choice"]) if each != "base"]
    model = MixedLM.from_formula(
        "mrr ~ C(method, Treatment('LRP')) * C(choice, Treatment('base'))", data, groups="cell"
    )
    with warnings.catch_warnings():
        # The variance of the intercepts may be nearly zero: methods differ more than models do.
        warnings.filterwarnings("ignore", message="The MLE may be on the boundary")
        fitted = model.fit(reml=True)
    bounds = fitted.conf_int()
    found = []
    for choice in choices:
        for method in METHODS[1:]:
            term = (
                f"C(method, Treatment('LRP'))[T.{method}]:C(choice, Treatment('base'))[T.{choice}]"
            )
            low, high = bounds.loc[term]
            found.append((choice, method, Estimate(fitted.params[term], low, high, len(data))))
    return found
