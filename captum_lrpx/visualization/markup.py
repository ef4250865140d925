"""HTML: documents, tables, and text in them."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from captum_lrpx.characters import readable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


# Only the style of `body` and `footer` is restricted to pages: a notebook shares one page
# with its outputs, so that elements for notebooks bring their own style.
_STYLE = """
:root { color-scheme: light dark; }
body { font-family: system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }
footer { margin-top: 2em; opacity: 0.7; font-size: 0.85em; overflow-wrap: anywhere; }
"""
Cell = tuple[str, str]
"""Text of a cell, and its CSS."""

LABEL = "text-align:left;white-space:pre-wrap;unicode-bidi:isolate"
NUMBER = "text-align:right;font-variant-numeric:tabular-nums"


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
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def escaped(text: str) -> str:
    """Text as HTML that shows it, without control characters."""
    return html.escape(readable(text))


def table(heads: Sequence[Cell], rows: Iterable[Sequence[Cell]]) -> str:
    """A table with its own style, as HTML; all text is escaped.

    Args:
        heads: Text of the column names, and further CSS for each.
        rows: Text of the cells, and further CSS for each.
    """
    lines = [_row("th", heads), *(_row("td", cells) for cells in rows)]
    return f'<table style="border-collapse:collapse">{"".join(lines)}</table>'


def _row(tag: str, cells: Sequence[Cell]) -> str:
    drawn = (
        f'<{tag} style="padding:0.1em 0.8em;{style}">{escaped(text)}</{tag}>'
        for text, style in cells
    )
    return f"<tr>{''.join(drawn)}</tr>"


def folded(title: str, content: str, *, is_open: bool) -> str:
    """Put content below a title that folds it.

    Args:
        title: The title, plain text.
        content: The content, HTML.
        is_open: Whether it is open at first.
    """
    state = " open" if is_open else ""
    return f"<details{state}><summary>{escaped(title)}</summary>{content}</details>"
