"""What the tests of generated text share: a tokenizer, ids, and one call of a method per token."""

from __future__ import annotations

import torch
from models import FAMILIES, MORE_FAMILIES, VOCABULARY, token_ids
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from captum_lrpx import AttnLRPx, LayerAttnLRPx, LayerLRPx, LRPx

CAUSAL = [name for name, family in (FAMILIES | MORE_FAMILIES).items() if family.causal]
METHODS = {LRPx: LayerLRPx, AttnLRPx: LayerAttnLRPx}
PROMPT, STEPS = 3, 4
TEXT = "the keys to the cabinet"


def words(size=VOCABULARY):
    """A tokenizer of the words w0, w1, ..."""
    vocabulary = {f"w{index}": index for index in range(size)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w1")


def some_ids(seed=0):
    ids = token_ids(1, PROMPT + STEPS, seed)[0]
    return ids[:PROMPT], ids[PROMPT:]


def single_calls(method, wrap, prompt, continuation, foils=None):
    """One call of the method per token, on the text before it: [K, P + K]."""
    text = torch.cat([prompt, continuation])
    rows = torch.zeros(len(continuation), len(text), dtype=torch.float64)
    for step, token in enumerate(continuation):
        seen = text[None, : len(prompt) + step]
        if foils is None:
            found = method(wrap).attribute(seen, target=int(token))
        else:
            args = (None, int(token), int(foils[step]))
            found = method(wrap).attribute(seen, additional_forward_args=args)
        rows[step, : len(prompt) + step] = found[0]
    return rows
