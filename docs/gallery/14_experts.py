"""A mixture of experts
====================

In a Mixtral each token passes through two of several experts. Which ones, and on which of them does
the prediction depend? The model is trained here in seconds to count: upwards after "up",
downwards after "down".
"""

# %%
# Sequences of numbers, and a small Mixtral that learns to continue them.

import random

import matplotlib.pyplot as plt
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from captum_lrpx import ExpertRelevance, explain

NUMBERS = tuple(str(number) for number in range(12))
vocabulary = {word: number for number, word in enumerate(["<unk>", "up", "down", *NUMBERS])}
inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
random.seed(0)


def counted() -> str:
    """Numbers in one direction, in steps of one or two."""
    first, step = random.randrange(12), random.choice((1, 2))
    step *= random.choice((1, -1))
    numbers = (str((first + step * place) % 12) for place in range(6))
    return " ".join(["up" if step > 0 else "down", *numbers])


torch.manual_seed(0)
model = transformers.MixtralForCausalLM(
    transformers.MixtralConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=6,
        num_experts_per_tok=2,
        initializer_range=0.2,
        output_router_logits=True,
        router_aux_loss_coef=0.02,
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
for _ in range(150):
    ids = tokenizer([counted() for _ in range(32)], return_tensors="pt").input_ids
    loss = model(input_ids=ids, labels=ids, output_router_logits=True).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
model.config.output_router_logits = False

# %%
# What comes next, and why?

text = "down 9 7 5 3"
found = explain(model, tokenizer, text, "1", method="lrpx")
print(found.certificate)
found

# %%
# The experts chosen for each token in the last layer, with their routing weights and the relevance
# through them: only the last token has any, where the prediction is made. In earlier layers other
# tokens have some as well, moved by attention.

ids = tokenizer(text, return_tensors="pt").input_ids
target = (-1, vocabulary["1"])
routings = ExpertRelevance(model).attribute(ids, target=target)
print(routings[-1].table(text.split()))

# %%
# As a picture: red supports the prediction, a frame marks a chosen expert.

for routing in routings:
    routing.plot(text.split())
plt.show()

# %%
# Which experts serve which direction? The relevance of each in the last layer, over many texts.

totals = {}
for direction in ("up", "down"):
    texts = [each for each in (counted() for _ in range(200)) if each.startswith(direction)]
    batch = tokenizer([each.rsplit(" ", 1)[0] for each in texts], return_tensors="pt").input_ids
    answers = [(-1, vocabulary[each.split()[-1]]) for each in texts]
    places = [(batch.shape[1] - 1, answer) for _, answer in answers]
    totals[direction] = (
        ExpertRelevance(model).attribute(batch, target=places)[-1].by_expert().mean(0)
    )
for direction, shares in totals.items():
    print(f"{direction:5}", " ".join(f"{share:+.2f}" for share in shares.tolist()))
