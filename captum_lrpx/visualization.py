"""Heat maps of an explanation: for the terminal, for notebooks, and as one HTML file."""

from __future__ import annotations

import html
import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

__all__ = [
    "Drawable",
    "closing_lines",
    "colors",
    "document",
    "fragment",
    "heat_map",
    "origin",
    "paint",
    "plain",
    "plain_text",
    "printable",
    "relevance_table",
    "source",
    "summary",
    "terminal",
    "to_html",
    "token_spans",
    "unit",
]

_POSITIVE = (214, 39, 40)
_NEGATIVE = (31, 119, 180)
_PAPER = (255, 255, 255)


class Drawable(Protocol):
    """What is drawn; :class:`captum_lrpx.Explanation` says what each part means."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The tokens as they stand in the text."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids; empty for words."""

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Where each token stands in the text."""

    @property
    def relevances(self) -> tuple[float, ...]:
        """Relevance of each token."""

    @property
    def value(self) -> float:
        """The explained value."""

    @property
    def sum(self) -> float:
        """Sum of the relevances."""

    @property
    def delta(self) -> float:
        """The difference of the two."""

    @property
    def target(self) -> str:
        """What is explained, in words."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def recipe(self) -> str | None:
        """Name of the rules."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the method."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def revision(self) -> str | None:
        """Commit of the model."""

    @property
    def dtype(self) -> str:
        """Precision."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages."""

    @property
    def standing(self) -> str:
        """Ranks and probabilities of what is explained, in one line; empty without them."""

    @property
    def certification(self) -> str:
        """What was checked, in one line; empty if nothing was."""


# Colors -----------------------------------------------------------------------------------------


def _color(strength: float) -> str:
    """White at 0, red at 1, blue at -1; the notation is that of CSS and of ``rich``."""
    end = _POSITIVE if strength >= 0 else _NEGATIVE
    mix = min(abs(strength), 1.0)
    red, green, blue = (
        round(paper + mix * (ink - paper)) for paper, ink in zip(_PAPER, end, strict=True)
    )
    return f"rgb({red},{green},{blue})"


def paint(relevances: Sequence[float]) -> list[str]:
    """A color for each number, relative to the largest absolute one.

    Args:
        relevances: The numbers.

    Returns:
        CSS colors: red for positive relevance, blue for negative; all white if no relevance is
        finite and non-zero.
    """
    largest = max((abs(relevance) for relevance in relevances), default=0.0)
    if not 0 < largest < float("inf"):
        return [_color(0.0)] * len(relevances)
    return [_color(relevance / largest) for relevance in relevances]


def colors(explanation: Drawable) -> list[str]:
    """A color for each token, relative to the largest relevance.

    Args:
        explanation: What to show.

    Returns:
        CSS colors, see :func:`paint`.
    """
    return paint(explanation.relevances)


# Terminal ---------------------------------------------------------------------------------------


def _gaps(explanation: Drawable) -> list[str]:
    """What stands before each token: a blank, or nothing inside a word of the text."""
    places = explanation.offsets
    inside = [
        start < stop and before[0] < before[1] and start == before[1]
        for before, (start, stop) in pairwise(places)
    ]
    return ["", *("" if joined else " " for joined in inside)][: len(places)]


def printable(text: str) -> str:
    """A text without the control characters that a terminal would obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def heat_map(explanation: Drawable) -> Text:
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
        text.append(printable(label), style=f"black on {color}")
    return text


def unit(explanation: Drawable) -> str:
    """What the entries are: ``"token"`` or ``"word"``."""
    return "token" if explanation.ids else "word"


def relevance_table(explanation: Drawable) -> Table:
    """The relevances as numbers, for a terminal.

    Args:
        explanation: What to show.

    Returns:
        A ``rich`` table with a row per token.
    """
    table = Table("position", unit(explanation), "relevance", box=None, pad_edge=False)
    table.columns[0].justify = table.columns[2].justify = "right"
    for index, (label, relevance) in enumerate(
        zip(explanation.labels, explanation.relevances, strict=True)
    ):
        table.add_row(str(index), Text(printable(label)), f"{relevance:+.4f}")
    return table


def summary(explanation: Drawable) -> str:
    """The explained value and how much of it the tokens account for, in one line."""
    return (
        f"{printable(explanation.target)} = {explanation.value:+.4f}   "
        f"sum of relevances {explanation.sum:+.4f}   delta {explanation.delta:+.4f}"
    )


def source(explanation: Drawable) -> str:
    """Method and model, in one line."""
    return printable(f"{explanation.method} on {explanation.model}")


def closing_lines(explanation: Drawable) -> tuple[str, ...]:
    """What stands below the relevances: summary, ranks, source, and what was checked."""
    lines = (
        summary(explanation),
        printable(explanation.standing),
        source(explanation),
        printable(explanation.certification),
    )
    return tuple(line for line in lines if line)


def terminal(explanation: Drawable) -> Group:
    """Heat map and closing lines, for a terminal.

    Args:
        explanation: What to show.

    Returns:
        Something that ``rich`` prints.
    """
    return Group(heat_map(explanation), *map(Text, closing_lines(explanation)))


def plain(explanation: Drawable) -> str:
    """The relevances as plain text, without color.

    Args:
        explanation: What to show.

    Returns:
        A table and the closing lines, without trailing blanks.
    """
    return "\n".join([plain_text(relevance_table(explanation)), "", *closing_lines(explanation)])


def plain_text(renderable: RenderableType) -> str:
    """What ``rich`` would print, without color and however wide it is."""
    console = Console(file=io.StringIO(), color_system=None, width=_WIDE)
    with console.capture() as capture:
        console.print(renderable, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))


_WIDE = 10_000

# HTML -------------------------------------------------------------------------------------------

_STYLE = """
body { font-family: system-ui, sans-serif; margin: 2em; max-width: 60em; color: #222; }
.tokens { font-size: 1.3em; line-height: 2; }
.tokens span { padding: 0.15em 0.1em; border-radius: 0.2em; color: #000; white-space: pre-wrap;
  unicode-bidi: isolate; }
table { border-collapse: collapse; margin-top: 1em; }
td, th { padding: 0.1em 0.8em; text-align: right; }
.token { text-align: left; }
td.token { font-family: monospace; white-space: pre; unicode-bidi: isolate; }
table.maps th { font-weight: normal; color: #666; white-space: nowrap; }
table.maps td { text-align: left; font-size: 1em; }
footer { margin-top: 2em; color: #666; font-size: 0.85em; }
"""

# A notebook shares one page with its outputs, so a fragment brings no style sheet.
_SPAN_STYLE = (
    "padding:0.15em 0.1em;border-radius:0.2em;color:#000;white-space:pre-wrap;unicode-bidi:isolate;"
)


def document(title: str, *parts: str) -> str:
    """A complete HTML page.

    Args:
        title: Its title, plain text.
        *parts: Its body, HTML.

    Returns:
        The page.
    """
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def token_spans(explanation: Drawable, style: str = "") -> str:
    """The tokens in color, as HTML.

    Args:
        explanation: What to show.
        style: CSS for each of them, besides the color.

    Returns:
        A ``span`` for each token, all text escaped.
    """
    cells = zip(
        _gaps(explanation),
        explanation.labels,
        explanation.relevances,
        colors(explanation),
        strict=True,
    )
    return "".join(
        f'{gap}<span style="{style}background:{color}" title="{relevance:+.6g}">'
        f"{html.escape(label)}</span>"
        for gap, label, relevance, color in cells
    )


def origin(explanation: Drawable) -> str:
    """Where an explanation comes from and what was checked, in one line."""
    rules = f" (rules: {explanation.recipe})" if explanation.recipe else ""
    options = "".join(f", {name} {value}" for name, value in explanation.options.items())
    revision = f" at {explanation.revision}" if explanation.revision else ""
    versions = ", ".join(f"{name} {version}" for name, version in explanation.versions.items())
    checked = f"; {explanation.certification}" if explanation.certification else ""
    return (
        f"{explanation.method}{rules}{options}, model {explanation.model}{revision}, "
        f"{explanation.dtype}; {versions}{checked}"
    )


def fragment(explanation: Drawable) -> str:
    """The heat map as a piece of HTML, for a notebook; all text is escaped.

    Args:
        explanation: What to show.

    Returns:
        One ``div`` with its own style, which leaves the page around it alone.
    """
    return (
        f'<div><p style="line-height:2">{token_spans(explanation, _SPAN_STYLE)}</p>'
        f"<p>{'<br>'.join(map(html.escape, closing_lines(explanation)))}</p></div>"
    )


def to_html(explanation: Drawable) -> str:
    """The explanation as one HTML page without scripts or links; all text is escaped.

    Args:
        explanation: What to show.

    Returns:
        A complete document.
    """
    rows = [
        f'<tr><td>{index}</td><td class="token">{html.escape(label)}</td>'
        f"<td>{relevance:+.4f}</td></tr>"
        for index, (label, relevance) in enumerate(
            zip(explanation.labels, explanation.relevances, strict=True)
        )
    ]
    shown = (summary(explanation), explanation.standing)
    name = f'<th class="token">{unit(explanation)}</th>'
    head = f"<tr><th>position</th>{name}<th>relevance</th></tr>"
    return document(
        explanation.target,
        f"<p>{'<br>'.join(map(html.escape, filter(None, shown)))}</p>",
        f'<p class="tokens">{token_spans(explanation)}</p>',
        "\n".join(["<table>", head, *rows, "</table>"]),
        f"<footer>{html.escape(origin(explanation))}</footer>",
    )
