"""What a model can still do without the parts that matter least, by several measures of mattering.

    python benchmarks/pruning.py PAIRS.jsonl --models sva-llama [FILE.gguf ...] [--parts heads]
        [--first-token TOKEN] [--reference 100] [--test 200] [--plot FILE.png]

Heads or MLP neurons are scored on the pairs of a reference set, switched off from the lowest score
on, and the model is asked about other pairs: after each of the two texts it has to prefer the form
that fits. Scores: mean absolute relevance, mean absolute gradient times activation, mean absolute
activation ("magnitude"), and random numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrpx import GRADIENT, LRP_MIRRORED_GATE, RelevancePatching, prune
from captum_lrpx.attr.capture import captured
from captum_lrpx.components.localise import KINDS, layers_of
from captum_lrpx.components.pairs import TokenPair, read_pairs, tokenized
from captum_lrpx.loading import load_model
from captum_lrpx.metrics.agreement import Agreement
from captum_lrpx.targets import TokenSum

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BATCH = 32
SEEDS = 3
Scores = dict[nn.Module, Tensor]
Rows = tuple[Tensor, Tensor, Tensor]


def rows_of(pairs: Sequence[TokenPair]) -> list[Rows]:
    """Texts, tokens and weights in batches of one length; both texts of each pair, in turn."""
    by_length: dict[tuple[int, int], list[TokenPair]] = {}
    for pair in pairs:
        by_length.setdefault((pair.clean.shape[1], pair.tokens.shape[1]), []).append(pair)
    batches = []
    for alike in by_length.values():
        for start in range(0, len(alike), BATCH):
            some = alike[start : start + BATCH]
            texts = torch.cat([torch.cat([pair.clean, pair.corrupted]) for pair in some])
            tokens = torch.cat([pair.tokens for pair in some]).repeat_interleave(2, 0)
            # What is good after the one text is bad after the other.
            weights = torch.cat([torch.cat([pair.weights, -pair.weights]) for pair in some])
            batches.append((texts, tokens, weights))
    return batches


@torch.no_grad()
def right(model: nn.Module, batches: Sequence[Rows]) -> Tensor:
    """Share of its two texts after which each pair is right ``[pairs]``."""
    forward = TokenSum(model)
    found = [forward(texts, None, tokens, None, weights) > 0 for texts, tokens, weights in batches]
    return torch.cat(found).reshape(-1, 2).double().mean(1)


def scores_of(model: nn.Module, layers: list[nn.Module], by: Any, batches: Sequence[Rows]) -> Any:
    """Mean absolute relevance, gradient x activation and activation of each part."""
    forward = TokenSum(model)
    totals: dict[str, list[Tensor]] = {}
    for texts, tokens, weights in batches:
        for name, recipe in (("relevance", LRP_MIRRORED_GATE), ("gradient x activation", GRADIENT)):
            found = RelevancePatching(forward, layers, recipe=recipe).attribute(
                texts,
                additional_forward_args=(None, tokens, None, weights),
                by=by,
                attribute_to_layer_input=True,
                ablation="zero",
            )
            add(totals, name, [each.abs().sum(0) for each in found])
        with torch.no_grad(), captured(layers, at_input=True) as values:
            forward(texts, None, tokens, None, weights)
        parts = [len(each) for each in totals["relevance"]]
        sizes = [
            values[layer][0].abs().mean(1).unflatten(-1, (count, -1)).mean(-1).sum(0)
            for layer, count in zip(layers, parts, strict=True)
        ]
        add(totals, "magnitude", sizes)
    return {name: dict(zip(layers, each, strict=True)) for name, each in totals.items()}


def add(totals: dict[str, list[Tensor]], name: str, new: list[Tensor]) -> None:
    """Add to the totals of a name."""
    old = totals.get(name)
    totals[name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]


def curve(model: nn.Module, scores: Sequence[Scores], by: Any, test: Sequence[Rows]) -> list[Any]:
    """Accuracy with its interval at each share; the mean over several sets of scores."""
    points = []
    for share in SHARES:
        of_pairs = []
        for each in scores:
            with prune(model, each, share, by=by, at_input=True):
                of_pairs.append(right(model, test))
        mean = torch.stack(of_pairs).mean(0)
        points.append(Agreement(mean, mean, mean, 1).interval("pearson"))
    return points


def curves(name: str, part: str, options: argparse.Namespace) -> dict[str, list[Any]]:
    """The curve of each measure, for one model."""
    loaded = load_model(name)
    pairs = read_pairs(options.pairs)
    fitting = tokenized(pairs, loaded.tokenizer, number=len(pairs), first_token=options.first_token)
    reference = rows_of(fitting[: options.reference])
    chosen = fitting[options.reference :][: options.test]
    test = rows_of(chosen)
    layers = layers_of(loaded.model, part)
    by = KINDS[part].by
    scores = {
        each: [found] for each, found in scores_of(loaded.model, layers, by, reference).items()
    }
    generator = torch.Generator().manual_seed(0)
    scores["random"] = [
        {
            layer: torch.rand(len(each), generator=generator)
            for layer, each in scores["relevance"][0].items()
        }
        for _ in range(SEEDS)
    ]
    number = sum(map(len, scores["relevance"][0].values()))
    print(f"\n{Path(name).stem}, {part}: {number} parts, {len(chosen)} pairs\n")
    return {each: curve(loaded.model, sets, by, test) for each, sets in scores.items()}


def table(found: dict[str, list[Any]]) -> str:
    """The curves in Markdown."""
    lines = [["switched off", *found], ["---"] * (len(found) + 1)]
    lines += [
        [f"{share:.0%}", *(str(points[number]) for points in found.values())]
        for number, share in enumerate(SHARES)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(found: dict[tuple[str, str], dict[str, list[Any]]], path: str) -> None:
    """The curves as a picture, a panel per model and kind of part."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only where a picture is wanted

    figure, panels = plt.subplots(
        1, len(found), figsize=(4.5 * len(found), 3.4), sharey=True, squeeze=False
    )
    for axes, ((model, part), curves_) in zip(panels[0], found.items(), strict=True):
        for name, points in curves_.items():
            (line,) = axes.plot(SHARES, [point.mean for point in points], label=name)
            low, high = ([getattr(point, end) for point in points] for end in ("low", "high"))
            axes.fill_between(SHARES, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.set_title(f"{model}, {part}")
        axes.set_xlabel("share switched off")
    panels[0][0].set_ylabel("accuracy")
    panels[0][-1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs")
    parser.add_argument("--models", nargs="+", default=["sva-llama"])
    parser.add_argument("--parts", nargs="+", choices=("heads", "neurons"), default=["heads"])
    parser.add_argument("--first-token")
    parser.add_argument("--reference", type=int, default=100)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--plot")
    options = parser.parse_args()
    found = {}
    for name in options.models:
        for part in options.parts:
            found[Path(name).stem, part] = curves(name, part, options)
            print(table(found[Path(name).stem, part]), flush=True)
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
