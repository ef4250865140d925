"""The embedded models: their tokenizers, architectures and settings of their training.

Every word of the grammar is a single token in each tokenizer, at the start of a text as well as
within one; any other text is split into smaller pieces, as large models often split
words into several tokens.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from captum_lrpx.sva import lexicon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from transformers import PreTrainedModel

MAX_LENGTH = 64
"""Largest number of tokens of a text; the models have as many positions."""

LAYERS = 3
WIDTH = 128
HEADS = 4

_SUFFIXES = ("s", "es", "ed", "ing", "er", "ly", "en", "al", "ion", "able")


def learn_merges(words: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Learn byte-pair merges until every given word is a single token.

    Implemented here rather than by a library, so that ties between equally frequent pairs are
    broken in the same way (alphabetically) in all versions.

    Args:
        words: The words, each as a sequence of symbols.

    Returns:
        The merges in the order of their application.
    """
    pieces = [list(word) for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        counts: Counter[tuple[str, str]] = Counter()
        for word in pieces:
            counts.update(itertools.pairwise(word))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of ``pair``, from left to right."""
    result: list[str] = []
    index = 0
    while index < len(word):
        if tuple(word[index : index + 2]) == pair:
            result.append(pair[0] + pair[1])
            index += 2
        else:
            result.append(word[index])
            index += 1
    return result


def _numbered(*groups: Iterable[str]) -> dict[str, int]:
    """Give the tokens of all groups consecutive numbers, each token once."""
    tokens = dict.fromkeys(itertools.chain.from_iterable(groups))
    return {token: index for index, token in enumerate(tokens)}


def _finished(
    tokenizer: Tokenizer, special: dict[str, str], inputs: list[str]
) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer for transformers.

    Args:
        tokenizer: The tokenizer.
        special: Its special tokens by role.
        inputs: Names of the model's inputs.
    """
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        padding_side="right",
        model_input_names=inputs,
        **special,
    )


def word_piece() -> PreTrainedTokenizerFast:
    """Build the tokenizer of ``sva-bert``: lower-casing WordPiece, ``[CLS]`` text ``[SEP]``."""
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    letters = string.ascii_lowercase + string.digits
    vocabulary = _numbered(
        special.values(),
        lexicon.words(),
        letters,
        string.punctuation,
        (f"##{piece}" for piece in (*letters, *_SUFFIXES)),
    )
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return _finished(tokenizer, special, ["input_ids", "token_type_ids", "attention_mask"])


def byte_level() -> PreTrainedTokenizerFast:
    """Build the tokenizer of ``sva-gpt2``: byte-level BPE, ``<|endoftext|>`` text."""
    end = "<|endoftext|>"
    merges = learn_merges(f"\u0120{word}" for word in lexicon.words())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = _numbered(alphabet, (left + right for left, right in merges), (end,))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # With a blank before the text, its first word is the same token as elsewhere.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", pair=f"{end} $A {end} $B", special_tokens=[(end, vocabulary[end])]
    )
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    return _finished(tokenizer, dict.fromkeys(roles, end), ["input_ids", "attention_mask"])


def byte_fallback() -> PreTrainedTokenizerFast:
    """Build the tokenizer of ``sva-llama``: BPE with byte fallback, ``<s>`` text."""
    blank = "\u2581"
    special = {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    merges = learn_merges(f"{blank}{word}" for word in lexicon.words())
    vocabulary = _numbered(
        special.values(),
        (f"<0x{byte:02X}>" for byte in range(256)),
        (blank, *string.ascii_lowercase, *lexicon.PUNCTUATION),
        (left + right for left, right in merges),
    )
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=special["unk_token"],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=blank, prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(blank, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return _finished(tokenizer, special, ["input_ids", "attention_mask"])


# Models -----------------------------------------------------------------------------------------


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
            max_position_embeddings=MAX_LENGTH,
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
            n_positions=MAX_LENGTH,
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
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


RECIPES = {
    "sva-bert": Recipe(word_piece, _bert, steps=4000, learning_rate=3e-4, easy=0.3),
    "sva-gpt2": Recipe(byte_level, _gpt2, steps=4000, learning_rate=1e-3),
    "sva-llama": Recipe(byte_fallback, _llama, steps=4000, learning_rate=1e-3),
}
