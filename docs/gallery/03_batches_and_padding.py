"""Contrast, batches and padding
=============================

Several texts at once, each with its own question.
"""

# %%
# ``ask_batch`` encodes and pads the texts, and looks up the words.
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
# Padding has no relevance.
for text, row, ids, delta in zip(texts, relevances, batch.inputs, deltas, strict=True):
    print(f"{text}  (delta {delta:+.3f})")
    for token, relevance in zip(tokenizer.convert_ids_to_tokens(ids), row, strict=True):
        print(f"{token:>16} {relevance:+.3f}")

# %%
# Rows do not know of each other: a text alone has the same relevances as in the batch.
alone = ask_batch(model, tokenizer, texts[:1], targets[:1])
single = AttnLRPx(alone.forward).attribute(
    alone.inputs, additional_forward_args=alone.additional_forward_args
)
assert single[0].allclose(relevances[0, : single.shape[1]], atol=1e-4)
