"""``compare()``: explanations of the same tokens side by side, with rank correlations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from rich.console import Group
from rich.text import Text

from captum_lrpx import metrics
from captum_lrpx.characters import readable
from captum_lrpx.explanation import Explanation, storage
from captum_lrpx.explanation.arithmetic import require_same_tokens
from captum_lrpx.explanation.certificate import verified
from captum_lrpx.explanation.matrix import matrix_of
from captum_lrpx.explanation.page import LONG, color_legend, heat_paragraph, origin, pictures
from captum_lrpx.files import write_text
from captum_lrpx.visualization.console import number_table, plain_text
from captum_lrpx.visualization.markup import document, escaped, folded, table

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    import pandas as pd
    from rich.table import Table


def compare(explanations: Iterable[Explanation], names: Iterable[str] | None = None) -> Comparison:
    """Put explanations of the same tokens side by side.

    Args:
        explanations: At least one.
        names: Names of the explanations. Default: the properties that differ, first the method.

    Returns:
        The comparison, which prints, draws and stores itself like an explanation.

    Raises:
        ValueError: If there are none, they do not have the same tokens of the same text, or
            the names are too few, too many or not distinct.

    Examples:
        >>> methods = ("lrpx", "altilogit", "integrated_gradients")
        >>> compare(explain(model, tokenizer, text, "are", method=name) for name in methods)
    """
    explanations = tuple(explanations)
    return Comparison(explanations, _names(explanations) if names is None else tuple(names))


@dataclass(frozen=True)
class Comparison:
    """Explanations of the same tokens, side by side.

    Attributes:
        explanations: The explanations.
        names: Name of each of them.
    """

    explanations: tuple[Explanation, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.explanations:
            raise ValueError("There is nothing to compare: give at least one explanation.")
        if not len(set(self.names)) == len(self.names) == len(self.explanations):
            raise ValueError(
                f"{len(self.explanations)} explanations need as many different names, not "
                f"{', '.join(map(repr, self.names))}."
            )
        require_same_tokens(self.explanations)

    @property
    def labels(self) -> tuple[str, ...]:
        """The tokens as in the text."""
        return self.explanations[0].labels

    @property
    def correlations(self) -> tuple[tuple[float, ...], ...]:
        """Spearman's rank correlation of every two explanations, over the tokens.

        Symmetric, with a diagonal of 1; NaN for an explanation whose relevances are all equal.
        Relevances count with their sign, to be kept in mind for a method without one (norms of
        gradients, attention rollout).
        """
        columns = [explanation.relevances for explanation in self.explanations]
        return tuple(tuple(spearman(ours, theirs) for theirs in columns) for ours in columns)

    def words(self) -> Comparison:
        """Compare relevances of words, see :meth:`captum_lrpx.Explanation.words`."""
        return self._each(Explanation.words)

    def fold_special(self) -> Comparison:
        """Fold all special tokens and chat templates into one entry."""
        return self._each(Explanation.fold_special)

    def _each(self, change: Callable[[Explanation], Explanation]) -> Comparison:
        return Comparison(tuple(map(change, self.explanations)), self.names)

    # Other forms ------------------------------------------------------------------------------

    def to_pandas(self) -> pd.DataFrame:
        """Convert the relevances to a data frame, a row per token and a column per explanation.

        Raises:
            ImportError: If pandas is not installed.
        """
        columns = {
            name: explanation.relevances
            for name, explanation in zip(self.names, self.explanations, strict=True)
        }
        frame: pd.DataFrame = storage.import_pandas().DataFrame(columns)
        frame.insert(0, "token", self.labels, allow_duplicates=True)
        frame.index.name = "position"
        return frame

    def correlations_to_pandas(self) -> pd.DataFrame:
        """Convert the rank correlations to a data frame.

        Raises:
            ImportError: If pandas is not installed.
        """
        frame: pd.DataFrame = storage.import_pandas().DataFrame(
            self.correlations, index=self.names, columns=self.names
        )
        return frame

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Convert all explanations to JSON; floats keep every digit.

        Args:
            path: File to write as well, atomically.

        Returns:
            The JSON text.
        """
        records = [storage.record_of(explanation) for explanation in self.explanations]
        content = {"names": self.names, "explanations": records}
        return storage.save("comparison", content, path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Comparison:
        """Read a comparison written by :meth:`to_json`.

        Args:
            source: JSON text, or the path of a file (a ``Path``).

        Returns:
            The comparison.

        Raises:
            ValueError: If it is not a comparison, or an explanation in it was changed after
                certification.
        """
        comparison = storage.load(
            "comparison",
            source,
            lambda content: cls(
                tuple(Explanation(**storage.fields_of(each)) for each in content["explanations"]),
                storage.strings_of(content, "names"),
            ),
        )
        for each in comparison.explanations:
            verified(each)
        return comparison

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Convert the comparison to one HTML page without scripts or links; all text is escaped.

        Args:
            path: File to write as well, atomically.

        Returns:
            A complete document.
        """
        maps = [
            f"<h3>{escaped(name)}</h3>{pictures(each)}{heat_paragraph(each)}{color_legend(each)}"
            for name, each in zip(self.names, self.explanations, strict=True)
        ]
        origins = "<br>".join(escaped(origin(each)) for each in self.explanations)
        page = document(
            self._targets(),
            f"<p>{escaped(self._targets())}</p>",
            *maps,
            self._html_tables(),
            f"<footer>{origins}</footer>",
        )
        write_text(path, page)
        return page

    def _repr_html_(self) -> str:
        """Relevances and rank correlations, for a notebook."""
        return f"<div><p>{escaped(self._targets())}</p>{self._html_tables()}</div>"

    def _html_tables(self) -> str:
        matrix = matrix_of(self.explanations, self.names)
        relevances = folded(
            "relevances in numbers", matrix.html(), is_open=len(matrix.rows) <= LONG
        )
        heads = [("rank correlation", _LABEL), *((name, _NUMBER) for name in self.names)]
        rows = [
            [(name, _LABEL), *((f"{value:.2f}", _NUMBER) for value in row)]
            for name, row in zip(self.names, self.correlations, strict=True)
        ]
        return relevances + table(heads, rows)

    def _targets(self) -> str:
        """Explained values, once if all are the same."""
        return " / ".join(dict.fromkeys(each.target for each in self.explanations))

    # Terminal ---------------------------------------------------------------------------------

    def __str__(self) -> str:
        """The tables, as plain text."""
        return "\n\n".join([readable(self._targets()), *map(plain_text, self._tables())])

    def __rich__(self) -> Group:
        """The tables in color, for a terminal."""
        relevances, correlations = self._tables()
        heading = Text(readable(self._targets()))
        return Group(heading, Text(), relevances, Text(), correlations)

    def _tables(self) -> tuple[Table, Table]:
        correlations = number_table("rank correlation", *self.names, left=0)
        for name, row in zip(self.names, self.correlations, strict=True):
            correlations.add_row(Text(readable(name)), *(f"{value:.2f}" for value in row))
        return matrix_of(self.explanations, self.names).terminal(), correlations


_NUMBER = "text-align:right"
_LABEL = "text-align:left"


def _names(explanations: Sequence[Explanation]) -> tuple[str, ...]:
    """Names from the method and further properties that differ."""
    parts: list[Callable[[Explanation], str]] = [
        lambda each: each.method,
        lambda each: each.recipe or "",
        lambda each: each.model,
        lambda each: each.target,
        lambda each: ", ".join(f"{name} {value}" for name, value in each.options.items()),
    ]
    names = [parts[0](each) for each in explanations]
    for part in parts[1:]:
        more = [part(each) for each in explanations]
        if len(set(names)) < len(names) and len(set(more)) > 1:
            names = [
                f"{name}, {word}" if word else name for name, word in zip(names, more, strict=True)
            ]
    if len(set(names)) < len(names):
        names = [f"{name} {number}" for number, name in enumerate(names, 1)]
    return tuple(names)


# Rank correlation -------------------------------------------------------------------------------


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's rank correlation: Pearson's correlation of the ranks.

    Args:
        left: Numbers ``[T]``.
        right: As many ``[T]``.

    Returns:
        From -1 to 1; tied numbers share the mean of their ranks. NaN if one side is constant,
        or has a NaN.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(left) != len(right):
        raise ValueError(f"{len(left)} numbers cannot be correlated with {len(right)}.")
    if not left:
        return math.nan
    rows = [torch.tensor([side], dtype=torch.float64, device="cpu") for side in (left, right)]
    return float(metrics.spearman(*rows))
