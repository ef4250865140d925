"""Contrast, batches and padding
=============================

Several texts at once, each with its own question.
"""

# %%
# ``ask_batch`` encodes and pads the texts, and looks up the words.
import matplotlib.pyplot as plt

from captum_lrpx import AttnLRPx, Target, ask_batch, zoo

model, tokenizer = zoo.load("sva-gpt2")
texts = ["the keys to the cabinet", "the author", "the tables near the old doors"]
targets = [Target("are", contrast="is"), Target("is", contrast="are"), Target("are")]
batch = ask_batch(model, tokenizer, texts, targets)
relevances, deltas = AttnLRPx(batch.forward).attribute(
    batch.inputs,
    additional_forward_args=batch.additional_forward_args,
    return_convergence_delta=True,
)

# %%
# Each row has its own target, and padding has no relevance.
figure, axis = plt.subplots(figsize=(8, 2), layout="constrained")
limit = relevances.abs().max().item()
axis.imshow(relevances, cmap="bwr", vmin=-limit, vmax=limit, aspect="auto")
for number, (ids, delta) in enumerate(zip(batch.inputs, deltas, strict=True)):
    tokens = tokenizer.convert_ids_to_tokens(ids)
    print(f"{texts[number]}: sum {relevances[number].sum():+.3f}, delta {delta:+.3f}")
    for place, token in enumerate(tokens):
        shown = token.replace("Ġ", "").replace("<|endoftext|>", "pad" if place else "<bos>")
        axis.text(place, number, shown, ha="center", va="center")
axis.set_yticks(range(len(texts)), ["are - is", "is - are", "are"])
axis.set_xticks([])

# %%
# Rows are independent: a text alone has the same relevances as in the batch.
alone = ask_batch(model, tokenizer, texts[:1], targets[:1])
single = AttnLRPx(alone.forward).attribute(
    alone.inputs, additional_forward_args=alone.additional_forward_args
)
assert single[0].allclose(relevances[0, : single.shape[1]], atol=1e-4)
