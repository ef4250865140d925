"""Tokenizers whose tokens are bytes wherever a character is not in their small vocabulary."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SEEN = ("the", "keys", "to", "are", "capital")
START, END = "<|start|>", "<|end|>"


def byte_level():
    """As GPT-2's: a character for each byte, ``Ġ`` for a blank."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*(f"Ġ{word}" for word in SEEN), *SEEN]
    vocabulary, merges = {START: 0, END: 1}, []
    for token in alphabet:
        vocabulary[token] = len(vocabulary)
    for word in words:
        for stop in range(2, len(word) + 1):
            if word[:stop] not in vocabulary:
                vocabulary[word[:stop]] = len(vocabulary)
                merges.append((word[: stop - 1], word[stop - 1]))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END
    )


def byte_fallback():
    """As Llama's: ``▁`` for a blank, ``<0xE6>`` for a byte."""
    vocabulary, merges = {"<unk>": 0, START: 1, END: 2}, []
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for word in SEEN:
        for token in (*word, "▁"):
            vocabulary.setdefault(token, len(vocabulary))
        marked = f"▁{word}"
        for stop in range(2, len(marked) + 1):
            if marked[:stop] not in vocabulary:
                vocabulary[marked[:stop]] = len(vocabulary)
                merges.append((marked[: stop - 1], marked[stop - 1]))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, unk_token="<unk>"
    )


TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}
