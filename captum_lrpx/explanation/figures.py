"""Heat maps for papers: SVG, PDF and PNG by matplotlib, and text for LaTeX."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from captum_lrpx.characters import BLANK, NEWLINE
from captum_lrpx.explanation.pieces import colored
from captum_lrpx.explanation.terminal import legend
from captum_lrpx.extras import imported
from captum_lrpx.visualization.colors import VISIBLE, rgb, scale_of, strengths

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from matplotlib.figure import Figure

    from captum_lrpx.explanation.pieces import Piece
    from captum_lrpx.explanation.record import Explanation


_SETTINGS: Any = {
    "font.family": "monospace",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "captum_lrpx",
}
"""Text stays text, and equal pictures are equal files."""

_INCH = 72.0
_SIZE = 9.0
_CELL = 0.602 * _SIZE
"""Width in points of a character of DejaVu Sans Mono, and of most monospaced fonts."""

_LINE = 1.9 * _SIZE
_ROW = 1.6 * _SIZE
_NOTE = 0.75 * 1.4 * _SIZE
"""Points of a line of the legend."""
_MOST_LABEL = 16

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    BLANK: r"\textvisiblespace{}",
    NEWLINE: r"$\hookleftarrow$",
}


def settings() -> AbstractContextManager[None]:
    """Settings with which figures are made and saved.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    mpl = imported("matplotlib", "A plot needs matplotlib: pip install 'captum-lrpx[plot]'.")
    context: AbstractContextManager[None] = mpl.rc_context(_SETTINGS)
    return context


def latex(explanation: Explanation) -> str:
    r"""Draw a heat map as LaTeX, with ``xcolor`` and, for other scripts, XeLaTeX or LuaLaTeX.

    Args:
        explanation: The explanation.

    Returns:
        A ``\colorbox`` for each piece. Negative relevance is underlined, relevance beyond the scale
        framed; a comment states the relevance of the full color.
    """
    note = " ".join(legend(explanation).replace("bold:", "framed:").split())
    parts = [
        "% needs \\usepackage{xcolor}",
        f"% {note}",
        r"{\setlength{\fboxsep}{1pt}\raggedright",
    ]
    line = ""
    for piece, strength in colored(explanation):
        if "\n" in piece.gap:
            parts.append(f"{line}\\\\")
            line = ""
        elif piece.gap:
            line += " "
        text = "".join(_ESCAPED.get(char, char) for char in piece.label)
        if strength <= -VISIBLE:
            text = f"\\underline{{{text}}}"
        color = ",".join(map(str, rgb(strength)))
        box = r"\fcolorbox[RGB]{0,0,0}" if abs(strength) > 1 else r"\colorbox[RGB]"
        line += f"{box}{{{color}}}{{\\strut {text}}}"
        line += "\\allowbreak " if not piece.label.endswith(NEWLINE) else "\\\\\n"
    return "\n".join([*parts, line.rstrip(), r"\par}", ""])


def heat_map_figure(explanation: Explanation, width: float) -> Figure:
    """Draw the text in color, with its legend.

    Args:
        explanation: The explanation.
        width: Width in inches.
    """
    shown = colored(explanation)
    places, rows = _placed([piece for piece, _ in shown], int(width * _INCH / _CELL))
    note = _wrapped(legend(explanation).replace("bold:", "framed:"), width)
    height = ((rows + 1.5) * _LINE + (len(note) - 1) * _NOTE) / _INCH
    figure, axes = _empty(width, height)
    for (piece, strength), (row, column) in zip(shown, places, strict=True):
        x, y = column * _CELL, height * _INCH - (row + 1) * _LINE
        size = cell_len(_label(piece)) * _CELL
        _box(axes, x, y - 0.35 * _SIZE, size, 1.5 * _SIZE, strength)
        _text(axes, x, y, _label(piece))
        if strength <= -VISIBLE:
            axes.plot([x, x + size], [y - 0.2 * _SIZE] * 2, color="black", linewidth=0.7)
    for index, line in enumerate(reversed(note)):
        _text(axes, 0, 0.3 * _SIZE + index * _NOTE, line, size=0.75 * _SIZE)
    return figure


def matrix_figure(
    values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], width: float
) -> Figure:
    """Draw a table of relevances in color: layers x tokens, or generated tokens x tokens.

    Args:
        values: ``[R, C]``.
        rows: Names of the rows; the first one is drawn at the bottom.
        columns: Names of the columns.
        width: Width in inches.
    """
    names = [_short(name) for name in rows]
    left = (max(map(cell_len, names), default=0) + 1) * _CELL
    below = (max((cell_len(_short(name)) for name in columns), default=0) + 1) * _CELL
    cell = (width * _INCH - left) / max(len(columns), 1)
    flat = [value for row in values for value in row]
    scale = scale_of(flat)
    note = f"full color at {scale:.4g}; red: for the target; blue, with a line: against"
    lines = _wrapped(note if scale else "", width)
    height = (below + len(rows) * _ROW + 1.5 * _LINE + (len(lines) - 1) * _NOTE) / _INCH
    figure, axes = _empty(width, height)
    drawn = iter(strengths(flat))
    for index, name in enumerate(names):
        y = below + index * _ROW
        _text(axes, left - _CELL * (cell_len(name) + 0.5), y + 0.45 * _SIZE, name)
        for column in range(len(columns)):
            strength = next(drawn)
            x = left + column * cell
            _box(axes, x, y, cell, _ROW, strength)
            if strength <= -VISIBLE:
                ends = [x + 0.25 * cell, x + 0.75 * cell]
                axes.plot(ends, [y + _ROW / 2] * 2, color="black", linewidth=0.7)
    for column, name in enumerate(columns):
        x = left + (column + 0.5) * cell
        size = min(_SIZE, 0.95 * cell)
        label = {"rotation": 90, "ha": "center", "va": "top"}
        _text(axes, x, below - 0.4 * _SIZE, _short(name), size=size, **label)
    for index, line in enumerate(lines):
        _text(axes, 0, height * _INCH - _SIZE - index * _NOTE, line, size=0.75 * _SIZE)
    return figure


def _wrapped(note: str, width: float) -> list[str]:
    """The lines of a legend that fits a figure of so many inches."""
    return textwrap.wrap(note, max(1, int(width * _INCH / (0.75 * _CELL)))) or [""]


def _placed(shown: Sequence[Piece], cells: int) -> tuple[list[tuple[int, int]], int]:
    """Row and column of each piece, in lines of some cells, and the number of rows.

    Lines break before a word, and within a word that is longer than a line.
    """
    sizes = [cell_len(_label(piece)) for piece in shown]
    words = list(sizes)  # length of the rest of the word, from each piece on
    for index in range(len(shown) - 2, -1, -1):
        if not shown[index + 1].gap and not shown[index].label.endswith(NEWLINE):
            words[index] += words[index + 1]
    places, row, column = [], 0, 0
    for piece, size, word in zip(shown, sizes, words, strict=True):
        column += 1 if piece.gap and column else 0
        need = word if piece.gap and word <= cells else size
        if column and ("\n" in piece.gap or column + need > cells):
            row, column = row + 1, 0
        places.append((row, column))
        column += size
        if piece.label.endswith(NEWLINE):
            row, column = row + 1, 0
    return places, row + 1


def _label(piece: Piece) -> str:
    return piece.drawn.removesuffix("\n")


def _empty(width: float, height: float) -> tuple[Figure, Any]:
    """A figure without axes, in units of points."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width * _INCH)
    axes.set_ylim(0, height * _INCH)
    return figure, axes


def _box(axes: Any, x: float, y: float, width: float, height: float, strength: float) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - an extra

    color = tuple(part / 255 for part in rgb(strength))
    edge = "black" if abs(strength) > 1 else "none"
    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=edge, linewidth=0.8))


def _text(axes: Any, x: float, y: float, text: str, size: float = _SIZE, **more: Any) -> None:
    axes.text(x, y, text, fontsize=size, parse_math=False, **more)


def _short(name: str) -> str:
    return name if len(name) <= _MOST_LABEL else f"{name[: _MOST_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"
