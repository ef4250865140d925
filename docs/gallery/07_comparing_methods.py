"""Comparing methods
=================

Decompositions and the usual baselines, on one question.
"""

# %%
# Every method goes by its name; ``captum-lrpx methods`` lists them with their options.
from captum_lrpx import Target, compare, explain, zoo

model, tokenizer = zoo.load("sva-bert")
text = "the author that the guards like [MASK] old ."
target = Target("is", contrast="are")
options = {"integrated_gradients": {"n_steps": 20}}
methods = (
    "lrpx",
    "attnlrpx",
    "altilogit",
    "input_x_gradient",
    "integrated_gradients",
    "feature_ablation",
    "random",
)
comparison = compare(
    explain(model, tokenizer, text, target, method=method, **options.get(method, {}))
    for method in methods
)

# %%
# Rank correlations say how far two methods agree about the order of the tokens, not which is right.
comparison

# %%
# What each of them misses of the explained value. Only decompositions promise anything here.
for name, explanation in zip(comparison.names, comparison.explanations, strict=True):
    print(f"{name:>22}: value {explanation.value:+.3f}, sum {explanation.sum:+.3f}")
