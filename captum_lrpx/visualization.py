"""Heat maps of an explanation: for the terminal, and as one HTML file."""

from __future__ import annotations

import html
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from captum_lrpx.explanation import Explanation

__all__ = ["colors", "heat_map", "relevance_table", "summary", "to_html"]

_POSITIVE = (214, 39, 40)
_NEGATIVE = (31, 119, 180)
_PAPER = (255, 255, 255)


def _color(strength: float) -> str:
    """White at 0, red at 1, blue at -1; the notation is that of CSS and of ``rich``."""
    end = _POSITIVE if strength >= 0 else _NEGATIVE
    mix = min(abs(strength), 1.0)
    red, green, blue = (
        round(paper + mix * (ink - paper)) for paper, ink in zip(_PAPER, end, strict=True)
    )
    return f"rgb({red},{green},{blue})"


def colors(explanation: Explanation) -> list[str]:
    """A color for each token, relative to the largest relevance.

    Args:
        explanation: What to show.

    Returns:
        CSS colors: red for positive relevance, blue for negative; all white if no relevance is
        finite and non-zero.
    """
    largest = max((abs(relevance) for relevance in explanation.relevances), default=0.0)
    if not 0 < largest < float("inf"):
        return [_color(0.0)] * len(explanation.relevances)
    return [_color(relevance / largest) for relevance in explanation.relevances]


def _gaps(explanation: Explanation) -> list[str]:
    """What stands before each token: a blank, or nothing inside a word of the text."""
    places = explanation.offsets
    inside = [
        start < stop and before[0] < before[1] and start == before[1]
        for before, (start, stop) in pairwise(places)
    ]
    return ["", *("" if joined else " " for joined in inside)][: len(places)]


def _printable(label: str) -> str:
    """A token without the control characters that a terminal would obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in label)


def heat_map(explanation: Explanation) -> Text:
    """The tokens in color, for a terminal.

    Args:
        explanation: What to show.

    Returns:
        A ``rich`` text: red for positive relevance, blue for negative.
    """
    text = Text()
    for gap, label, color in zip(
        _gaps(explanation), explanation.labels, colors(explanation), strict=True
    ):
        text.append(gap)
        text.append(_printable(label), style=f"black on {color}")
    return text


def relevance_table(explanation: Explanation) -> Table:
    """The relevances as numbers, for a terminal.

    Args:
        explanation: What to show.

    Returns:
        A ``rich`` table with a row per token.
    """
    table = Table("position", "token", "relevance", box=None, pad_edge=False)
    table.columns[0].justify = table.columns[2].justify = "right"
    for index, (label, relevance) in enumerate(
        zip(explanation.labels, explanation.relevances, strict=True)
    ):
        table.add_row(str(index), Text(_printable(label)), f"{relevance:+.4f}")
    return table


def summary(explanation: Explanation) -> str:
    """The explained value and how much of it the tokens account for, in one line."""
    return (
        f"{explanation.target} = {explanation.value:+.4f}   "
        f"sum of relevances {explanation.sum:+.4f}   delta {explanation.delta:+.4f}"
    )


_STYLE = """
body { font-family: system-ui, sans-serif; margin: 2em; max-width: 60em; color: #222; }
.tokens { font-size: 1.3em; line-height: 2; }
.tokens span { padding: 0.15em 0.1em; border-radius: 0.2em; color: #000; white-space: pre-wrap; }
table { border-collapse: collapse; margin-top: 1em; }
td, th { padding: 0.1em 0.8em; text-align: right; }
td.token { text-align: left; font-family: monospace; white-space: pre; }
footer { margin-top: 2em; color: #666; font-size: 0.85em; }
"""


def to_html(explanation: Explanation) -> str:
    """The explanation as one HTML page without scripts or links; all text is escaped.

    Args:
        explanation: What to show.

    Returns:
        A complete document.
    """
    spans, rows = [], []
    cells = zip(
        _gaps(explanation),
        explanation.labels,
        explanation.relevances,
        colors(explanation),
        strict=True,
    )
    for index, (gap, label, relevance, color) in enumerate(cells):
        shown = html.escape(label)
        spans.append(
            f'{gap}<span style="background:{color}" title="{relevance:+.6g}">{shown}</span>'
        )
        rows.append(
            f'<tr><td>{index}</td><td class="token">{shown}</td><td>{relevance:+.4f}</td></tr>'
        )
    versions = ", ".join(f"{name} {version}" for name, version in explanation.versions.items())
    footer = (
        f"{explanation.method} (rules: {explanation.recipe}), model {explanation.model}, "
        f"{explanation.dtype}; {versions}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(explanation.target)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<p>{html.escape(summary(explanation))}</p>\n"
        f'<p class="tokens">{"".join(spans)}</p>\n'
        "<table>\n<tr><th>position</th><th>token</th><th>relevance</th></tr>\n"
        + "\n".join(rows)
        + f"\n</table>\n<footer>{html.escape(footer)}</footer>\n</body>\n</html>\n"
    )
