"""The table as a picture: a panel for each model, a bar for each method and measure."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from captum_lrpx.extras import imported
from captum_lrpx.sva.evaluation.scores import ALL, MEASURES, VIEWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captum_lrpx.sva.evaluation.scores import Scores


_WIDTH, _HEIGHT_PER_METHOD, _MARGIN = 2.6, 0.3, 1.2  # inches


def require() -> None:
    """Check the requirements of :func:`draw`, before a run whose results it draws.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    imported("matplotlib.figure", "A plot needs matplotlib: pip install 'captum-lrpx[plot]'.")


def check_format(path: str | os.PathLike[str]) -> None:
    """Check that matplotlib can write files with this ending.

    Args:
        path: The file.

    Raises:
        ValueError: If it cannot.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    ending = os.path.splitext(path)[1].removeprefix(".").lower()  # noqa: PTH122 - of any path
    known = Figure().canvas.get_supported_filetypes()
    if ending and ending not in known:
        raise ValueError(
            f"A plot cannot be written as {ending!r}: {os.fspath(path)!r} must end in one of "
            f"{', '.join(sorted(known))}."
        )


def draw(path: str | os.PathLike[str], methods: Sequence[str], models: Sequence[Scores]) -> None:
    """Draw means with their intervals.

    Args:
        path: The file; its ending sets the format.
        methods: The methods, from top to bottom.
        models: The measures of each model.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no model.
    """
    require()
    from matplotlib.figure import Figure  # noqa: PLC0415

    if not models:
        raise ValueError("There is nothing to draw: no sample of any model was explained.")
    height = (_MARGIN + _HEIGHT_PER_METHOD * len(methods)) * len(models)
    figure = Figure(figsize=(_WIDTH * len(MEASURES), height), layout="constrained")
    grid = figure.subplots(len(models), len(MEASURES), sharex=True, sharey=True, squeeze=False)
    places = range(len(methods))
    for scores, row in zip(models, grid, strict=True):
        for measure, axes in zip(MEASURES, row, strict=True):
            for shift, view in zip((-0.2, 0.2), VIEWS, strict=True):
                found = [scores.means[method, view, ALL, measure] for method in methods]
                errors = [
                    [each.mean - each.low for each in found],
                    [each.high - each.mean for each in found],
                ]
                heights = [place + shift for place in places]
                axes.barh(heights, [each.mean for each in found], 0.4, xerr=errors, label=view)
            axes.set_title(f"{scores.results.model}\n{measure}", fontsize="small")
            axes.set_yticks(list(places), methods, fontsize="small")
            axes.set_xlim(0, 1)
    grid[0][0].invert_yaxis()
    grid[0][-1].legend(fontsize="x-small")
    figure.savefig(path)
