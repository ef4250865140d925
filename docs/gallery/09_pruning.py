"""Pruning
=======

Switching off the least relevant heads: by relevance, by gradient times activation, at random.
"""

# %%
# Sentences whose verb is known: three nouns as subjects to compute the scores, the others to test
# the pruned model.
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from captum_lrpx import (
    GRADIENT,
    LRP_MIRRORED_GATE,
    LogitDifference,
    Recipe,
    RelevancePatching,
    prune,
    zoo,
)

model, tokenizer = zoo.load("sva-llama")
nouns = ["key", "dog", "author", "farmer", "guard", "boy"]
texts = [
    (f"the {noun}{end} near the {other}{ending}", end)
    for noun in nouns
    for other in nouns
    if other != noun
    for end in ("", "s")
    for ending in ("", "s")
]
ids = tokenizer([text for text, _ in texts], return_tensors="pt", padding=True).input_ids
are, is_ = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("the are is"))[1:]
plural = torch.tensor([end == "s" for _, end in texts])
good, bad = torch.where(plural, are, is_), torch.where(plural, is_, are)
forward = LogitDifference(model)
reference, test = slice(0, len(texts) // 2), slice(len(texts) // 2, None)

# %%
# The relevance of a head estimates the effect of its removal. Its mean absolute value over the
# reference is the score.
projections = [block.self_attn.o_proj for block in model.model.layers]


def scores(recipe: Recipe) -> dict[nn.Module, Tensor]:
    """Mean absolute relevance of each head."""
    heads = RelevancePatching(forward, projections, recipe=recipe).attribute(
        ids[reference],
        additional_forward_args=(None, good[reference], bad[reference]),
        by="head",
        ablation="zero",
    )
    return {layer: each.abs().mean(0) for layer, each in zip(projections, heads, strict=True)}


generator = torch.Generator().manual_seed(0)
measures = {
    "relevance": [scores(LRP_MIRRORED_GATE)],
    "gradient x activation": [scores(GRADIENT)],
    "random (5)": [
        {layer: torch.rand(model.config.num_attention_heads, generator=generator)
         for layer in projections}
        for _ in range(5)
    ],
}  # fmt: skip

# %%
# ``prune`` switches off a share of all heads inside a ``with`` block. The model is never changed.
shares = [number / 12 for number in range(12)]


@torch.no_grad()
def accuracy() -> float:
    """Share of the test sentences whose verb is right."""
    return (forward(ids[test], None, good[test], bad[test]) > 0).double().mean().item()


def curve(several: list[dict[nn.Module, Tensor]]) -> list[float]:
    """Accuracy at each share, a mean over several sets of scores."""
    points = []
    for share in shares:
        found = []
        for each in several:
            with prune(model, each, share):
                found.append(accuracy())
        points.append(sum(found) / len(found))
    return points


figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for name, several in measures.items():
    axis.plot(shares, curve(several), marker="o", markersize=3, label=name)
axis.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
axis.set_xlabel("share of heads switched off")
axis.set_ylabel("accuracy")
axis.legend(frameon=False)
