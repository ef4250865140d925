"""Where a prediction is made
==========================

The positions, layers and heads on which a prediction depends: measured by patching, and estimated
from one backward pass.
"""

# %%
# Two texts that differ in one word, on which the verb depends.
import matplotlib.pyplot as plt
import torch

from captum_lrpx import (
    GRADIENT,
    LRP_MIRRORED_GATE,
    ActivationPatching,
    LogitDifference,
    RelevancePatching,
    zoo,
)
from captum_lrpx.metrics import agreement

model, tokenizer = zoo.load("sva-llama")
ids = tokenizer("the keys to the old cabinet", return_tensors="pt").input_ids
other = tokenizer("the key to the old cabinet", return_tensors="pt").input_ids
are, is_ = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("the are is"))[1:]
forward = LogitDifference(model)  # logit of "are" minus logit of "is"
question = {"additional_forward_args": (None, are, is_)}

# %%
# The residual stream after each block, position by position. ``ActivationPatching`` replaces each
# position by its value for the other text and measures the loss; ``RelevancePatching`` estimates it
# for all positions at once.
blocks = list(model.model.layers)
effects = ActivationPatching(forward, blocks).attribute(ids, other, by="token", **question)
estimates = {
    recipe.name: RelevancePatching(forward, blocks, recipe=recipe).attribute(
        ids, other, by="token", **question
    )
    for recipe in (LRP_MIRRORED_GATE, GRADIENT)
}

# %%
# The number moves from the noun to the last position, where the verb is predicted.
panels = {"measured": effects, **estimates}
maps = {name: torch.cat(each) for name, each in panels.items()}  # [blocks, T]
limit = max(each.abs().max().item() for each in maps.values())
tokens = [token.replace("▁", "") for token in tokenizer.convert_ids_to_tokens(ids[0])]
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), sharey=True, layout="constrained")
for axis, (name, values) in zip(axes, maps.items(), strict=True):
    image = axis.imshow(values, cmap="bwr", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_title(name)
    axis.set_xticks(range(len(tokens)), tokens, rotation=45, ha="right")
axes[0].set_yticks(range(len(blocks)))
axes[0].set_ylabel("block")
figure.colorbar(image, ax=axes, label="effect on the prediction")

# %%
# How well do they agree? On real models the rule at the gate decides; see the page on components.
for name, each in estimates.items():
    found = agreement(each, effects)
    print(f"{name:>18}: Pearson {float(found.pearson):.2f}, Spearman {float(found.spearman):.2f}")

# %%
# Heads are concatenated in the input of attention's output projection.
projections = [block.self_attn.o_proj for block in blocks]
heads = ActivationPatching(forward, projections).attribute(ids, other, by="head", **question)
table = torch.cat(heads)  # [blocks, heads]
limit = table.abs().max().item()
figure, axis = plt.subplots(figsize=(4, 3), layout="constrained")
image = axis.imshow(table, cmap="bwr", vmin=-limit, vmax=limit)
axis.set_xlabel("head")
axis.set_ylabel("block")
axis.set_xticks(range(table.shape[1]))
axis.set_yticks(range(table.shape[0]))
figure.colorbar(image, label="effect on the prediction")
