"""Heat maps of explanations: for the terminal, for notebooks, and as one HTML file."""

from captum_lrpx.visualization.characters import readable
from captum_lrpx.visualization.colors import paint
from captum_lrpx.visualization.matrix import Matrix, matrix_of
from captum_lrpx.visualization.page import (
    LONG,
    color_legend,
    document,
    folded,
    fragment,
    heat_paragraph,
    origin,
    pictures,
    table,
    to_html,
)
from captum_lrpx.visualization.pictures import picture_blocks, picture_png, regions
from captum_lrpx.visualization.pieces import Piece, character_runs, pieces, unit
from captum_lrpx.visualization.terminal import (
    closing_lines,
    heat_map,
    legend,
    plain,
    plain_text,
    relevance_table,
    source,
    styles,
    summary,
    terminal,
)

__all__ = [
    "LONG",
    "Matrix",
    "Piece",
    "character_runs",
    "closing_lines",
    "color_legend",
    "document",
    "folded",
    "fragment",
    "heat_map",
    "heat_paragraph",
    "legend",
    "matrix_of",
    "origin",
    "paint",
    "picture_blocks",
    "picture_png",
    "pictures",
    "pieces",
    "plain",
    "plain_text",
    "readable",
    "regions",
    "relevance_table",
    "source",
    "styles",
    "summary",
    "table",
    "terminal",
    "to_html",
    "unit",
]
