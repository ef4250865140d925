"""The layout of Table 2 of Arras et al. (2025), with its values beside ours.

Its rows are the paper's methods, with one row for the gradient: the better one of two norms. Its
columns are PG2, MRR, RMA and PTA of each model. The best result of a column is bold and the second
best is underlined; random relevances and results without a counterpart in the paper are not
ranked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from captum_lrpx.sva.evaluation.contenders import PAPER_METHODS, PAPER_ROWS
from captum_lrpx.sva.evaluation.grids import Grid, Tables, csv_text, latex_table
from captum_lrpx.sva.evaluation.notes import EXTENSION, is_extension, notes
from captum_lrpx.sva.evaluation.reference import paper_reference
from captum_lrpx.sva.evaluation.scores import ALL, VIEWS, Scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from captum_lrpx.sva.evaluation.contenders import Contender
    from captum_lrpx.sva.evaluation.reference import Reference
    from captum_lrpx.sva.evaluation.run import Evaluation
    from captum_lrpx.sva.evaluation.statistics import Estimate

__all__ = ["PaperCell", "PaperLayout", "has_rows"]

COLUMNS = {"PG2": "PG-2", "MRR": "MRR", "RMA": "RMA", "PTA": "PTA"}
"""The paper's names of the measures, and ours."""

_GRADIENT, _RANDOM = "Gradient", "Random"
_HEADS = ("model", "view", "method", "measure", "mean", "std", "published", "difference", "rank")
_TEX = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
_STYLES = {"best": "bold", "second": "underline"}


@dataclass(frozen=True)
class PaperCell:
    """One number of the table.

    Attributes:
        model: Name of the model.
        view: The tokens that count.
        row: The paper's name of the method.
        method: Name of the contender.
        measure: The paper's name of the measure.
        estimate: Our mean.
        published: The paper's value, of all tokens, if it has one.
        extension: Whether the paper has no such method for such a model.
        rank: ``"best"``, ``"second"``, or empty; by the numbers as shown.
    """

    model: str
    view: str
    row: str
    method: str
    measure: str
    estimate: Estimate
    published: float | None
    extension: bool
    rank: str = ""

    @property
    def number(self) -> str:
        """Our mean as shown."""
        return f"{self.estimate.mean:.3f}"

    @property
    def difference(self) -> float | None:
        """Our mean minus the paper's."""
        return None if self.published is None else self.estimate.mean - self.published

    def __str__(self) -> str:
        mark = EXTENSION if self.extension else ""
        spread = "" if self.estimate.spread is None else f" +-{self.estimate.spread:.3f}"
        if self.published is None:
            return f"{self.number}{mark}{spread}"
        return f"{self.number}{mark}{spread} ({self.published:.3f}, {self.difference:+.3f})"


class PaperLayout(Tables):
    """The paper's Table 2, of an evaluation.

    Args:
        evaluation: Results of the paper's methods under their own names; others are left
            out.
        scores: The measures of each model, if already computed.
        reference: Published values. Default: :func:`paper_reference`.

    Raises:
        ValueError: If none of the paper's methods was compared.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        scores: Sequence[Scores] | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.evaluation = evaluation
        self.reference = paper_reference() if reference is None else reference
        compared = _compared(evaluation.contenders)
        self._rows = {
            row: [method for method in methods if method in compared]
            for row, methods in PAPER_ROWS.items()
            if not compared.isdisjoint(methods)
        }
        if not self._rows:
            raise ValueError(
                "The layout of the paper has rows for its methods only, and none of them was "
                f"compared: {', '.join(PAPER_METHODS)}."
            )
        if scores is None:
            scores = [Scores(results, evaluation.contenders) for results in evaluation.models]
        self._scores = [each for each in scores if each.values]

    @cached_property
    def cells(self) -> list[PaperCell]:
        """All numbers, of both views."""
        return list(self._found.values())

    @cached_property
    def _found(self) -> dict[tuple[str, str, str, str], PaperCell]:
        """The numbers by model, view, row and measure."""
        return {
            (cell.model, cell.view, cell.row, cell.measure): cell
            for scores in self._scores
            for view in VIEWS
            for cell in _ranked(list(self._cells_of(scores, view)))
        }

    def _cells_of(self, scores: Scores, view: str) -> Iterator[PaperCell]:
        model = scores.results.model
        for row, methods in self._rows.items():
            method = max(methods, key=partial(_mean_of_columns, scores))
            extension = is_extension(scores.results, method)
            for name, measure in COLUMNS.items():
                published = self.reference.get(model, method, measure)
                yield PaperCell(
                    model,
                    view,
                    row,
                    method,
                    name,
                    scores.means[method, view, ALL, measure],
                    None if view != VIEWS[0] or extension else published,
                    extension,
                )

    # Forms --------------------------------------------------------------------------------------

    def grids(self) -> Iterator[Grid]:
        """A table for each model and view."""
        for scores in self._scores:
            model = scores.results.model
            for view in VIEWS:
                found = {
                    row: [self._found[model, view, row, name] for name in COLUMNS]
                    for row in self._rows
                }
                styles = {
                    (place, column): _STYLES[cell.rank]
                    for place, cells in enumerate(found.values())
                    for column, cell in enumerate(cells, start=1)
                    if cell.rank
                }
                rows = tuple((row, *map(str, cells)) for row, cells in found.items())
                title = f"{model} ({len(scores.results.samples)} samples), {view}"
                yield Grid(title, ("method", *COLUMNS), rows, styles)

    def to_csv(self) -> str:
        """Write every number on a separate line."""
        rows = (
            (
                *(cell.model, cell.view, cell.method, cell.measure),
                *(cell.estimate.mean, cell.estimate.spread),
                *(cell.published, cell.difference, cell.rank),
            )
            for cell in self.cells
        )
        return csv_text(_HEADS, rows)

    def to_latex(self) -> str:
        """One table for each view: methods x (models x measures)."""
        return "\n".join(f"% {view}\n{self._latex(view)}" for view in VIEWS)

    def _latex(self, view: str) -> str:
        models = [scores.results.model for scores in self._scores]
        rows = {
            row.replace(" x ", r" $\times$ "): [
                _tex_cell(self._found[model, view, row, name])
                for model in models
                for name in COLUMNS
            ]
            for row in self._rows
        }
        return latex_table(models, [*COLUMNS], rows)

    def notes(self) -> str:
        """Explain the numbers."""
        norms = {cell.model: cell.method for cell in self.cells if cell.row == _GRADIENT}
        lines = [
            *notes(self.evaluation),
            "Best in bold, second best underlined, random relevances and extensions apart.",
        ]
        if norms:
            chosen = ", ".join(f"{method} ({model})" for model, method in norms.items())
            lines.append(f"Gradient is the norm with the higher mean over the measures: {chosen}.")
        if any(cell.published is not None for cell in self.cells):
            lines.append(
                "In brackets the published value, of other sentences unless yours are the "
                f"source's, and how far ours is above it: {self.reference.source}."
            )
        return "\n".join(lines)


def has_rows(contenders: Iterable[Contender]) -> bool:
    """Whether a method of the paper was compared, under its own name."""
    return bool(_compared(contenders))


def _compared(contenders: Iterable[Contender]) -> set[str]:
    """The paper's methods that were compared under their own names."""
    return {each.name for each in contenders if each.name == each.method} & {*PAPER_METHODS}


def _mean_of_columns(scores: Scores, method: str) -> float:
    return sum(scores.means[method, VIEWS[0], ALL, measure].mean for measure in COLUMNS.values())


def _ranked(cells: list[PaperCell]) -> Iterator[PaperCell]:
    """Mark the best and the second best cell of each measure."""
    for cell in cells:
        rivals = {
            each.number
            for each in cells
            if each.measure == cell.measure and each.row != _RANDOM and not each.extension
        }
        order = sorted(rivals - {"nan"}, key=float, reverse=True)
        takes_part = cell.row != _RANDOM and not cell.extension and cell.number in order[:2]
        rank = ("best", "second")[order.index(cell.number)] if takes_part else ""
        yield replace(cell, rank=rank)


def _tex_cell(cell: PaperCell) -> str:
    text = _TEX[cell.rank] % cell.number
    if cell.extension:
        text += r"$^\dagger$"
    if cell.estimate.spread is not None:
        text += rf" $\pm$ {cell.estimate.spread:.3f}"
    if cell.published is not None:
        text += rf" {{\scriptsize {cell.published:.3f}, {cell.difference:+.3f}}}"
    return text
