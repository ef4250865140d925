"""``compare()``: explanations of the same tokens side by side, with rank correlations."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from captum_lrpx import metrics
from captum_lrpx.explanation import Explanation, storage
from captum_lrpx.explanation.arithmetic import require_same_tokens
from captum_lrpx.explanation.certificate import verified
from captum_lrpx.files import write_text
from captum_lrpx.visualization import (
    document,
    origin,
    paint,
    plain_text,
    printable,
    token_spans,
    unit,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    import pandas as pd

__all__ = ["Comparison", "compare", "spearman"]


def compare(explanations: Iterable[Explanation], names: Iterable[str] | None = None) -> Comparison:
    """Put explanations of the same tokens side by side.

    Args:
        explanations: At least one.
        names: What to call them. Default: what tells them apart, the method if that does.

    Returns:
        The comparison, which prints, draws and stores itself like an explanation.

    Raises:
        ValueError: If there are none, if they are not of the same tokens of the same text, or if
            the names are not as many or not different.

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
        names: What each of them is called.
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
        """The tokens as they stand in the text."""
        return self.explanations[0].labels

    @property
    def correlations(self) -> tuple[tuple[float, ...], ...]:
        """Spearman's rank correlation of every two explanations, over the tokens.

        Symmetric, with a diagonal of 1; NaN for an explanation whose relevances are all the same.
        Relevances count with their sign: that of a method without one (the norms of gradients,
        attention rollout) can only be compared with that in mind.
        """
        columns = [explanation.relevances for explanation in self.explanations]
        return tuple(tuple(spearman(ours, theirs) for theirs in columns) for ours in columns)

    def words(self) -> Comparison:
        """The comparison of the words, see :meth:`captum_lrpx.Explanation.words`."""
        return self._each(Explanation.words)

    def fold_special(self) -> Comparison:
        """The comparison with one entry for all special tokens that were added."""
        return self._each(Explanation.fold_special)

    def _each(self, change: Callable[[Explanation], Explanation]) -> Comparison:
        return Comparison(tuple(map(change, self.explanations)), self.names)

    # Other forms ------------------------------------------------------------------------------

    def to_pandas(self) -> pd.DataFrame:
        """The relevances as a data frame, a row per token and a column per explanation.

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
        """The rank correlations as a data frame.

        Raises:
            ImportError: If pandas is not installed.
        """
        frame: pd.DataFrame = storage.import_pandas().DataFrame(
            self.correlations, index=self.names, columns=self.names
        )
        return frame

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """All explanations as JSON; floats keep every digit.

        Args:
            path: File to write it to as well, atomically.

        Returns:
            The JSON text.
        """
        records = [storage.record_of(explanation) for explanation in self.explanations]
        content = {"names": self.names, "explanations": records}
        return storage.save("comparison", content, path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Comparison:
        """Read what :meth:`to_json` wrote.

        Args:
            source: JSON text, or the path of a file (a ``Path``).

        Returns:
            The comparison.

        Raises:
            ValueError: If it is not a comparison, or an explanation in it was changed after it was
                certified.
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
        """The comparison as one HTML page without scripts or links; all text is escaped.

        Args:
            path: File to write it to as well, atomically.

        Returns:
            A complete document.
        """
        maps = "".join(
            f'<tr><th>{html.escape(name)}</th><td class="tokens">{token_spans(each)}</td></tr>'
            for name, each in zip(self.names, self.explanations, strict=True)
        )
        origins = [html.escape(origin(each)) for each in self.explanations]
        page = document(
            self._targets(),
            f"<p>{html.escape(self._targets())}</p>",
            f'<table class="maps">{maps}</table>',
            self._html_relevances(),
            self._html_correlations(),
            f"<footer>{'<br>'.join(origins)}</footer>",
        )
        if path is not None:
            write_text(path, page)
        return page

    def _repr_html_(self) -> str:
        """Relevances and rank correlations, for a notebook."""
        target = html.escape(self._targets())
        return f"<div><p>{target}</p>{self._html_relevances()}{self._html_correlations()}</div>"

    def _html_relevances(self) -> str:
        # Style is inline: a notebook shares one page with its outputs.
        painted = [paint(explanation.relevances) for explanation in self.explanations]
        rows = []
        for index, label in enumerate(self.labels):
            cells = [
                f'<td style="{_NUMBER};color:#000;background:{colors[index]}">'
                f"{explanation.relevances[index]:+.4f}</td>"
                for explanation, colors in zip(self.explanations, painted, strict=True)
            ]
            name = f'<td class="token" style="{_LABEL}">{html.escape(label)}</td>'
            rows.append(f"<tr><td>{index}</td>{name}{''.join(cells)}</tr>")
        for name, values in self._totals():
            cells = [f'<td style="{_NUMBER}">{value:+.4f}</td>' for value in values]
            rows.append(f'<tr><td></td><td style="{_LABEL}">{name}</td>{"".join(cells)}</tr>')
        heads = ["position", unit(self.explanations[0]), *self.names]
        return _html_table(heads, rows)

    def _html_correlations(self) -> str:
        rows = []
        for name, row in zip(self.names, self.correlations, strict=True):
            cells = [f'<td style="{_NUMBER}">{value:.2f}</td>' for value in row]
            rows.append(f'<tr><td style="{_LABEL}">{html.escape(name)}</td>{"".join(cells)}</tr>')
        return _html_table(["rank correlation", *self.names], rows)

    def _targets(self) -> str:
        """What is explained, once if it is the same in all."""
        return " / ".join(dict.fromkeys(each.target for each in self.explanations))

    # Terminal ---------------------------------------------------------------------------------

    def __str__(self) -> str:
        """The tables, as plain text."""
        return "\n\n".join([printable(self._targets()), *map(plain_text, self._tables())])

    def __rich__(self) -> Group:
        """The tables in color, for a terminal."""
        relevances, correlations = self._tables()
        heading = Text(printable(self._targets()))
        return Group(heading, Text(), relevances, Text(), correlations)

    def _tables(self) -> tuple[Table, Table]:
        table = _table("position", unit(self.explanations[0]), *self.names)
        table.columns[1].justify = "left"
        painted = [paint(explanation.relevances) for explanation in self.explanations]
        for index, label in enumerate(self.labels):
            cells = [
                Text(f"{explanation.relevances[index]:+.4f}", f"black on {colors[index]}")
                for explanation, colors in zip(self.explanations, painted, strict=True)
            ]
            table.add_row(str(index), Text(printable(label)), *cells)
        table.add_section()
        for name, values in self._totals():
            table.add_row("", name, *(f"{value:+.4f}" for value in values))
        correlations = _table("rank correlation", *self.names)
        correlations.columns[0].justify = "left"
        for name, row in zip(self.names, self.correlations, strict=True):
            correlations.add_row(Text(printable(name)), *(f"{value:.2f}" for value in row))
        return table, correlations

    def _totals(self) -> list[tuple[str, list[float]]]:
        return [
            ("sum", [explanation.sum for explanation in self.explanations]),
            ("delta", [explanation.delta for explanation in self.explanations]),
            ("value", [explanation.value for explanation in self.explanations]),
        ]


_NUMBER = "text-align:right"
_LABEL = "text-align:left;white-space:pre;unicode-bidi:isolate"


def _html_table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in heads)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(Text(printable(head)), justify="right", overflow="fold")
    return table


def _names(explanations: Sequence[Explanation]) -> tuple[str, ...]:
    """The method of each, and what else tells them apart."""
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
        From -1 to 1; numbers that tie share the mean of their ranks. NaN where one side is all the
        same, or has a NaN.

    Raises:
        ValueError: If they are not as many.
    """
    if len(left) != len(right):
        raise ValueError(f"{len(left)} numbers cannot be correlated with {len(right)}.")
    if not left:
        return math.nan
    rows = [torch.tensor([side], dtype=torch.float64, device="cpu") for side in (left, right)]
    return float(metrics.spearman(*rows))
