"""A first explanation
===================

Which words of *the keys to the cabinet* speak for *are* rather than *is*?
"""

# %%
# A model of the package stands in for yours: any causal or masked language model of the
# supported families, and its tokenizer.
from captum_lrpx import Target, explain, zoo

model, tokenizer = zoo.load("sva-bert")
text = "the keys to the cabinet near the door [MASK] old ."
explanation = explain(model, tokenizer, text, Target("are", contrast="is"))
explanation

# %%
# Red speaks for *are*, blue against it. The same as text, and as numbers:
print(explanation)
print([token.label for token in explanation.top(2)])

# %%
# The relevances and the delta sum to the explained value. With LRP the delta is what went to
# biases and position embeddings; with AttnLRP, the default, also what the softmax keeps. The last
# line above says how much each of them holds.
assert abs(explanation.sum + explanation.delta - explanation.value) < 1e-6

# %%
# Words instead of tokens, and one entry for all special tokens; the sum stays what it is.
explanation.words().fold_special()
