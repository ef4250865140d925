"""A ledger as a table, a data frame and a plot."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from captum_lrpx.characters import readable
from captum_lrpx.visualization.markup import table as html_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from captum_lrpx.conservation.book import By, Ledger
    from captum_lrpx.conservation.tally import Kind

__all__ = ["page", "plot", "table", "to_pandas"]

_FIGURE_SIZE = (8.0, 4.0)


Line = tuple[list[str], str, str]
"""Kind, path and layer (as far as a table shows them), amount, and share of the value."""


def table(book: Ledger, example: int, by: By) -> Table:
    """Table of the lines of one example, their sum, and the residual.

    Args:
        book: The ledger.
        example: Index of the example in the batch.
        by: See :meth:`captum_lrpx.conservation.Ledger.rows`.
    """
    shown = Table(title=_title(book), title_justify="left")
    shown.add_column("kind", no_wrap=True)
    if by == "entry":
        shown.add_column("path", overflow="fold")
    if by != "kind":
        shown.add_column("layer", justify="right")
    shown.add_column("amount", justify="right", no_wrap=True)
    shown.add_column("of the value", justify="right", no_wrap=True)
    lines, totals = _lines(book, example, by)
    for cells, amount, share in lines:
        shown.add_row(*map(Text, cells), amount, share)
    shown.add_section()
    for (cells, amount, share), style in zip(totals, (None, "bold", None), strict=True):
        shown.add_row(*map(Text, cells), amount, share, style=style)
    return shown


def page(book: Ledger, example: int, by: By) -> str:
    """The table as a piece of HTML, for a notebook; all text is escaped."""
    labels = {"kind": ["kind"], "layer": ["kind", "layer"], "entry": ["kind", "path", "layer"]}[by]
    left, right = "text-align:left", "text-align:right"
    heads = [*((label, left) for label in labels), ("amount", right), ("of the value", right)]
    lines, totals = _lines(book, example, by)
    rows = [
        [*((cell, left) for cell in cells), (amount, right), (share, right)]
        for cells, amount, share in (*lines, *totals)
    ]
    return f"<div><p>{html.escape(readable(_title(book)))}</p>{html_table(heads, rows)}</div>"


def _title(book: Ledger) -> str:
    return f"Ledger of {book.method}"


def _lines(book: Ledger, example: int, by: By) -> tuple[list[Line], list[Line]]:
    """Lines of a table, and the totals below."""
    value = float(book.value[example])

    def line(cells: list[str], amount: float, form: str = "+.6f") -> Line:
        return cells, f"{amount:{form}}", f"{amount / value:.1%}" if value else ""

    lines = []
    for kind, path, layer, amount in book.rows(by):
        number = "" if layer is None else str(layer)
        cells = {"kind": [kind], "layer": [kind, number], "entry": [kind, path, number]}[by]
        lines.append(line(cells, float(amount[example])))
    blank = [""] * {"kind": 0, "layer": 1, "entry": 2}[by]
    totals = [
        line(["sum of the lines", *blank], float(book.total[example])),
        line(["explained value", *blank], value),
        line(["residual", *blank], float(book.residual[example]), "+.1e"),
    ]
    return lines, totals


def to_pandas(book: Ledger, by: By) -> pd.DataFrame:
    """All lines of all examples; see :meth:`captum_lrpx.conservation.Ledger.to_pandas`."""
    try:
        import pandas as pd  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ImportError(
            "A data frame needs the package 'pandas': pip install 'captum-lrpx[pandas]'."
        ) from error
    records = [
        {
            "example": example,
            "kind": kind,
            "path": path,
            "layer": layer,
            "amount": float(amount[example]),
            "share": float(amount[example] / book.value[example]),
        }
        for example in range(len(book.value))
        for kind, path, layer, amount in book.rows(by)
    ]
    frame = pd.DataFrame(records, columns=["example", "kind", "path", "layer", "amount", "share"])
    typed: pd.DataFrame = frame.astype({"layer": "Int64"})
    return typed


def plot(book: Ledger, example: int, ax: Axes | None) -> Axes:
    """Stacked bars; see :meth:`captum_lrpx.conservation.Ledger.plot`."""
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ImportError(
            "A plot needs the package 'matplotlib': pip install 'captum-lrpx[plot]'."
        ) from error
    if ax is None:
        _, ax = plt.subplots(figsize=_FIGURE_SIZE, layout="constrained")
    numbers = sorted({entry.layer for entry in book.entries if entry.layer is not None})
    layers: list[int | None] = [None, *numbers]
    above, below = [0.0] * len(layers), [0.0] * len(layers)
    for kind in book.by_kind():
        amounts = _heights(book, example, kind, layers)
        bottoms = [above[i] if amount >= 0 else below[i] for i, amount in enumerate(amounts)]
        ax.bar(range(len(layers)), amounts, bottom=bottoms, label=kind)
        for i, amount in enumerate(amounts):
            (above if amount >= 0 else below)[i] += amount
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.set_xticks(range(len(layers)), ["outside", *map(str, numbers)])
    ax.set_xlabel("layer")
    ax.set_ylabel("amount of the explained value")
    ax.set_title(f"{book.method}: {float(book.value[example]):.4g}")
    ax.legend()
    return ax


def _heights(book: Ledger, example: int, kind: Kind, layers: list[int | None]) -> list[float]:
    by_layer = book.by_layer(kind)
    return [float(by_layer[layer][example]) if layer in by_layer else 0.0 for layer in layers]
