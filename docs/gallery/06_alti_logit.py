"""ALTI-Logit: the parts of a logit
================================

Contributions of each token through each attention head, and of MLPs and biases.
"""

# %%
# ``decompose`` has the parts; ``attribute`` gives only the scores of the tokens.
import matplotlib.pyplot as plt

from captum_lrpx import ALTILogit, zoo

model, tokenizer = zoo.load("sva-llama")
ids = tokenizer("the keys to the cabinet", return_tensors="pt").input_ids
are, is_ = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("the are is"))[1:]
parts = ALTILogit(model).decompose(ids, target=(-1, are))

# %%
# They sum to the explained logit.
print(f"attention heads  {parts.heads.sum():+.3f}")
print(f"residual stream  {parts.start.sum():+.3f}")
print(f"MLPs             {parts.mlps.sum():+.3f}")
for name, bias in parts.biases.items():
    print(f"{name:<16} {bias.sum():+.3f}")
print(f"total            {parts.total().item():+.3f}")
print(f"logit            {model(ids).logits[0, -1, are].item():+.3f}")

# %%
# The scores of the tokens, and the block and the head with the largest contribution.
for token, score in zip(tokenizer.convert_ids_to_tokens(ids[0]), parts.tokens()[0], strict=True):
    print(f"{token:>12} {score:+.3f}")
by_head = parts.heads.sum(-1)[0]  # [L, H]
block, head = divmod(int(by_head.argmax()), by_head.shape[1])
print(f"block {block}, head {head}: {by_head[block, head]:+.3f}")

# %%
# Tokens by block: where the logit is read.
tokens = [token.replace("▁", "") for token in tokenizer.convert_ids_to_tokens(ids[0])]
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
limit = parts.layers.abs().max().item()
image = axis.imshow(parts.layers[0].flip(0), cmap="bwr", vmin=-limit, vmax=limit, aspect="auto")
axis.set_xticks(range(len(tokens)), tokens)
axis.set_yticks(range(len(parts.layers[0])), [f"block {number}" for number in (2, 1, 0)])
figure.colorbar(image, label="contribution to the logit")

# %%
# A second target costs little, and the decomposition is linear in the explained value.
good, bad = ALTILogit(model).decompose_targets(ids, [(-1, are), (-1, is_)])
good.tokens() - bad.tokens()
