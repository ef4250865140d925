"""A state space
=============

A Mamba has no attention; its knowledge of earlier tokens is in a state. Which tokens did it
remember? The model is trained here in seconds to name the word after "keep", with others before and
after it.
"""

# %%
# Texts, a tokenizer of words, and a small Mamba that learns to answer.

import random

import matplotlib.pyplot as plt
import torch
import transformers
from captum.attr import InputXGradient
from tokenizers import Tokenizer, models, pre_tokenizers

from captum_lrpx import LRP_UNIFORM_GATE, LRPx, Target, explain

NOUNS = ("apple", "boat", "cat", "door", "egg", "fish", "goat", "house")
vocabulary = {word: number for number, word in enumerate(["<unk>", "keep", "?", *NOUNS])}
inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
random.seed(0)


def text() -> tuple[str, str]:
    """Words in which one is to be kept, and that word."""
    words = random.choices(NOUNS, k=9)
    place = random.randrange(9)
    return " ".join([*words[:place], "keep", *words[place:], "?"]), words[place]


torch.manual_seed(0)
model = transformers.MambaForCausalLM(
    transformers.MambaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        state_size=8,
        num_hidden_layers=2,
        time_step_rank=4,
        initializer_range=0.3,
        use_cache=False,
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
for _ in range(120):
    texts, words = zip(*(text() for _ in range(64)), strict=True)
    logits = model(**tokenizer(list(texts), return_tensors="pt")).logits[:, -1]
    right = torch.tensor(tokenizer.convert_tokens_to_ids(list(words)))
    loss = torch.nn.functional.cross_entropy(logits, right)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print(f"loss {loss.item():.3f}, right {(logits.argmax(1) == right).float().mean():.2f}")

# %%
# The prediction depends on the kept word. These are the rules of MambaLRP: step, B and C of a state
# space are constant, a gate and its signal share equally. See :doc:`/experts_and_state_spaces`.

question = "door fish keep goat apple boat egg cat house ?"
found = explain(model, tokenizer, question, "goat", method="lrpx", recipe=LRP_UNIFORM_GATE)
print(found.certificate)
found

# %%
# Why goat, and not another word that was there?

explain(
    model, tokenizer, question, Target("goat", contrast="egg"), method="lrpx",
    recipe=LRP_UNIFORM_GATE,
)  # fmt: skip

# %%
# Do the tokens sum to the answer's logit? With LRP they do, up to the biases; with gradient times
# input they do not.

ids = tokenizer(question, return_tensors="pt").input_ids
embeds = model.get_input_embeddings()(ids).detach()
forward = lambda x: model(inputs_embeds=x).logits[:, -1]  # noqa: E731
goat = vocabulary["goat"]
relevance = LRPx(forward, model, recipe=LRP_UNIFORM_GATE).attribute(embeds, goat).sum(-1)[0]
gradient = InputXGradient(forward).attribute(embeds, goat).sum(-1)[0]
print(f"value {forward(embeds)[0, goat].item():.2f}")
print(f"LRP {relevance.sum().item():.2f}, gradient x input {gradient.sum().item():.2f}")
figure, axis = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
places = range(len(relevance))
axis.bar([place - 0.2 for place in places], relevance.detach(), 0.4, label="LRP")
axis.bar([place + 0.2 for place in places], gradient.detach(), 0.4, label="gradient x input")
axis.set_xticks(places, question.split(), rotation=45)
axis.legend(frameon=False)
