"""Comparing methods
=================

Decompositions and common baselines on one question.
"""

# %%
# Methods are called by name; ``captum-lrpx methods`` lists them with their options.
import matplotlib.pyplot as plt

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
# Rank correlations measure the agreement of two methods on the order of the tokens, not which is
# right.
comparison

# %%
# The relevances of all methods, each on its own scale.
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
scaled = []
for explanation in comparison.explanations:
    largest = max(map(abs, explanation.relevances))
    scaled.append([relevance / largest for relevance in explanation.relevances])
axis.imshow(scaled, cmap="bwr", vmin=-1, vmax=1, aspect="auto")
axis.set_xticks(range(len(explanation.labels)), explanation.labels, rotation=45, ha="right")
axis.set_yticks(range(len(comparison.names)), comparison.names)

# %%
# The sum of each and the explained value. Only decompositions relate the two.
for name, explanation in zip(comparison.names, comparison.explanations, strict=True):
    print(f"{name:>22}: value {explanation.value:+.3f}, sum {explanation.sum:+.3f}")
