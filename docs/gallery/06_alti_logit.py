"""ALTI-Logit: the parts of a logit
================================

What each attention head read from each token, and what MLPs and biases add.
"""

# %%
# ``decompose`` has the parts; ``attribute`` gives the scores of the tokens only.
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
# A second target costs little. The difference of two decompositions is that of the difference.
good, bad = ALTILogit(model).decompose_targets(ids, [(-1, are), (-1, is_)])
good.tokens() - bad.tokens()
