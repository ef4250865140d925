"""A first explanation
===================

Which words of *the keys to the cabinet* support *are* rather than *is*?
"""

# %%
# A small model of the package; any causal or masked language model and its tokenizer will do.
from captum_lrpx import Target, explain, zoo

# sphinx_gallery_thumbnail_path = 'images/first_explanation.svg'
model, tokenizer = zoo.load("sva-bert")
text = "the keys to the cabinet near the door [MASK] old ."
explanation = explain(model, tokenizer, text, Target("are", contrast="is"))
explanation

# %%
# Red supports *are*, blue opposes it. The same as text, and as numbers:
print(explanation)
print([token.label for token in explanation.top(2)])

# %%
# The relevances and the delta sum to the explained value. With LRP the delta is the share of biases
# and position embeddings; with AttnLRP, the default, also of the softmax. The last line above has
# the amount of each.
assert abs(explanation.sum + explanation.delta - explanation.value) < 1e-6

# %%
# Words instead of tokens, and one entry for all special tokens; the sum does not change.
explanation.words().fold_special()
