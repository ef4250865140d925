"""The one table of tiny random models: families x heads.

Every parameter is random, norm weights and (unless ``biases="zero"``) all biases included, so that
a forgotten rule or a forgotten bias shows in the numbers. A model is determined by its arguments.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
import transformers
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

Attention = Literal["eager", "sdpa"]
Biases = Literal["random", "zero"]
Head = Literal["lm", "sequence", "token", "qa"]

VOCABULARY: Final = 19
LABELS: Final = 3
FIRST_TOKEN: Final = 3
"""The ids below are special; 0 is padding."""
MAX_POSITIONS: Final = 24

HEADS: Final[tuple[Head, ...]] = ("lm", "sequence", "token", "qa")


@dataclass(frozen=True)
class Family:
    """How one family calls what every family has.

    Attributes:
        prefix: Of the class names.
        config: The constant part of the config.
        causal: Whether its language model predicts the next token.
        rotary: Whether positions enter by rotation and not by an embedding.
        gated: Whether its MLP is a gated one, with separate key/value heads in the attention.
        names: Config attributes that this family calls otherwise.
        interface: Whether it uses transformers' attention interface, and so has SDPA.
    """

    prefix: str
    config: dict[str, Any]
    causal: bool = True
    rotary: bool = False
    gated: bool = False
    names: dict[str, str] = field(default_factory=dict)
    interface: bool = True

    def model_class(self, head: Head) -> type[transformers.PreTrainedModel]:
        """The class of the family's model with a head."""
        language_model = "MaskedLM"
        if self.causal:
            language_model = "LMHeadModel" if self.prefix == "GPT2" else "CausalLM"
        suffix = {
            "lm": language_model if self.prefix == "GPT2" else f"For{language_model}",
            "sequence": "ForSequenceClassification",
            "token": "ForTokenClassification",
            "qa": "ForQuestionAnswering",
        }[head]
        found: type[transformers.PreTrainedModel] = getattr(transformers, self.prefix + suffix)
        return found


_NO_DROPOUT: Final = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

FAMILIES: Final[dict[str, Family]] = {
    "bert": Family("Bert", {"type_vocab_size": 2}, causal=False),
    "roberta": Family("Roberta", {"type_vocab_size": 2}, causal=False),
    "distilbert": Family(
        "DistilBert",
        {},
        causal=False,
        names={"intermediate_size": "hidden_dim", "hidden_act": "activation"},
    ),
    "gpt2": Family(
        "GPT2",
        {},
        names={"intermediate_size": "n_inner", "hidden_act": "activation_function"},
    ),
    "llama": Family("Llama", {"attention_bias": True, "mlp_bias": True}, rotary=True, gated=True),
    "mistral": Family("Mistral", {"sliding_window": None}, rotary=True, gated=True),
    "qwen2": Family("Qwen2", {}, rotary=True, gated=True),
    "qwen3": Family("Qwen3", {"attention_bias": True}, rotary=True, gated=True),
}

MORE_FAMILIES: Final[dict[str, Family]] = {
    "opt": Family(
        "OPT",
        {"dropout": 0.0},
        names={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
    ),
    "bloom": Family("Bloom", {}, interface=False),
}
"""Families without all of the heads, or without SDPA, which the tests of every family need."""


def built(
    family: str,
    head: Head = "lm",
    dtype: torch.dtype = torch.float64,
    attn: Attention = "eager",
    biases: Biases = "random",
    *,
    layers: int = 2,
    heads: int = 2,
    key_value_heads: int | None = None,
    head_dim: int = 4,
    intermediate: int = 12,
    activation: str | None = None,
    seed: int = 0,
    **config: Any,
) -> transformers.PreTrainedModel:
    """A tiny random model, in evaluation mode.

    Args:
        family: Key of :data:`FAMILIES` or :data:`MORE_FAMILIES`.
        head: What stands on top: language model, sequence or token classification, or question
            answering.
        dtype: Of the parameters.
        attn: Attention implementation.
        biases: Random, or all zero, norm biases included.
        layers: Number of blocks.
        heads: Number of query heads; the model is ``heads * head_dim`` wide.
        key_value_heads: Number of key/value heads, where the family has its own number of them.
        head_dim: Size of one head.
        intermediate: Width of the MLP.
        activation: Name of the MLP's activation; the family's own if not given.
        seed: Of the parameters.
        **config: Anything else that the family's config has.
    """
    known = (FAMILIES | MORE_FAMILIES)[family]
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": heads * head_dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": MAX_POSITIONS,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_labels": 2 if head == "qa" else LABELS,
    }
    if activation is not None:
        options["hidden_act"] = activation
    if known.gated:
        options["num_key_value_heads"] = key_value_heads or heads
        options["head_dim"] = head_dim
    options = {known.names.get(name, name): value for name, value in options.items()}
    filled = transformers.AutoConfig.for_model(family, **options | known.config | config)
    attention = attn if known.interface else "eager"
    model = known.model_class(head)._from_config(filled, attn_implementation=attention)
    randomize(model, seed, biases)
    return model.to(dtype).eval()


_TEMPLATES: Final[dict[str, transformers.PreTrainedModel]] = {}
_MOST_TEMPLATES: Final = 128


@wraps(built)
def tiny(*args: Any, **options: Any) -> transformers.PreTrainedModel:
    """A model that is :func:`built` once and copied for each test, which takes half the time.

    Tests may change their copy. Where hypothesis draws the arguments none of them comes again, and
    there is nothing to copy: :func:`built`.
    """
    key = repr((args, sorted(options.items())))
    if key not in _TEMPLATES:
        if len(_TEMPLATES) == _MOST_TEMPLATES:
            _TEMPLATES.pop(next(iter(_TEMPLATES)))
        _TEMPLATES[key] = built(*args, **options)
    return copy.deepcopy(_TEMPLATES[key])


def randomize(model: nn.Module, seed: int, biases: Biases = "random") -> None:
    """Give every parameter of a model a random value of a sensible size, in place.

    Drawn in float64 and then rounded, so that the models of two dtypes are the same up to rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.endswith("bias"):
                value *= 0.0 if biases == "zero" else 0.3
            elif parameter.ndim == 1:  # the weight of a norm
                value = 1 + 0.3 * value
            elif "embed" not in name and ".wte." not in name and ".wpe." not in name:
                value *= parameter.shape[-1] ** -0.5
            parameter.copy_(value)


def token_ids(batch: int = 2, length: int = 5, seed: int = 0) -> Tensor:
    """Random ids ``[B, T]`` without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_TOKEN, VOCABULARY, (batch, length), generator=generator)


def outputs(model: nn.Module, **inputs: Tensor) -> Tensor:
    """The logits, of whichever head: ``[B, T, V]``, ``[B, T, C]`` or ``[B, C]``."""
    result = model(**inputs)
    if "start_logits" in result:
        return torch.stack([result.start_logits, result.end_logits], dim=-1)
    logits: Tensor = result.logits
    return logits


def embeddings_of(model: nn.Module) -> Iterator[nn.Embedding]:
    """All embedding layers, those of tokens, positions and token types."""
    return (module for module in model.modules() if isinstance(module, nn.Embedding))
