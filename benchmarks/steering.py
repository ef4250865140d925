"""Does a prediction move as relevance says when neurons are switched off or amplified?

    python benchmarks/steering.py PAIRS.jsonl --models sva-llama [FILE.gguf ...]
        [--number 20] [--neurons 3] [--first-token TOKEN]

For each text and each MLP the neurons of largest relevance are scaled, one at a time, at all
positions. Relevance says what a scale of ``1 + d`` adds: ``d`` times the relevance of the neuron.
Counted is how often the explained value moves in that direction, with a bootstrap interval over
pairs, and how well the sizes agree.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx import ATTN_LRP, GRADIENT, LRP_MIRRORED_GATE, ConceptRelevance, steer
from captum_lrpx.components.localise import layers_of
from captum_lrpx.components.pairs import read_pairs, tokenized
from captum_lrpx.loading import load_model
from captum_lrpx.metrics import pearson
from captum_lrpx.metrics.agreement import Agreement
from captum_lrpx.targets import TokenSum

if TYPE_CHECKING:
    from torch import nn

    from captum_lrpx.components.pairs import TokenPair

RECIPES = (ATTN_LRP, LRP_MIRRORED_GATE, GRADIENT)
SCALES = (0.0, 0.5, 2.0)


def changes(
    model: nn.Module, layers: list[nn.Module], pair: TokenPair, recipe: Any, neurons: int
) -> tuple[dict[float, list[float]], list[float]]:
    """Changes by each scale, and the relevance of each neuron that was scaled."""
    forward, args = TokenSum(model), (None, pair.tokens, None, pair.weights)
    found: dict[float, list[float]] = {scale: [] for scale in SCALES}
    relevances = []
    with torch.no_grad():
        before = float(forward(pair.clean, *args))
    for layer in layers:
        concepts = ConceptRelevance(forward, layer, at_input=True, recipe=recipe)
        (best,) = concepts.most_relevant(pair.clean, None, args, k=neurons)
        for neuron in best:
            relevances.append(neuron.relevance)
            for scale in SCALES:
                with torch.no_grad(), steer(layer, neuron.number, scale=scale, at_input=True):
                    found[scale].append(float(forward(pair.clean, *args)) - before)
    return found, relevances


def table(name: str, options: argparse.Namespace) -> str:
    """The results of a model in Markdown."""
    loaded = load_model(name)
    pairs = tokenized(
        read_pairs(options.pairs),
        loaded.tokenizer,
        number=options.number,
        first_token=options.first_token,
    )
    layers = layers_of(loaded.model, "neurons")
    lines = [["recipe", "scale", "right direction", "Pearson"], ["---"] * 4]
    for recipe in RECIPES:
        asked = [changes(loaded.model, layers, each, recipe, options.neurons) for each in pairs]
        for scale in SCALES:
            said = [(scale - 1) * torch.tensor(relevances) for _, relevances in asked]
            done = [torch.tensor(found[scale]) for found, _ in asked]
            right = torch.stack(
                [((a > 0) == (b > 0)).double().mean() for a, b in zip(said, done, strict=True)]
            )
            size = torch.cat([pearson(a[None], b[None]) for a, b in zip(said, done, strict=True)])
            both = Agreement(size, size, right, 1)
            lines.append(
                [
                    recipe.name,
                    str(scale),
                    str(both.interval("top_k")),
                    str(both.interval("pearson")),
                ]
            )
    title = f"{Path(name).stem}: {len(pairs)} texts, {len(layers) * options.neurons} neurons each"
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs")
    parser.add_argument("--models", nargs="+", default=["sva-llama"])
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--neurons", type=int, default=3)
    parser.add_argument("--first-token")
    options = parser.parse_args()
    for name in options.models:
        print(table(name, options), flush=True)


if __name__ == "__main__":
    main()
