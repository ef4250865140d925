"""Dot plots of what ``benchmarks/why.py`` has found: one finding each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from why_scores import SHORT, Scores, difference, mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from captum_lrpx.sva.evaluation.statistics import Estimate

__all__ = ["draw"]

LOOKS = (("#0b4f9e", "o"), ("#c2410c", "D"), ("#15803d", "s"), ("#6b7280", "^"))
"""Color and marker of each series: told apart without the color, too."""
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "captum-lrpx",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
}
WITHOUT, WITH = "without the first token", "all tokens"

Series = "Mapping[str, Mapping[str, Estimate]]"


def dots(axes: Axes, rows: Sequence[str], series: Mapping[str, Mapping[str, Estimate]]) -> None:
    """Means with intervals, a line of the plot for each row.

    Args:
        axes: Where.
        rows: Labels from top to bottom.
        series: For each name in the legend the estimates by row.
    """
    gap = 0.56 / max(1, len(series) - 1) if len(series) > 1 else 0
    for index, (name, found) in enumerate(series.items()):
        color, marker = LOOKS[index]
        there = [row for row in rows if row in found]
        heights = [rows.index(row) + gap * (index - (len(series) - 1) / 2) for row in there]
        means = [found[row].mean for row in there]
        errors = [
            [found[row].mean - found[row].low for row in there],
            [found[row].high - found[row].mean for row in there],
        ]
        axes.errorbar(
            means,
            heights,
            xerr=errors,
            fmt=marker,
            color=color,
            label=name,
            markersize=4.5,
            elinewidth=1.4,
        )
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    for place in range(1, len(rows)):
        axes.axhline(place - 0.5, color="#f1f3f5", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)


def panels(
    path: Path,
    rows: Sequence[str],
    plots: Mapping[str, Mapping[str, Mapping[str, Estimate]]],
    label: str,
    *,
    shares: bool = True,
    line: float | None = None,
) -> None:
    """One panel for each model, with one legend.

    Args:
        path: The file.
        rows: Labels from top to bottom.
        plots: For each title the series of :func:`dots`.
        label: Of the horizontal axis.
        shares: Whether the axis is from 0 to 1.
        line: Where to draw a line.
    """
    with mpl.rc_context(STYLE):
        height = 1.35 + len(rows) * (0.3 if len(next(iter(plots.values()))) < 3 else 0.4)
        figure = Figure(figsize=(8.4, height), layout="constrained")
        every = figure.subplots(1, len(plots), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, series) in zip(every, plots.items(), strict=True):
            dots(axes, rows, series)
            axes.set_title(title, loc="left")
            axes.set_xlabel(label)
            if line is not None:
                axes.axvline(line, color="#374151", linewidth=1)
            if shares:
                axes.set_xlim(-0.02, 1.02)
        handles, names = every[0].get_legend_handles_labels()
        if len(names) > 1:
            figure.legend(
                handles, names, loc="outside lower center", ncols=len(names), frameon=False
            )
        figure.savefig(path, metadata={"Date": None})


# Findings ---------------------------------------------------------------------------------------


def _methods(scores: Scores) -> dict[str, dict[str, Estimate]]:
    return {
        name: {
            method: mean(scores.measure(method, "MRR", first=first)) for method in scores.methods()
        }
        for name, first in ((WITHOUT, False), (WITH, True))
    }


RULES = {
    "gate: uniform for signal\n(attention constant)": ("LRP, uniform gate", "LRP"),
    "gate: uniform for signal\n(attention uniform)": ("AttnLRP", "AttnLRP, signal gate"),
    "gate: mirrored for signal\n(attention constant)": ("LRP, mirrored gate", "LRP"),
    "attention: uniform for constant\n(gate signal)": ("AttnLRP, signal gate", "LRP"),
    "attention: uniform for constant\n(gate uniform)": ("AttnLRP", "LRP, uniform gate"),
}


def _rules(scores: Scores) -> dict[str, dict[str, Estimate]]:
    return {
        name: {
            row: difference(
                scores.measure(one, "MRR", first=first), scores.measure(other, "MRR", first=first)
            )
            for row, (one, other) in RULES.items()
        }
        for name, first in ((WITHOUT, False), (WITH, True))
    }


def _shares(scores: Scores) -> dict[str, dict[str, Estimate]]:
    names = {
        "right": "the right first token",
        "none": "no first token: the first word",
        "other": "a full stop",
    }
    return {
        name: {
            method: mean(scores.measure(method, "first", setting=setting))
            for method in SHORT
            if method in scores.methods(setting)
        }
        for setting, name in names.items()
        if setting in scores.settings()
    }


CAUSES = {
    f"{rule}\n{words}": (one, other, setting)
    for rule, one, other in (
        ("gate: uniform for signal", "LRP, uniform gate", "LRP"),
        ("attention: uniform for constant", "AttnLRP", "LRP, uniform gate"),
    )
    for words, setting in (
        ("the right first token", "right"),
        ("no first token", "none"),
        ("a full stop first", "other"),
        ("the first token's values zero", "right zero values"),
    )
}
"""The two rules by which LRP and AttnLRP differ, in each setting."""


def _causes(scores: Scores) -> dict[str, dict[str, Estimate]]:
    return {
        name: {
            row: difference(
                scores.measure(one, "MRR", first=first, setting=setting),
                scores.measure(other, "MRR", first=first, setting=setting),
            )
            for row, (one, other, setting) in CAUSES.items()
            if {one, other} <= set(scores.methods(setting))
        }
        for name, first in ((WITHOUT, False), (WITH, True))
    }


PREDICTED = {
    "the right first token": "right",
    "its value read with the mean weight": "right mean weight",
    "its value not read by others": "right zero weight",
    "its values zero": "right zero values",
    "no first token": "none",
    "a full stop first": "other",
}


def _accuracy(scores: Scores) -> dict[str, dict[str, Estimate]]:
    there = scores.settings("samples")
    rows = {row: setting for row, setting in PREDICTED.items() if setting in there}
    return {"right": {row: mean(scores.accuracy(setting)) for row, setting in rows.items()}}


def _faithful(scores: Scores) -> dict[str, dict[str, Estimate]]:
    return {
        "correlation with leaving one out": {
            method: mean(scores.measure(method, "LOO-r"))
            for method in scores.methods()
            if scores.measure(method, "LOO-r")
        }
    }


def draw(models: Mapping[str, Scores], folder: Path) -> None:
    """Draw all figures.

    Args:
        models: By name.
        folder: Where the files go.
    """
    order = (
        *SHORT[:1],
        "LRP, mirrored gate",
        *SHORT[1:2],
        "LRP, sink rule",
        *SHORT[2:4],
        "ALTI-Logit, no start",
        "IFR",
        "Gradient, L1",
        "Gradient, L2 squared",
        "Gradient x Input",
    )
    there = {method for scores in models.values() for method in scores.methods()}
    rows = [method for method in order if method in there]

    def all_of(kind: object) -> dict[str, dict[str, dict[str, Estimate]]]:
        return {name: kind(scores) for name, scores in models.items()}  # type: ignore[operator]

    def file(name: str) -> Path:
        return folder / f"benchmark-{name}.svg"

    panels(file("methods"), rows, all_of(_methods), "MRR of the subject")
    panels(
        file("rules"), list(RULES), all_of(_rules), "change of MRR, paired", shares=False, line=0
    )
    panels(file("shares"), SHORT, all_of(_shares), "share of the first position")
    panels(
        file("causes"), list(CAUSES), all_of(_causes), "change of MRR, paired", shares=False, line=0
    )
    accuracies = all_of(_accuracy)
    panels(
        file("sink"),
        list(PREDICTED),
        accuracies,
        "sentences predicted right (line: chance)",
        line=0.5,
    )
    panels(
        file("faithful"),
        rows,
        all_of(_faithful),
        "correlation with leaving one out",
        shares=False,
        line=0,
    )
