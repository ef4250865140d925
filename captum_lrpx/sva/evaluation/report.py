"""Tables of an evaluation: in a terminal, as Markdown, CSV and LaTeX, drawn, and per sample."""

from __future__ import annotations

import csv
import io
import json
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from captum_lrpx.files import write_text
from captum_lrpx.sva.evaluation import parquet, plot
from captum_lrpx.sva.evaluation.contributions import contributions
from captum_lrpx.sva.evaluation.grids import Grid
from captum_lrpx.sva.evaluation.notes import EXTENSION, is_extension, notes
from captum_lrpx.sva.evaluation.paper import PaperLayout, has_rows, tex
from captum_lrpx.sva.evaluation.scores import ALL, VIEWS, Scores

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from captum_lrpx.sva.evaluation.benchmark import Evaluation
    from captum_lrpx.sva.evaluation.contributions import Contribution
    from captum_lrpx.sva.evaluation.reference import Reference
    from captum_lrpx.sva.evaluation.scores import Cell
    from captum_lrpx.sva.evaluation.statistics import Estimate

__all__ = ["Report"]

_BREAKDOWN = "PG-1"
"""The measure shown for each group of samples."""

_COLUMNS = (
    "model",
    "method",
    "view",
    "group",
    "measure",
    "mean",
    "low",
    "high",
    "count",
    "spread",
    "published",
)


class Report:
    """All tables of an evaluation.

    Args:
        evaluation: The evaluation.
        reference: Published values to show beside ours.
    """

    def __init__(self, evaluation: Evaluation, reference: Reference | None = None) -> None:
        self.evaluation, self.reference = evaluation, reference
        self.methods = [contender.name for contender in evaluation.contenders]
        self.scores = [Scores(results, evaluation.contenders) for results in evaluation.models]

    @cached_property
    def cells(self) -> list[Cell]:
        """All means, of all models, views and groups."""
        return [cell for scores in self.scores for cell in scores.cells()]

    @cached_property
    def contributions(self) -> list[Contribution]:
        """Effects of single rules, if combinations of rules were compared."""
        return [
            each
            for scores in self.scores
            for each in contributions(scores, self.evaluation.contenders)
        ]

    # Grids --------------------------------------------------------------------------------------

    def grids(self) -> Iterator[Grid]:
        """The tables as text."""
        for scores in self.scores:
            if not scores.values:
                continue
            model = scores.results.model
            for view in VIEWS:
                yield self._main(scores, view)
            for view in VIEWS:
                yield self._breakdown(scores, view)
            for view in VIEWS:
                effects = [
                    each for each in self.contributions if (each.model, each.view) == (model, view)
                ]
                if effects:
                    yield _effects(model, view, effects)

    def _main(self, scores: Scores, view: str) -> Grid:
        measures = [
            name for name in scores.measures if (self.methods[0], view, name) in scores.values
        ]
        found = self._found(scores.results.model, view, ALL)
        rows = tuple(
            (
                self._label(scores, method),
                *(
                    _cell(found[method, name]) + self._published(scores, view, method, name, found)
                    for name in measures
                ),
            )
            for method in self.methods
        )
        return Grid(f"{_heading(scores)}, {view}", ("method", *measures), rows)

    def _published(
        self,
        scores: Scores,
        view: str,
        method: str,
        measure: str,
        found: dict[tuple[str, str], Estimate],
    ) -> str:
        if self.reference is None or view != VIEWS[0]:
            return ""
        value = self.reference.get(scores.results.model, method, measure)
        if value is None:
            return ""
        return f" (published {value:.3f}, {found[method, measure].mean - value:+.3f})"

    def _breakdown(self, scores: Scores, view: str) -> Grid:
        groups = list(scores.groups())
        by_group = {group: self._found(scores.results.model, view, group) for group in groups}
        counts = {group: int(rows.sum()) for group, rows in scores.groups().items()}
        rows = tuple(
            (
                self._label(scores, method),
                *(_cell(by_group[group][method, _BREAKDOWN]) for group in groups),
            )
            for method in self.methods
        )
        heads = ("method", *(f"{group} ({counts[group]})" for group in groups))
        return Grid(f"{scores.results.model}: {_BREAKDOWN} by group, {view}", heads, rows)

    def _label(self, scores: Scores, method: str) -> str:
        """Name of a row, marked if the paper lacks the method for this kind of model."""
        contender = next(each for each in self.evaluation.contenders if each.name == method)
        return f"{method} {EXTENSION}" if is_extension(scores.results, contender) else method

    def _found(self, model: str, view: str, group: str) -> dict[tuple[str, str], Estimate]:
        return {
            (cell.method, cell.measure): cell.estimate
            for cell in self.cells
            if (cell.model, cell.view, cell.group) == (model, view, group)
        }

    # Forms --------------------------------------------------------------------------------------

    def tables(self) -> list[RenderableType]:
        """The tables for a terminal."""
        shown: list[RenderableType] = []
        for grid in self.grids():
            shown += [grid.rich(), Text()]
        return [*shown, Text(self.notes())]

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        return "\n".join([*(grid.markdown() for grid in self.grids()), self.notes() + "\n"])

    def to_csv(self) -> str:
        """Write every mean on a separate line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for cell in self.cells:
            each = cell.estimate
            published = self.reference and self.reference.get(cell.model, cell.method, cell.measure)
            of_all = cell.group == ALL and cell.view == VIEWS[0]
            row = (each.mean, each.low, each.high, each.count, each.spread)
            names = (cell.model, cell.method, cell.view, cell.group, cell.measure)
            writer.writerow((*names, *row, published if of_all else None))
        return text.getvalue()

    def to_latex(self) -> str:
        """One table: methods x (models x measures), all tokens."""
        measures = self.scores[0].measures
        shown = [scores for scores in self.scores if scores.values]
        columns = "l" + "r" * len(measures) * len(shown)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        span = len(measures)
        names = [rf"\multicolumn{{{span}}}{{c}}{{{tex(s.results.model)}}}" for s in shown]
        lines.append(" & ".join(["", *names]) + r" \\")
        lines += [" & ".join(["method", *measures * len(shown)]) + r" \\", r"\midrule"]
        for method in self.methods:
            cells = []
            for scores in shown:
                found = self._found(scores.results.model, VIEWS[0], ALL)
                cells += [_tex_cell(found[method, name]) for name in measures]
            lines.append(" & ".join([tex(method), *cells]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def notes(self) -> str:
        """Explain the numbers, with the numbers of samples."""
        lines = list(notes(self.evaluation))
        if self.reference is not None:
            lines.append(f"Published values: {self.reference.source}.")
        return "\n".join(lines)

    # Files --------------------------------------------------------------------------------------

    def records(self) -> Iterator[dict[str, Any]]:
        """One record per model, sample and method (and draw of a random one)."""
        for scores in self.scores:
            results = scores.results
            for contender in self.evaluation.contenders:
                columns = {
                    (view, measure): values
                    for (name, view, measure), values in scores.values.items()
                    if name == contender.name
                }
                for draw in range(contender.draws):
                    for row, sample in enumerate(results.samples):
                        yield {
                            "model": results.model,
                            "method": contender.name,
                            "draw": draw,
                            "sample": results.indices[row],
                            "number": sample.number,
                            "n_attractors": sample.n_attractors,
                            "value": float(results.values[row]),
                            **{
                                f"{measure} ({view})": float(values[draw, row])
                                for (view, measure), values in columns.items()
                            },
                        }

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write all tables and the results per sample.

        Args:
            folder: The folder.

        Raises:
            OSError: If it cannot be written.
        """
        place = Path(folder)
        write_text(place / "table.md", self.to_markdown())
        write_text(place / "table.csv", self.to_csv())
        write_text(place / "table.tex", self.to_latex())
        if has_rows(self.evaluation.contenders):
            paper = PaperLayout(self.evaluation, self.scores)
            write_text(place / "paper.md", paper.to_markdown())
            write_text(place / "paper.csv", paper.to_csv())
            write_text(place / "paper.tex", paper.to_latex())
        write_text(place / "samples.jsonl", "".join(map(_json_line, self.records())))

    def write_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the results per sample, as in ``samples.jsonl``, as a Parquet file.

        Args:
            path: The file.

        Raises:
            ImportError: If pandas or pyarrow is not installed.
            OSError: If the file cannot be written.
        """
        parquet.write(path, self.records())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the measures of all models, with their intervals.

        Args:
            path: The file; its ending sets the format.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        plot.draw(path, self.methods, [cell for cell in self.cells if cell.group == ALL])


def _json_line(record: dict[str, Any]) -> str:
    """Convert a record to JSON, with null for an undefined measure: JSON has no NaN."""
    known = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in record.items()
    }
    return json.dumps(known, ensure_ascii=False, allow_nan=False) + "\n"


def _heading(scores: Scores) -> str:
    return f"{scores.results.model} ({len(scores.results.samples)} samples)"


def _cell(estimate: Estimate) -> str:
    spread = "" if estimate.spread is None else f" +-{estimate.spread:.3f}"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]{spread}"


def _effects(model: str, view: str, effects: Sequence[Contribution]) -> Grid:
    measures = list(dict.fromkeys(each.measure for each in effects))
    found = {(each.change, each.kind, each.measure): each.estimate for each in effects}
    rows = tuple(
        (change, kind, *(_signed(found[change, kind, name]) for name in measures))
        for change, kind in dict.fromkeys((each.change, each.kind) for each in effects)
    )
    title = f"{model}: what a rule contributes, {view}"
    return Grid(title, ("rule instead of LRP's", "others", *measures), rows)


def _signed(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _tex_cell(estimate: Estimate) -> str:
    spread = "" if estimate.spread is None else rf" $\pm$ {estimate.spread:.3f}"
    return f"{estimate.mean:.3f}{spread}"
