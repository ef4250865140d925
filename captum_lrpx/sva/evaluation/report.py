"""Tables of an evaluation: in a terminal, as Markdown, CSV and LaTeX, drawn, and per sample."""

from __future__ import annotations

import json
import math
from dataclasses import astuple, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_lrpx.files import write_text
from captum_lrpx.sva.evaluation import parquet, plot
from captum_lrpx.sva.evaluation.ablation import contributions
from captum_lrpx.sva.evaluation.grids import Grid, Tables, csv_text, latex_table, tex
from captum_lrpx.sva.evaluation.notes import EXTENSION, is_extension, notes
from captum_lrpx.sva.evaluation.paper import PaperLayout, has_rows
from captum_lrpx.sva.evaluation.scores import ALL, VIEWS, Cell, Scores
from captum_lrpx.sva.evaluation.statistics import Estimate

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from captum_lrpx.sva.evaluation.ablation import Contribution
    from captum_lrpx.sva.evaluation.reference import Reference
    from captum_lrpx.sva.evaluation.run import Evaluation


_BREAKDOWN = "PG-1"
"""The measure shown for each group of samples."""


class Report(Tables):
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
        return [
            Cell(scores.results.model, method, view, group, measure, estimate)
            for scores in self.scores
            for (method, view, group, measure), estimate in scores.means.items()
        ]

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
        cells = {
            method: [
                _cell(scores.means[method, view, ALL, name])
                + self._published(scores, view, method, name)
                for name in measures
            ]
            for method in self.methods
        }
        title = f"{scores.results.model} ({len(scores.results.samples)} samples), {view}"
        return Grid(title, ("method", *measures), self._rows(scores, cells))

    def _published(self, scores: Scores, view: str, method: str, measure: str) -> str:
        if self.reference is None or view != VIEWS[0]:
            return ""
        value = self.reference.get(scores.results.model, method, measure)
        if value is None:
            return ""
        ours = scores.means[method, view, ALL, measure].mean
        return f" (published {value:.3f}, {ours - value:+.3f})"

    def _breakdown(self, scores: Scores, view: str) -> Grid:
        counts = {group: int(rows.sum()) for group, rows in scores.groups().items()}
        cells = {
            method: [_cell(scores.means[method, view, group, _BREAKDOWN]) for group in counts]
            for method in self.methods
        }
        heads = ("method", *(f"{group} ({count})" for group, count in counts.items()))
        title = f"{scores.results.model}: {_BREAKDOWN} by group, {view}"
        return Grid(title, heads, self._rows(scores, cells))

    def _rows(
        self, scores: Scores, cells: Mapping[str, Sequence[str]]
    ) -> tuple[tuple[str, ...], ...]:
        """A row for each method; marked if the paper lacks the method for this kind of model."""
        rows = []
        for each in self.evaluation.contenders:
            mark = f" {EXTENSION}" if is_extension(scores.results, each.method) else ""
            rows.append((each.name + mark, *cells[each.name]))
        return tuple(rows)

    # Forms --------------------------------------------------------------------------------------

    def to_csv(self) -> str:
        """Write every mean on a separate line, with the fields of a cell and its estimate."""
        heads = [each.name for each in (*fields(Cell)[:-1], *fields(Estimate))]
        return csv_text((*heads, "published"), map(self._line, self.cells))

    def _line(self, cell: Cell) -> Sequence[object]:
        published = None
        if self.reference is not None and (cell.group, cell.view) == (ALL, VIEWS[0]):
            published = self.reference.get(cell.model, cell.method, cell.measure)
        *names, estimate = astuple(cell)
        return (*names, *estimate, published)

    def to_latex(self) -> str:
        """One table: methods x (models x measures), all tokens."""
        shown = [scores for scores in self.scores if scores.values]
        measures = shown[0].measures if shown else ()
        rows = {
            tex(method): [
                _tex_cell(scores.means[method, VIEWS[0], ALL, name])
                for scores in shown
                for name in measures
            ]
            for method in self.methods
        }
        return latex_table([scores.results.model for scores in shown], measures, rows)

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
                    f"{measure} ({view})": values
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
                            **{name: float(values[draw, row]) for name, values in columns.items()},
                        }

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write all tables and the results per sample.

        Args:
            folder: The folder.

        Raises:
            OSError: If it cannot be written.
        """
        place = Path(folder)
        layouts: dict[str, Report | PaperLayout] = {"table": self}
        if has_rows(self.evaluation.contenders):
            layouts["paper"] = PaperLayout(self.evaluation, self.scores)
        for name, layout in layouts.items():
            write_text(place / f"{name}.md", layout.to_markdown())
            write_text(place / f"{name}.csv", layout.to_csv())
            write_text(place / f"{name}.tex", layout.to_latex())
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
            ValueError: If no sample was explained.
        """
        plot.draw(path, self.methods, [scores for scores in self.scores if scores.values])


def _json_line(record: dict[str, Any]) -> str:
    """Convert a record to JSON, with null for an undefined measure: JSON has no NaN."""
    known = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in record.items()
    }
    return json.dumps(known, ensure_ascii=False, allow_nan=False) + "\n"


def _cell(estimate: Estimate, form: str = ".3f") -> str:
    spread = "" if estimate.spread is None else f" +-{estimate.spread:.3f}"
    return f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]{spread}"


def _effects(model: str, view: str, effects: Sequence[Contribution]) -> Grid:
    measures = list(dict.fromkeys(each.measure for each in effects))
    found = {(each.change, each.kind, each.measure): each.estimate for each in effects}
    rows = tuple(
        (change, kind, *(_cell(found[change, kind, name], "+.3f") for name in measures))
        for change, kind in dict.fromkeys((each.change, each.kind) for each in effects)
    )
    title = f"{model}: what a rule contributes, {view}"
    return Grid(title, ("rule instead of LRP's", "others", *measures), rows)


def _tex_cell(estimate: Estimate) -> str:
    spread = "" if estimate.spread is None else rf" $\pm$ {estimate.spread:.3f}"
    return f"{estimate.mean:.3f}{spread}"
