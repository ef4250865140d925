"""Small decoders that differ in one choice, and the text that they learn from.

The base is Transformers' Llama: RMS norms before each branch, gated MLPs, rotary positions, no
biases. Each other model of :data:`CHOICES` changes one of these. All learn from sequences of the
package's grammar: several sentences behind one start token, cut to the same length.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP
from zoo_models import byte_fallback

from captum_lrpx.sva import grammar
from captum_lrpx.sva.lexicon import NOUNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from captum_lrpx.sva.samples import Sample

__all__ = [
    "CHOICES",
    "FIRST",
    "LENGTH",
    "build",
    "marked",
    "sequences",
    "to_first",
    "tokenizer",
    "weights_given",
]

FIRST = "<s>"
"""The start token, which is nowhere else."""
LENGTH = 64
"""Tokens of a sequence, the start token included."""
MIX = {0: 0.5, 1: 0.3, 3: 0.2}
"""Shares of training sentences by the largest number of nouns between subject and verb."""
LAYERS, WIDTH, HEADS = 4, 48, 4
_INNER = 3 * WIDTH
MARK = "s"
_SINGULARS = {noun.plural: noun.singular for noun in NOUNS}
_SPREAD = 0.02
_SINK = "one_choice_built_in_sink"


# Models -----------------------------------------------------------------------------------------


class _NormsAfter(LlamaDecoderLayer):
    """A layer that normalises the sums, as in the first transformers."""

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """Apply the layer to ``[B, T, D]``."""
        arguments.pop("use_cache", None)
        mixed, _ = self.self_attn(hidden_states=hidden_states, **arguments)
        between = self.input_layernorm(hidden_states + mixed)
        return self.post_attention_layernorm(between + self.mlp(between))


class _NoGate(LlamaMLP):
    """Two projections with an activation between them; as many weights as with a gate."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        del self.gate_proj
        inner = 3 * self.intermediate_size // 2
        self.up_proj = nn.Linear(self.hidden_size, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, self.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to ``[B, T, D]``."""
        return self.down_proj(self.act_fn(self.up_proj(x)))


class _NoRotation(nn.Module):
    """Cosines and sines of the angle 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """For positions ``[1, T]``."""
        shape = (*position_ids.shape, self.width)
        return x.new_ones(shape), x.new_zeros(shape)


class _LearnedPositions(LlamaForCausalLM):
    """Positions are vectors that are added to the embeddings; nothing is rotated."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.positions = nn.Parameter(torch.empty(config.max_position_embeddings, WIDTH))
        self.model.rotary_emb = _NoRotation(WIDTH // HEADS)

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **more: Any
    ) -> Any:
        """As every causal model of Transformers."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        placed = inputs_embeds + self.positions[: inputs_embeds.shape[1]]
        return super().forward(inputs_embeds=placed, **more)


def _norms(model: Any, kind: Callable[[], nn.Module]) -> None:
    for layer in model.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = kind(), kind()
    model.model.norm = kind()


def _layer_norm(config: LlamaConfig) -> LlamaForCausalLM:
    model = LlamaForCausalLM(config)
    _norms(model, lambda: nn.LayerNorm(WIDTH, eps=config.rms_norm_eps, bias=False))
    return model


def _norms_after(config: LlamaConfig) -> LlamaForCausalLM:
    model = LlamaForCausalLM(config)
    layers = [_NormsAfter(config, index) for index in range(config.num_hidden_layers)]
    model.model.layers = nn.ModuleList(layers)
    model.model.norm = nn.Identity()  # the last layer ends with a norm
    return model


def _no_gate(config: LlamaConfig) -> LlamaForCausalLM:
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        layer.mlp = _NoGate(config)
    return model


def _biases(config: LlamaConfig) -> LlamaForCausalLM:
    config.attention_bias = config.mlp_bias = True
    return LlamaForCausalLM(config)


def _built_in_sink(config: LlamaConfig) -> LlamaForCausalLM:
    """Each head may attend to nothing, as in gpt-oss."""
    ALL_ATTENTION_FUNCTIONS.register(_SINK, eager_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_SINK, eager_mask)
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        layer.self_attn.sinks = nn.Parameter(torch.zeros(HEADS))
    model.set_attn_implementation(_SINK)
    return model


CHOICES: dict[str, Callable[[LlamaConfig], Any]] = {
    "base": LlamaForCausalLM,
    "no gate": _no_gate,
    "layer norm": _layer_norm,
    "norms after": _norms_after,
    "learned positions": _LearnedPositions,
    "biases": _biases,
    "built-in sink": _built_in_sink,
}
"""For each name of a model how it is built."""


def build(choice: str, vocabulary: int, seed: int) -> Any:
    """An untrained decoder.

    Args:
        choice: A name in :data:`CHOICES`.
        vocabulary: Number of tokens.
        seed: Seed of its weights.
    """
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=_INNER,
        max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    model = CHOICES[choice](config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=_SPREAD, generator=generator)
            elif "norm" in name:
                parameter.fill_(1)
            else:
                parameter.zero_()
    return model


@contextmanager
def weights_given(model: Any) -> Iterator[None]:
    """Let a model give its attention weights, in a ``with`` block."""
    before = model.config._attn_implementation  # noqa: SLF001 - the one place that tells
    if before != _SINK:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def to_first(weights: Sequence[Tensor]) -> Tensor:
    """Mean weight of the first token in what later ones attend to.

    Args:
        weights: For each layer ``[B, H, T, T]``.
    """
    return torch.stack([each[:, :, 1:, 0].mean() for each in weights]).mean()


# Text -------------------------------------------------------------------------------------------


def tokenizer() -> PreTrainedTokenizerFast:
    """That of the embedded Llama, for longer texts."""
    found = byte_fallback()
    found.model_max_length = 2 * LENGTH
    return found


def sequences(
    words: PreTrainedTokenizerFast,
    count: int,
    seed: int,
    *,
    errors: float = 0.0,
    marks: bool = False,
) -> Iterator[Tensor]:
    """Batches of training text, endlessly.

    Args:
        words: The tokenizer.
        count: Sequences of a batch.
        seed: Seed of the sentences.
        errors: Share of the sentences with attractors whose verb has the wrong number.
        marks: Whether plural nouns are :func:`marked`.

    Yields:
        Tokens ``[count, LENGTH]``: the start token and sentences, the last one cut off.
    """
    text = _sentences(words, seed, errors, marks=marks)
    while True:
        yield torch.tensor([_sequence(text, words.bos_token_id) for _ in range(count)])


def _sequence(text: Iterator[list[int]], first: Any) -> list[int]:
    found = [first]
    while len(found) < LENGTH:
        found += next(text)
    return found[:LENGTH]


def _sentences(
    words: PreTrainedTokenizerFast, seed: int, errors: float, *, marks: bool
) -> Iterator[list[int]]:
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    parts = {most: grammar.stream("train", seed, None, (0, most)) for most in MIX}
    while True:
        drawn = dice.choices(list(parts.values()), list(MIX.values()), k=256)
        some = [_written(marked(one) if marks else one, dice, errors) for one in map(next, drawn)]
        yield from words(some, add_special_tokens=False)["input_ids"]


def marked(sample: Sample) -> Sample:
    """A sentence whose plural nouns are two words, the singular and a mark of the plural."""
    words, places, start, at = [], {}, 0, 0
    for word in sample.sentence.split():
        new = f"{_SINGULARS[word]} {MARK}" if word in _SINGULARS else word
        places[start] = at, at + len(new)
        words.append(new)
        start, at = start + len(word) + 1, at + len(new) + 1
    evidence = []
    for low, high in (places[span[0]] for span in sample.evidence):
        if " ".join(words)[low:high].endswith(f" {MARK}"):
            cut = high - len(MARK)
            evidence += [(low, cut - 1), (cut, high)]
        else:
            evidence.append((low, high))
    return replace(
        sample,
        sentence=" ".join(words),
        verb_span=places[sample.verb_span[0]],
        evidence=tuple(evidence),
    )


def _written(sample: Sample, dice: random.Random, errors: float) -> str:
    """A sentence with a full stop, and perhaps with an error."""
    text = sample.sentence
    if sample.n_attractors and dice.random() < errors:
        start, end = sample.verb_span
        text = text[:start] + sample.foil + text[end:]
    return text if text.endswith(".") else f"{text} ."
