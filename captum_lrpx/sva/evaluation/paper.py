"""The layout of Table 2 of Arras et al. (2025), with its values beside ours.

Its rows are the paper's methods, with one row for the gradient: the better one of two norms. Its
columns are PG2, MRR, RMA and PTA of each model. The best result of a column is bold and the second
best is underlined; random relevances and results without a counterpart in the paper are not
ranked.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from rich.text import Text

from captum_lrpx.sva.evaluation.contenders import PAPER_METHODS
from captum_lrpx.sva.evaluation.grids import Grid
from captum_lrpx.sva.evaluation.notes import EXTENSION, is_extension, notes
from captum_lrpx.sva.evaluation.reference import paper_reference
from captum_lrpx.sva.evaluation.scores import VIEWS, Scores
from captum_lrpx.sva.evaluation.statistics import Estimate, estimates, resampling

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from captum_lrpx.sva.evaluation.benchmark import Evaluation
    from captum_lrpx.sva.evaluation.contenders import Contender
    from captum_lrpx.sva.evaluation.reference import Reference

__all__ = ["PaperCell", "PaperLayout", "has_rows", "tex"]

COLUMNS = {"PG2": "PG-2", "MRR": "MRR", "RMA": "RMA", "PTA": "PTA"}
"""The paper's names of the measures, and ours."""

_GRADIENT = "Gradient"
_RANDOM = "Random"
_ROWS = {
    "ALTI-Logit": ("altilogit",),
    "LRP": ("lrpx",),
    "AttnLRP": ("attnlrpx",),
    _GRADIENT: ("saliency_l1", "saliency_l2_squared"),
    "Gradient x Input": ("input_x_gradient",),
    _RANDOM: ("random",),
}
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


class PaperLayout:
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
        self._contenders = {
            each.name: each for each in evaluation.contenders if each.name == each.method
        }
        if scores is None:
            scores = [Scores(results, evaluation.contenders) for results in evaluation.models]
        self._scores = [each for each in scores if each.values]
        if not has_rows(evaluation.contenders):
            raise ValueError(
                "The layout of the paper has rows for its methods only, and none of them was "
                f"compared: {', '.join(PAPER_METHODS)}."
            )

    @cached_property
    def cells(self) -> list[PaperCell]:
        """All numbers, of both views."""
        return [
            cell
            for scores in self._scores
            for view in VIEWS
            for cell in _ranked(list(self._cells_of(scores, view)))
        ]

    def _cells_of(self, scores: Scores, view: str) -> Iterator[PaperCell]:
        resampled = resampling(len(scores.results.samples))
        for row, methods in _ROWS.items():
            chosen = self._better(scores, methods)
            if chosen is None:
                continue
            for name, measure in COLUMNS.items():
                (estimate,) = estimates(scores.values[chosen.name, view, measure][None], resampled)
                published = self.reference.get(scores.results.model, chosen.name, measure)
                extension = is_extension(scores.results, chosen)
                yield PaperCell(
                    scores.results.model,
                    view,
                    row,
                    chosen.name,
                    name,
                    estimate,
                    None if view != VIEWS[0] or extension else published,
                    extension,
                )

    def _better(self, scores: Scores, methods: tuple[str, ...]) -> Contender | None:
        """Method of a row: if there are several, the one with the highest mean over the columns."""
        compared = [self._contenders[name] for name in methods if name in self._contenders]
        if len(compared) < 2:
            return compared[0] if compared else None

        def mean(contender: Contender) -> float:
            return sum(
                float(scores.values[contender.name, VIEWS[0], measure].nanmean())
                for measure in COLUMNS.values()
            )

        return max(compared, key=mean)

    # Forms --------------------------------------------------------------------------------------

    def grids(self) -> Iterator[Grid]:
        """A table for each model and view."""
        for scores in self._scores:
            model = scores.results.model
            for view in VIEWS:
                found = {
                    (cell.row, cell.measure): cell
                    for cell in self.cells
                    if (cell.model, cell.view) == (model, view)
                }
                names = list(dict.fromkeys(row for row, _ in found))
                styles = {
                    (place, column): _STYLES[found[row, name].rank]
                    for place, row in enumerate(names)
                    for column, name in enumerate(COLUMNS, start=1)
                    if found[row, name].rank
                }
                rows = tuple((row, *(str(found[row, name]) for name in COLUMNS)) for row in names)
                title = f"{model} ({len(scores.results.samples)} samples), {view}"
                yield Grid(title, ("method", *COLUMNS), rows, styles)

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
        """Write every number on a separate line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEADS)
        for cell in self.cells:
            names = (cell.model, cell.view, cell.method, cell.measure)
            ours = (cell.estimate.mean, cell.estimate.spread)
            writer.writerow((*names, *ours, cell.published, cell.difference, cell.rank))
        return text.getvalue()

    def to_latex(self) -> str:
        """One table for each view: methods x (models x measures)."""
        return "\n".join(self._latex(view) for view in VIEWS)

    def _latex(self, view: str) -> str:
        found = {
            (cell.model, cell.row, cell.measure): cell for cell in self.cells if cell.view == view
        }
        models = list(dict.fromkeys(model for model, _, _ in found))
        span = len(COLUMNS)
        heads = [rf"\multicolumn{{{span}}}{{c}}{{{tex(model)}}}" for model in models]
        lines = [
            f"% {view}",
            rf"\begin{{tabular}}{{l{'r' * span * len(models)}}}",
            r"\toprule",
            " & ".join(["", *heads]) + r" \\",
            " & ".join(["method", *list(COLUMNS) * len(models)]) + r" \\",
            r"\midrule",
        ]
        for row in dict.fromkeys(row for _, row, _ in found):
            cells = [_tex_cell(found[model, row, name]) for model in models for name in COLUMNS]
            lines.append(" & ".join([row.replace(" x ", r" $\times$ "), *cells]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

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
    return any(each.method in PAPER_METHODS and each.name == each.method for each in contenders)


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


def tex(text: str) -> str:
    """Escape a text for LaTeX."""
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")


def _tex_cell(cell: PaperCell) -> str:
    text = _TEX[cell.rank] % cell.number
    if cell.extension:
        text += r"$^\dagger$"
    if cell.estimate.spread is not None:
        text += rf" $\pm$ {cell.estimate.spread:.3f}"
    if cell.published is not None:
        text += rf" {{\scriptsize {cell.published:.3f}, {cell.difference:+.3f}}}"
    return text
