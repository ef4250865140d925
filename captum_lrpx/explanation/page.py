"""Explanations as HTML: a separate page, or a fragment for a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from captum_lrpx.characters import readable
from captum_lrpx.explanation.pictures import picture_html, regions
from captum_lrpx.explanation.pieces import colored, pieces, unit
from captum_lrpx.explanation.terminal import closing_lines, inputs, summary
from captum_lrpx.visualization.colors import VISIBLE, scale_of, translucent
from captum_lrpx.visualization.markup import LABEL, NUMBER, document, escaped, folded, table

if TYPE_CHECKING:
    from captum_lrpx.explanation.pieces import Piece
    from captum_lrpx.explanation.record import Explanation


# Letters that join, ligatures and emoji are shaped across spans as long as a span has neither
# horizontal padding nor a border and does not isolate its direction. The paragraph isolates.
_PARAGRAPH = (
    "font-size:1.2em;line-height:2;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate"
)
_BOLD = ";font-weight:bold"
_NEGATIVE = ";text-decoration:underline"
_BEYOND = ";outline:2px solid;outline-offset:-2px"
_SEAM = ";box-shadow:inset 1px 0 rgba(128,128,128,0.6)"


LONG = 40
"""Up to this many rows, a table is open at first."""


def heat_paragraph(explanation: Explanation, bold_from: int | None = None) -> str:
    """Draw the tokens in color as one paragraph, with the writing direction of the text.

    Args:
        explanation: The explanation.
        bold_from: Position of the first token of a generated text, drawn in bold.

    Returns:
        HTML with a ``span`` for each piece, all text escaped. Its title has the relevance, and the
        tokens if there are several. Negative relevance is underlined, relevance beyond the scale
        outlined.
    """
    spans: list[str] = []
    for piece, strength in colored(explanation):
        style = f"background:{translucent(strength)};border-radius:0.2em;padding:0.15em 0"
        style += _SEAM * bool(spans and not piece.gap)
        style += _BOLD * (bold_from is not None and piece.first >= bold_from)
        style += _NEGATIVE * (strength <= -VISIBLE) + _BEYOND * (abs(strength) > 1)
        title = html.escape(_tooltip(explanation, piece))
        drawn = html.escape(piece.drawn)
        spans.append(f'{piece.gap}<span style="{style}" title="{title}">{drawn}</span>')
    return f'<p dir="auto" style="{_PARAGRAPH}">{"".join(spans)}</p>'


def _tooltip(explanation: Explanation, piece: Piece) -> str:
    total = f"{piece.relevance:+.6g}"
    if piece.stop - piece.first == 1:
        return total
    parts = [
        f"{readable(explanation.tokens[index])} {explanation.relevances[index]:+.6g}"
        for index in range(piece.first, piece.stop)
    ]
    return f"{total} = {', '.join(parts)}"


def color_legend(explanation: Explanation) -> str:
    """Describe the scale of the colors, as HTML; empty if there is none.

    Args:
        explanation: The explanation.

    Returns:
        A bar with numbers, and the marks of negative relevances and those beyond the scale.
    """
    relevances = [piece.relevance for piece in pieces(explanation)]
    scale = scale_of(relevances)
    if not scale:
        return ""
    ends = translucent(-1), "transparent", translucent(1)
    bar = (
        "display:inline-block;width:8em;height:0.8em;margin:0 0.5em;"
        f"background:linear-gradient(to right,{','.join(ends)})"
    )
    largest = max(map(abs, relevances))
    outlined = '<span style="outline:2px solid;padding:0 0.2em">outlined</span>'
    beyond = f"; {outlined}: beyond the scale, up to {largest:.4g}" if largest > scale else ""
    return (
        f'<p style="font-size:0.85em"><span style="text-decoration:underline">against</span> '
        f'-{scale:.4g}<span style="{bar}"></span>+{scale:.4g} for the target{beyond}</p>'
    )


def origin(explanation: Explanation) -> str:
    """Method, model, versions and checks, in one line."""
    rules = f" (rules: {explanation.recipe})" if explanation.recipe else ""
    options = "".join(f", {name} {value}" for name, value in explanation.options.items())
    revision = f" at {explanation.revision}" if explanation.revision else ""
    versions = ", ".join(f"{name} {version}" for name, version in explanation.versions.items())
    checked = f"; {explanation.certification}" if explanation.certification else ""
    return (
        f"{explanation.method}{rules}{options}, model {explanation.model}{revision}, "
        f"{explanation.dtype}; {versions}{checked}"
    )


def fragment(explanation: Explanation) -> str:
    """Draw the heat map as a piece of HTML, for a notebook; all text is escaped.

    Args:
        explanation: The explanation.

    Returns:
        One ``div`` with its own style, which does not affect the page around it.
    """
    return (
        f"<div>{pictures(explanation)}{heat_paragraph(explanation)}{color_legend(explanation)}"
        f"<p>{'<br>'.join(map(escaped, closing_lines(explanation)))}</p></div>"
    )


def pictures(explanation: Explanation) -> str:
    """Images among the inputs with their heat maps, as HTML; empty without any."""
    return "".join(picture_html(explanation, region) for region in regions(explanation))


def to_html(explanation: Explanation) -> str:
    """Draw the explanation as one HTML page without scripts or links; all text is escaped.

    Args:
        explanation: The explanation.

    Returns:
        A complete document.
    """
    name = unit(explanation)
    heading = filter(None, (summary(explanation), inputs(explanation), explanation.standing))
    drawn = pieces(explanation)
    count = sum(each.stop - each.first for each in drawn)
    title = f"{count} {name}{'s' if count != 1 else ''} in numbers"
    heads = [("position", NUMBER), (name, LABEL), ("relevance", NUMBER)]
    rows = [
        [(piece.place, NUMBER), (piece.label, LABEL), (f"{piece.relevance:+.4f}", NUMBER)]
        for piece in drawn
    ]
    return document(
        explanation.target,
        f"<p>{'<br>'.join(map(escaped, heading))}</p>",
        pictures(explanation),
        heat_paragraph(explanation) if drawn else "",
        color_legend(explanation),
        folded(title, table(heads, rows), is_open=len(rows) <= LONG) if drawn else "",
        f"<footer>{escaped(origin(explanation))}</footer>",
    )
