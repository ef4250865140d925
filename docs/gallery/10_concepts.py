"""Neurons and steering
====================

The neurons on which a prediction depends, the texts for which they matter, and the model's output
without them.
"""

# %%
# The neurons of an MLP are the inputs of its second layer.
import tempfile

import matplotlib.pyplot as plt
import torch

from captum_lrpx import (
    ConceptRelevance,
    LogitDifference,
    NeuronAttnLRPx,
    build_references,
    steer,
    zoo,
)

model, tokenizer = zoo.load("sva-llama")
ids = tokenizer("the keys to the old cabinet", return_tensors="pt").input_ids
are, is_ = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("the are is"))[1:]
forward = LogitDifference(model)
arguments = (None, are, is_)
layer = model.model.layers[-1].mlp.down_proj

concepts = ConceptRelevance(forward, layer, at_input=True)
(best,) = concepts.most_relevant(ids, additional_forward_args=arguments, k=5)
for neuron in best:
    print(f"neuron {neuron.number:>3}: relevance {neuron.relevance:+.2f}")

# %%
# For which texts does the first of them fire most? The index of a corpus is built in one pass and
# saved.
nouns = ["key", "dog", "author", "farmer", "guard", "boy"]
corpus = [
    f"the {noun}{end} near the {other}{ending}"
    for noun in nouns
    for other in nouns
    if other != noun
    for end in ("", "s")
    for ending in ("", "s")
]
encoded = [tokenizer(text, return_tensors="pt").input_ids for text in corpus]
with tempfile.TemporaryDirectory() as folder:
    index = build_references(
        concepts, encoded, folder, by="activation", additional_forward_args=arguments, k=5
    )
references = index.of(best[0].number)
for reference in references:
    print(f"{reference.score:+.2f}  {corpus[reference.sample]}")

# %%
# Why it fires there: relevances of the tokens for its activation.
tokens = NeuronAttnLRPx(model, layer)
for reference in references[:3]:
    text = encoded[reference.sample]
    relevances = tokens.attribute(
        text, (reference.position, best[0].number), attribute_to_neuron_input=True
    )[0]
    pieces = tokenizer.convert_ids_to_tokens(text[0])
    named = zip(pieces, relevances.tolist(), strict=True)
    print("  ".join(f"{piece.replace('▁', '')} {number:+.2f}" for piece, number in named))

# %%
# The prediction without these neurons, and with twice their activation. Relevance gives the
# direction of the change.
relevance = sum(neuron.relevance for neuron in best)
numbers = [neuron.number for neuron in best]
changes = {}
for scale in (0.0, 0.5, 1.0, 1.5, 2.0):
    with torch.no_grad(), steer(layer, numbers, scale=scale, at_input=True):
        changes[scale] = forward(ids, *arguments).item()
    print(f"scale {scale}: are - is = {changes[scale]:+.2f}")
print(f"relevance of the neurons: {relevance:+.2f}")
assert (changes[0.0] < changes[1.0]) == (relevance > 0)
figure, axis = plt.subplots(figsize=(4.2, 2.8), layout="constrained")
axis.plot(list(changes), list(changes.values()), marker="o", label="steered")
axis.axhline(changes[1.0], color="gray", linewidth=0.8, linestyle=":", label="unchanged model")
axis.set_xlabel("scale of the five neurons")
axis.set_ylabel("logit of are - is")
axis.legend(frameon=False)
