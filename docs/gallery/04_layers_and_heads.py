"""Layers and heads
================

Where the prediction is formed: relevances of blocks and of single attention heads.
"""

# %%
# All blocks come from one backward pass.
import torch

from captum_lrpx import LayerAttnLRPx, LogitDifference, zoo

model, tokenizer = zoo.load("sva-gpt2")
ids = tokenizer("the keys to the cabinet", return_tensors="pt").input_ids
are, is_ = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("the are is"))[1:]
args = (None, are, is_)  # attention mask, token, other token

blocks = list(model.transformer.h)
layers = LayerAttnLRPx(LogitDifference(model), blocks)
relevances = layers.attribute(ids, additional_forward_args=args)
by_token = torch.stack([relevance.sum(-1)[0] for relevance in relevances])  # [blocks, T]

# %%
# After the last block all relevance is at the last token, where the prediction is made. Before, it
# is at the sources of the information.
tokens = tokenizer.convert_ids_to_tokens(ids[0])
print(" " * 16 + "".join(f"   block {number}" for number in range(len(blocks))))
for token, row in zip(tokens, by_token.T, strict=True):
    print(f"{token:>16}" + "".join(f"{relevance:>+10.3f}" for relevance in row))

# %%
# Heads are concatenated in the input of attention's output projection, so the relevance of that
# *input*, split accordingly, is the relevance of the heads.
projections = [block.attn.c_proj for block in blocks]
inputs = LayerAttnLRPx(LogitDifference(model), projections).attribute(
    ids, additional_forward_args=args, attribute_to_layer_input=True
)
split = [relevance.unflatten(-1, (model.config.n_head, -1)) for relevance in inputs]
heads = torch.stack([relevance.sum((0, 1, 3)) for relevance in split])  # [blocks, heads]

# %%
# As a picture: blocks from top to bottom, heads from left to right.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5, 3))
limit = heads.abs().max().item()
image = axes.imshow(heads, cmap="bwr", vmin=-limit, vmax=limit)
axes.set_xlabel("head")
axes.set_ylabel("block")
axes.set_xticks(range(heads.shape[1]))
axes.set_yticks(range(heads.shape[0]))
figure.colorbar(image, label="relevance")
figure.tight_layout()
