"""Chat templates, and a byte-level tokenizer with the tokens of one."""

from __future__ import annotations

import torch
from models import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from zoo_models import learn_merges

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""That of ChatML."""

QUESTION = ({"role": "user", "content": "Is 7 prime?"},)
WORDS = ("Yes", "No", "Is", "Ġprime", "ĠYes", "ĠNo", "Ġis", "user", "assistant", "system", "ĠParis")
ADDED = ("<|im_start|>", "<|im_end|>", "<s>")


def byte_level(template=TEMPLATE, words=WORDS):
    """A tokenizer as that of SmolLM2 or Qwen: no blank in front, digits alone, added tokens."""
    merges = learn_merges(words)
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in merges]
    numbers = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    finished = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    finished.add_special_tokens({"additional_special_tokens": [*ADDED]})
    finished.add_tokens(["<think>"])
    finished.chat_template = template
    return finished


def chat_model(positions=128):
    """A tiny model with this tokenizer."""
    tokenizer = byte_level()
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": positions}
    return tiny("gpt2", dtype=torch.float32, **config), tokenizer
