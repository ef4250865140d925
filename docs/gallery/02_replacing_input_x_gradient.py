"""Replacing InputXGradient
========================

Captum code stays as it is; the class changes, and with it what the numbers sum to.
"""

# %%
# Embeddings are the inputs, and a forward module of the package selects the explained value: the
# logit of *is* minus the logit of *are*, at the last token.
import matplotlib.pyplot as plt
from captum.attr import InputXGradient

from captum_lrpx import AttnLRPx, LogitDifference, LRPx, zoo

model, tokenizer = zoo.load("sva-llama")
ids = tokenizer("the author that the guards like", return_tensors="pt").input_ids
embeds = model.get_input_embeddings()(ids).detach()
are, is_ = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("the are is"))[1:]

forward = LogitDifference(model)
args = (None, is_, are)  # attention mask, token, other token
explained = forward(embeds, *args).item()

# %%
# The same call for each class, and the sum over the embedding dimension as the score of a token.
print(f"explained: {explained:+.3f}")
tokens = [token.replace("▁", "") for token in tokenizer.convert_ids_to_tokens(ids[0])]
figure, axes = plt.subplots(1, 3, figsize=(8, 2.6), sharey=True, layout="constrained")
for axis, method in zip(axes, (InputXGradient, LRPx, AttnLRPx), strict=True):
    attributions = method(forward).attribute(embeds, additional_forward_args=args)
    scores = attributions.sum(-1)[0].detach()
    print(f"{method.__name__:>15}: sum {scores.sum():+.3f}")
    axis.barh(
        range(len(tokens)), scores, color=["tab:red" if each > 0 else "tab:blue" for each in scores]
    )
    axis.axvline(0, color="gray", linewidth=0.8)
    axis.set_title(method.__name__)
axes[0].set_yticks(range(len(tokens)), tokens)
axes[0].invert_yaxis()

# %%
# Gradient x Input can miss the explained value by any amount. LRP misses only the share of biases,
# and this model has none; AttnLRP also loses some relevance in the softmax. Both report the amount:
_, delta = LRPx(forward).attribute(
    embeds, additional_forward_args=args, return_convergence_delta=True
)
print(f"convergence delta of LRP: {delta.item():+.6f}")

# %%
# Token ids can be given instead, and the model itself with Captum's own targets.
LRPx(model).attribute(ids, target=(-1, is_))
