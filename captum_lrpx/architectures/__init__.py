"""Where model families keep their parts: declarations, and their registry.

To support a family, write one declaration::

    from dataclasses import replace
    from captum_lrpx.architectures import LLAMA, register

    register(replace(LLAMA, model_types=("my_llama",)))
"""

from captum_lrpx.architectures.bert import BERT, DISTILBERT, ROBERTA
from captum_lrpx.architectures.bloom import BLOOM
from captum_lrpx.architectures.gpt2 import GPT2
from captum_lrpx.architectures.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from captum_lrpx.architectures.opt import OPT, OPT_POST_NORM
from captum_lrpx.architectures.registry import (
    architecture_for,
    model_types,
    register,
    unregister,
)
from captum_lrpx.architectures.schema import (
    MLP,
    Architecture,
    Attention,
    Embeddings,
    FusedAttention,
    GatedMLP,
    Head,
    Inline,
    Norms,
)

__all__ = [
    "BERT",
    "BLOOM",
    "DISTILBERT",
    "GPT2",
    "LLAMA",
    "MISTRAL",
    "MLP",
    "OPT",
    "OPT_POST_NORM",
    "QWEN2",
    "QWEN3",
    "ROBERTA",
    "Architecture",
    "Attention",
    "Embeddings",
    "FusedAttention",
    "GatedMLP",
    "Head",
    "Inline",
    "Norms",
    "architecture_for",
    "model_types",
    "register",
    "unregister",
]
