"""A translation
=============

An encoder-decoder writes one token at a time, from the source and the tokens written so far. Both
get relevance. The German article depends on the noun at the end of the English phrase: is that
where its relevance is? The model is trained here in a few seconds on phrases of four words; one
from the hub is explained in the same way.
"""

# %%
# Phrases in two languages, words as tokens, and a small T5.

import itertools
import random

import matplotlib.pyplot as plt
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from captum_lrpx import Target, explain

NOUNS = {
    "dog": "der Hund", "tree": "der Baum", "table": "der Tisch",
    "cat": "die Katze", "lamp": "die Lampe", "street": "die Straße",
    "house": "das Haus", "book": "das Buch", "boat": "das Boot",
}  # fmt: skip
WORDS = {"red": "rote", "old": "alte", "small": "kleine", "good": "gute"}


def phrase(first: str, second: str, noun: str) -> tuple[str, str]:
    """The same in English and in German."""
    article, german = NOUNS[noun].split()
    return f"the {first} {second} {noun}", f"{article} {WORDS[first]} {WORDS[second]} {german}"


phrases = [
    phrase(*both, noun) for both in itertools.permutations(WORDS, 2) for noun in sorted(NOUNS)
]
words = sorted({word for pair in phrases for text in pair for word in text.split()})
vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
inner.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
)

torch.manual_seed(0)
model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
        vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=0,
    )
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
random.seed(0)
for _ in range(150):
    english, german = zip(*random.sample(phrases, 32), strict=True)
    source, target = (tokenizer(list(texts), return_tensors="pt") for texts in (english, german))
    loss = model(input_ids=source.input_ids, labels=target.input_ids).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()

# %%
# At the beginning, the next token is the article.

text = "the old red house"
explain(model, tokenizer, text, method="lrpx")

# %%
# Why this article and not another?

explain(model, tokenizer, text, Target("das", contrast="die"), method="lrpx")

# %%
# After three words. ``sums`` has the relevance of the source and of the written words.

found = explain(model, tokenizer, text, written="das alte rote", method="lrpx")
print(found.target, {name: round(amount, 2) for name, amount in found.sums.items()})
found

# %%
# The source of each German word: the article and the noun rest on *house*, the adjectives on
# theirs.

german = ["das", "alte", "rote", "Haus"]
rows = []
for count in range(len(german)):
    each = explain(model, tokenizer, text, written=" ".join(german[:count]), method="lrpx")
    rows.append(each.relevances[:4])
limit = max(abs(relevance) for row in rows for relevance in row)
figure, axis = plt.subplots(figsize=(4.2, 3), layout="constrained")
axis.imshow(rows, cmap="bwr", vmin=-limit, vmax=limit)
axis.set_xticks(range(4), text.split())
axis.set_yticks(range(4), german)
