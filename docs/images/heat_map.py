"""Draws the README's heat map from the embedded models, or one of a stored comparison.

python docs/images/heat_map.py > docs/images/heat_map.svg
captum-lrpx explain TEXT --compare lrpx attnlrpx ... --json gemma3.json
python docs/images/heat_map.py gemma3.json > docs/images/gemma3.svg
"""

from __future__ import annotations

import html
import sys

from captum_lrpx import Comparison, Explanation, Target, explain, zoo
from captum_lrpx.explanation.pieces import colored
from captum_lrpx.visualization.colors import opaque

CHARACTER, LINE, MARGIN = 11, 34, 14
SENTENCES = [
    ("the keys to the cabinet", "are", "is"),
    ("the author that the guards like", "is", "are"),
    ("the books near the table beside the old door", "are", "is"),
]


def row(explanation: Explanation, y: int) -> tuple[str, int]:
    """One line of tokens, and how wide it is."""
    x, parts = MARGIN, []
    for piece, strength in colored(explanation):
        width = CHARACTER * len(piece.label) + 8
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="24" rx="3" fill="{opaque(strength)}"/>'
            f'<text x="{x + 4}" y="{y + 17}">{html.escape(piece.label)}</text>'
        )
        x += width + 3
    return "".join(parts), x


def of_embedded() -> list[tuple[Explanation, str]]:
    """Explanations of an embedded model, each with its caption."""
    model, tokenizer = zoo.load("sva-bert")
    return [
        (explain(model, tokenizer, text, Target(good, contrast=bad)), f"{good} rather than {bad}")
        for text, good, bad in SENTENCES
    ]


def of_comparison(path: str) -> list[tuple[Explanation, str]]:
    """Explanations of a stored comparison, each with its name."""
    stored = Comparison.from_json(path)
    return list(zip(stored.explanations, stored.names, strict=True))


def main() -> None:
    """Print the picture."""
    explanations = of_comparison(sys.argv[1]) if sys.argv[1:] else of_embedded()
    rows, ends = [], []
    for index, (explanation, _) in enumerate(explanations):
        drawn, x = row(explanation, MARGIN + index * LINE)
        rows.append(drawn)
        ends.append(x)
    aligned = [max(ends)] * len(ends) if sys.argv[1:] else ends
    widths = []
    for index, (x, (_, caption)) in enumerate(zip(aligned, explanations, strict=True)):
        y = MARGIN + index * LINE
        rows.append(f'<text x="{x + 12}" y="{y + 17}" fill="#666">{html.escape(caption)}</text>')
        widths.append(x + 12 + CHARACTER * len(caption) + MARGIN)
    width, height = max(widths), 2 * MARGIN + LINE * len(explanations) - 10
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="ui-monospace, monospace" font-size="17">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(rows)}</svg>'
    )


if __name__ == "__main__":
    main()
