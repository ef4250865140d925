"""Heat maps over images and audio: as HTML, as PNG, and as blocks in a terminal."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

from rich.text import Text

from captum_lrpx.characters import readable
from captum_lrpx.extras import imported
from captum_lrpx.visualization.colors import ink, opaque, scale_of, strengths, translucent

if TYPE_CHECKING:
    from captum_lrpx.explanation.record import Explanation
    from captum_lrpx.targets.scene import Part


_WIDTH, _CELL, _HEIGHT = 320, 20, 60
"""Smallest width of an image on a page, of one of its columns, and of a single row."""

_LIGHTER = 0.7
"""Remaining darkness of an image, so that colors show on black as well."""

_SMALLEST = 448
"""Smallest number of pixels on the longer side of a PNG."""


def regions(explanation: Explanation) -> list[Part]:
    """Images and audio among the inputs."""
    return [part for part in explanation.parts or () if part.grid is not None]


def picture_html(explanation: Explanation, region: Part) -> str:
    """Draw an image below its heat map, and the heat map alone, side by side.

    Args:
        explanation: The explanation.
        region: The image.

    Returns:
        HTML without scripts; each patch has its relevance as title.
    """
    rows, columns = region.grid or (1, 1)
    relevances = explanation.relevances[region.first : region.stop]
    patches = zip(
        explanation.tokens[region.first : region.stop],
        relevances,
        strengths(relevances),
        strict=True,
    )
    cells = "".join(
        f'<rect x="{at % columns}" y="{at // columns}" width="1" height="1" '
        f'fill="{translucent(strength)}"><title>{html.escape(readable(label))} '
        f"{relevance:+.6g}</title></rect>"
        for at, (label, relevance, strength) in enumerate(patches)
    )
    name = html.escape(readable(region.name))
    below = (
        f'<rect width="{columns}" height="{rows}" fill="white"/>'
        f'<image href="data:image/png;base64,{html.escape(region.picture)}" width="{columns}" '
        f'height="{rows}" preserveAspectRatio="none" '
        f'style="filter:grayscale(1);opacity:{_LIGHTER}"/>'
        if region.picture
        else ""
    )
    width = max(_WIDTH, _CELL * columns)
    height = max(_HEIGHT, width * rows // columns)
    drawn = "".join(
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {columns} {rows}" '
        f'preserveAspectRatio="none" style="margin-right:1em;width:{width}px;max-width:100%;'
        f'aspect-ratio:{width}/{height}" shape-rendering="crispEdges">{content}</svg>'
        for label, content in (
            (f"{name} and relevances", below + cells),
            (f"{name}: relevances", cells),
        )
    )
    scale = scale_of(relevances)
    return f'<p>{drawn}</p><p style="font-size:0.85em">{name}: full color at {scale:.4g}</p>'


def picture_blocks(explanation: Explanation, region: Part) -> Text:
    """Draw the patches of an image as colored blocks with signs, for a terminal."""
    _, columns = region.grid or (1, 1)
    relevances = explanation.relevances[region.first : region.stop]
    text = Text()
    for at, strength in enumerate(strengths(relevances)):
        mark = "+" if strength >= 0.5 else "-" if strength <= -0.5 else " "
        text.append(f"{mark} ", f"black on {opaque(strength)}")
        if (at + 1) % columns == 0 and at + 1 < len(relevances):
            text.append("\n")
    return text


def picture_png(explanation: Explanation, region: Part, *, overlay: bool = True) -> bytes:
    """Draw a heat map of an image as PNG.

    Args:
        explanation: The explanation.
        region: The image.
        overlay: Whether the image is visible below the colors.

    Raises:
        ImportError: If Pillow is not installed.
    """
    Image = imported(  # noqa: N806 - a module
        "PIL.Image", "A picture as PNG needs Pillow: pip install 'captum-lrpx[images]'."
    )
    rows, columns = region.grid or (1, 1)
    below = Image.new("RGB", (columns, rows), (255, 255, 255))
    if overlay and region.picture:
        opened = Image.open(io.BytesIO(base64.b64decode(region.picture)))
        gray = opened.convert("L").point(lambda each: 255 - _LIGHTER * (255 - each))
        below = gray.convert("RGB")  # color is reserved for relevance
    factor = max(1, -(-_SMALLEST // max(below.size)))
    size = (below.width * factor, below.height * factor)
    below = below.resize(size, Image.Resampling.NEAREST)
    colors = Image.new("RGBA", (columns, rows))
    relevances = explanation.relevances[region.first : region.stop]
    colors.putdata(
        [(*ink(each), round(204 * min(abs(each), 1.0))) for each in strengths(relevances)]
    )
    above = colors.resize(size, Image.Resampling.NEAREST)
    found = io.BytesIO()
    Image.alpha_composite(below.convert("RGBA"), above).convert("RGB").save(found, "PNG")
    return found.getvalue()
