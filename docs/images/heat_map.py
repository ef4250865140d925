"""Draws the README's heat map from the embedded models.

python docs/images/heat_map.py > docs/images/heat_map.svg
"""

from __future__ import annotations

import html

from captum_lrpx import Explanation, Target, explain, zoo
from captum_lrpx.visualization import colors, pieces

CHARACTER, LINE, MARGIN = 11, 34, 14
SENTENCES = [
    ("the keys to the cabinet", "are", "is"),
    ("the author that the guards like", "is", "are"),
    ("the books near the table beside the old door", "are", "is"),
]


def row(explanation: Explanation, y: int) -> tuple[str, int]:
    """One line of tokens, and how wide it is."""
    x, parts = MARGIN, []
    for piece, color in zip(pieces(explanation), colors(explanation), strict=True):
        width = CHARACTER * len(piece.label) + 8
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="24" rx="3" fill="{color}"/>'
            f'<text x="{x + 4}" y="{y + 17}">{html.escape(piece.label)}</text>'
        )
        x += width + 3
    return "".join(parts), x


def main() -> None:
    """Print the picture."""
    model, tokenizer = zoo.load("sva-bert")
    rows, widths = [], []
    for index, (text, good, bad) in enumerate(SENTENCES):
        explanation = explain(model, tokenizer, text, Target(good, contrast=bad))
        y = MARGIN + index * LINE
        drawn, x = row(explanation, y)
        caption = f"{good} rather than {bad}"
        rows.append(drawn + f'<text x="{x + 12}" y="{y + 17}" fill="#666">{caption}</text>')
        widths.append(x + 12 + CHARACTER * len(caption) + MARGIN)
    width, height = max(widths), 2 * MARGIN + LINE * len(SENTENCES) - 10
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="ui-monospace, monospace" font-size="17">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(rows)}</svg>'
    )


if __name__ == "__main__":
    main()
