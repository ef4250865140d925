"""Models of true sizes with random weights: time and memory do not depend on the weights."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["DTYPES", "MEASURED", "MODEL_TYPES", "SHAPES", "build"]


def _bert_base() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig())


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config())


def _llama(**sizes: int) -> Any:
    config = transformers.LlamaConfig(tie_word_embeddings=True, **sizes)  # type: ignore[arg-type]
    return transformers.LlamaForCausalLM(config)


def _smollm2() -> Any:
    return _llama(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
    )


def _llama_1b() -> Any:
    return _llama(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
    )


def _gemma3_270m() -> Any:
    config = transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        max_position_embeddings=32768,
    )
    return transformers.Gemma3ForCausalLM(config)


def _qwen3_sizes(width: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": 151936,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    }


def _qwen3_600m() -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_qwen3_sizes(1024, 28)))


def _qwen3_moe() -> Any:
    config = transformers.Qwen3MoeConfig(
        num_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=256,
        norm_topk_prob=True,
        **_qwen3_sizes(512, 12),
    )
    return transformers.Qwen3MoeForCausalLM(config)


SHAPES: dict[str, Callable[[], Any]] = {
    "bert-base": _bert_base,
    "gpt2": _gpt2,
    "smollm2": _smollm2,
    "llama-1b": _llama_1b,
    "gemma3-270m": _gemma3_270m,
    "qwen3-0.6b": _qwen3_600m,
    "qwen3-moe": _qwen3_moe,
}
"""Name -> a model of that shape (SmolLM2 is the 135M one, Llama that of Llama-3.2-1B, the mixture a
small one that no release has)."""

MEASURED = ("bert-base", "gpt2", "smollm2")
"""The shapes of the tables in the documentation."""

MODEL_TYPES = {
    "bert-base": "bert",
    "gpt2": "gpt2",
    "smollm2": "llama",
    "llama-1b": "llama",
    "gemma3-270m": "gemma3",
    "qwen3-0.6b": "qwen3",
    "qwen3-moe": "qwen3_moe",
}
"""Name -> the family that transformers counts it to."""

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
"""What ``--dtype`` takes."""


def build(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A model of a shape, in evaluation mode, the same one each time.

    The weights are made in their dtype and on their device: nothing larger is in memory meanwhile.
    """
    torch.manual_seed(0)
    with _default(dtype), torch.device(device):
        return SHAPES[name]().eval()


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
