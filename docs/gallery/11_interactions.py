"""Interactions
============

How the tokens of a text influence each other's relevance.
"""

# %%
# The influence of token j on the relevance of token i is a Shapley value. The players are the
# tokens, and the worth of a coalition is the relevance of i with all other tokens replaced. For a
# short text all coalitions are explained.
import matplotlib.pyplot as plt

from captum_lrpx import AttnLRPx, LogitDifference, meta_attributions, zoo

# sphinx_gallery_thumbnail_path = 'images/interactions.svg'
model, tokenizer = zoo.load("sva-llama")
ids = tokenizer("the keys to the old cabinet", return_tensors="pt").input_ids
are, is_ = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("the are is"))[1:]
method = AttnLRPx(LogitDifference(model))
meta = meta_attributions(
    method,
    ids,
    baselines=tokenizer.unk_token_id,
    additional_forward_args=(None, are, is_),
    mask=ids != tokenizer.bos_token_id,
)
print(f"{meta.explanations} explanations, exact: {meta.exact}")

# %%
# A row sums to the token's relevance minus its relevance with all tokens replaced.
assert meta.error.abs().max() < 1e-5
tokens = [token.replace("▁", "") for token in tokenizer.convert_ids_to_tokens(ids[0])]
for token, whole, empty in zip(tokens, meta.attributions, meta.baseline, strict=True):
    print(f"{token:>8}: relevance {whole:+.2f}, of which {whole - empty:+.2f} by the text")

# %%
# Rows are the tokens whose relevance is explained, columns the tokens that influence it.
figure, axis = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
limit = meta.values.abs().max().item()
image = axis.imshow(meta.values, cmap="bwr", vmin=-limit, vmax=limit)
axis.set_xticks(range(len(tokens)), tokens, rotation=45, ha="right")
axis.set_yticks(range(len(tokens)), tokens)
axis.set_xlabel("influence of")
axis.set_ylabel("on the relevance of")
figure.colorbar(image)
