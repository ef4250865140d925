"""Architecture and training of each model of the zoo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from captum_lrpx.zoo import tokenizer as tokenizers

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LAYERS = 3
WIDTH = 128
HEADS = 4


@dataclass(frozen=True)
class Recipe:
    """Recipe for one model.

    Attributes:
        tokenizer: Builds its tokenizer.
        model: Builds it, untrained, for a tokenizer.
        steps: Number of batches.
        learning_rate: The largest learning rate, reached after ``warmup`` steps; from there
            it falls to zero along a cosine.
        batch: Number of sentences of a batch.
        warmup: The share of the steps in which the learning rate rises.
        easy: The share of the steps, at the beginning, with at most one noun between subject
            and verb: agreement is learned there first and then extended to longer spans.
        seed: Seed of all random numbers.
    """

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    model: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    steps: int
    learning_rate: float
    batch: int = 64
    warmup: float = 0.05
    easy: float = 0.2
    seed: int = 1


def _bert(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=tokenizers.MAX_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            # BERT's own 0.02 is for a width of 768; with it this narrow model stays at chance
            # for long, with some schedules for the whole training.
            initializer_range=0.06,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _gpt2(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=tokenizers.MAX_LENGTH,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _llama(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            intermediate_size=3 * WIDTH,
            hidden_act="silu",
            max_position_embeddings=tokenizers.MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


RECIPES = {
    "sva-bert": Recipe(tokenizers.word_piece, _bert, steps=4000, learning_rate=3e-4, easy=0.3),
    "sva-gpt2": Recipe(tokenizers.byte_level, _gpt2, steps=4000, learning_rate=1e-3),
    "sva-llama": Recipe(tokenizers.byte_fallback, _llama, steps=4000, learning_rate=1e-3),
}
