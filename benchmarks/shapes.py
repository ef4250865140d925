"""Models of true sizes with random weights: time and memory do not depend on the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SHAPES", "build"]


def _bert_base() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig())


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config())


def _smollm2() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


SHAPES: dict[str, Callable[[], Any]] = {
    "bert-base": _bert_base,
    "gpt2": _gpt2,
    "smollm2": _smollm2,
}
"""Name -> a model of that shape (SmolLM2 is the 135M one)."""


def build(name: str) -> Any:
    """A model of a shape, in evaluation mode, the same one each time."""
    torch.manual_seed(0)
    return SHAPES[name]().eval()
