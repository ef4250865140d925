"""Replacing InputXGradient
========================

Captum code stays as it is; the class changes, and with it what the numbers sum to.
"""

# %%
# Embeddings go in, and a forward module of the package says what is explained: the logit of *are*
# minus that of *is*, at the last token.
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
for method in (InputXGradient, LRPx, AttnLRPx):
    attributions = method(forward).attribute(embeds, additional_forward_args=args)
    scores = attributions.sum(-1)[0]
    print(f"{method.__name__:>15}: sum {scores.sum():+.3f}")
    for token, score in zip(tokenizer.convert_ids_to_tokens(ids[0]), scores, strict=True):
        print(f"{token:>24} {score:+.3f}")

# %%
# Gradient x Input misses the explained value by any amount. What LRP misses is the share of biases,
# which this model does not have; AttnLRP also leaves something in the softmax. Both say how much:
_, delta = LRPx(forward).attribute(
    embeds, additional_forward_args=args, return_convergence_delta=True
)
print(f"convergence delta of LRP: {delta.item():+.6f}")

# %%
# Token ids can be given instead, and the model itself with Captum's own targets.
LRPx(model).attribute(ids, target=(-1, is_))
