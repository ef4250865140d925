"""``draw()``: a picture of an explanation for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from captum_lrpx.attr.generation_result import LLMRelevanceResult
from captum_lrpx.characters import readable
from captum_lrpx.explanation.figures import heat_map_figure, latex, matrix_figure, settings
from captum_lrpx.files import check_writable, write_text

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from torch import Tensor

    from captum_lrpx.explanation import Explanation


_FORMATS = (".svg", ".pdf", ".png", ".tex")


def draw(
    explanation: Explanation | LLMRelevanceResult,
    path: str | os.PathLike[str],
    *,
    layers: Tensor | Sequence[Tensor] | None = None,
    width: float = 6.3,
) -> None:
    r"""Draw an explanation for a paper, in colors that also show the sign in print.

    Args:
        explanation: The explanation: an :class:`Explanation` is drawn as a text in color; the
            result of :class:`captum_lrpx.LLMRelevance` as the matrix of generated tokens and all
            tokens.
        path: The file: ``.svg`` or ``.pdf`` (text stays text), ``.png``, or ``.tex`` for a text in
            ``\colorbox`` (package ``xcolor``).
        layers: Relevances in each layer ``[L, T]``, as computed by :class:`captum_lrpx.LayerLRPx`,
            summed over features: draws layers and tokens instead of the text.
        width: Width in inches; by default the text width of LaTeX's ``article`` on A4.

    Raises:
        ValueError: If the ending is none of these, or ``.tex`` for a matrix, or layers do
            not fit the tokens.
        OSError: If the file cannot be written.
        ImportError: If matplotlib is needed and not installed.

    Examples:
        >>> draw(explanation.words(), "map.pdf")
        >>> draw(explanation, "layers.svg", layers=torch.stack([each[0].sum(-1) for each in found]))
    """
    ending = Path(path).suffix.lower()
    if ending not in _FORMATS:
        raise ValueError(f"A picture is {', '.join(_FORMATS)}, not {str(path)!r}.")
    check_writable(path)
    if ending == ".tex":
        if isinstance(explanation, LLMRelevanceResult) or layers is not None:
            raise ValueError("A matrix is no text: draw it as .svg, .pdf or .png.")
        write_text(path, latex(explanation))
        return
    with settings():
        figure = _figure(explanation, layers, width)
        same = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending[1:])
        figure.savefig(path, metadata=same, dpi=200)


def _figure(
    explanation: Explanation | LLMRelevanceResult,
    layers: Tensor | Sequence[Tensor] | None,
    width: float,
) -> Figure:
    """The text in color; or a matrix, whose first row is at the bottom."""
    if layers is not None:
        values = [layer.detach().double().tolist() for layer in layers]
        rows = [f"layer {number}" for number in range(len(values))]
    elif isinstance(explanation, LLMRelevanceResult):
        values = explanation.context_attr.double().tolist()[::-1]
        rows = [readable(label) for label in explanation.row_labels][::-1]
    else:
        return heat_map_figure(explanation, width)
    columns = [readable(label) for label in explanation.labels]
    if any(len(row) != len(columns) for row in values):
        raise ValueError(
            f"Layers are [L, {len(columns)}], a relevance for each token in each layer, not "
            f"rows of {sorted({len(row) for row in values})}."
        )
    return matrix_figure(values, rows, columns, width)
