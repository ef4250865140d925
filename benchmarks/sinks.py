"""The attention sink, taken away from a model or kept out of an explanation.

:func:`zero_values` changes what a model computes: what attends to the first token gets nothing from
it. With :func:`constant_weight` they get the same in every text. :func:`constant_value` changes
gradients alone, so that the rules of :data:`SINK_RULE` are LRP with another rule for what attention
reads from the first token.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from captum_lrpx import LRP_UNIFORM_GATE
from captum_lrpx.rules import AttentionGradient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

_NAME = "benchmark_of_sinks"

SINK_RULE = replace(LRP_UNIFORM_GATE, name="sink rule", attention=AttentionGradient())
"""LRP with a uniform gate; attention's own gradient, which :func:`constant_value` has changed."""


@contextmanager
def zero_values(model: nn.Module) -> Iterator[None]:
    """Set the first position's value vectors to zero in all layers, in a ``with`` block."""

    def zeroed(_module: nn.Module, _inputs: Any, values: Tensor) -> Tensor:
        kept = torch.ones(values.shape[1], 1)
        kept[0] = 0
        return values * kept

    handles = [
        module.register_forward_hook(zeroed)
        for name, module in model.named_modules()
        if name.endswith("self_attn.v_proj")
    ]
    if not handles:
        raise ValueError("There are no value projections of the name self_attn.v_proj.")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def constant_value(model: nn.Module) -> Iterator[None]:
    """Attention whose first key and value are constants, in a ``with`` block; the outputs stay.

    In a decoder the first position sees itself alone: behind one first token its keys and values
    are the same in every text, and what varies is how much attention they get. So what attention
    reads there is explained by its weight, the one factor that varies, and the weight by the
    softmax's gradient, query and key getting half each (the query all at the first token). At all
    other tokens the weights are constant, as in LRP.
    """

    def attend(_layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        first, others = key[:, :, :1].detach(), key[:, :, 1:]
        at_first = query @ first.mT
        at_others = (query @ others.detach().mT + query.detach() @ others.mT) / 2
        weights = (torch.cat([at_first, at_others], -1) + mask).softmax(-1)
        read = weights[..., 1:].detach() @ value[:, :, 1:]
        return read + weights[..., :1] * value[:, :, :1].detach()

    with _attending(model, attend):
        yield


@contextmanager
def weights_noted(model: nn.Module, noted: dict[int, list[Tensor]]) -> Iterator[None]:
    """Note how much attention the first token gets from later ones, in a ``with`` block.

    Args:
        model: The model.
        noted: For each layer tensors ``[B, H, T - 1]`` are added.
    """

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        weights = (query @ key.mT + mask).softmax(-1)
        noted.setdefault(layer, []).append(weights[:, :, 1:, 0])
        return weights @ value

    with _attending(model, attend):
        yield


@contextmanager
def constant_weight(model: nn.Module, weights: dict[int, Tensor]) -> Iterator[None]:
    """Read the first token's value with the same weight in every text, in a ``with`` block.

    All other weights, and what the first position reads, stay as they are.

    Args:
        model: The model.
        weights: For each layer the weight of each head ``[H]``.
    """

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        found = (query @ key.mT + mask).softmax(-1)
        constant = weights[layer].view(1, -1, 1, 1).expand(*found[:, :, 1:, :1].shape)
        changed = torch.cat([constant, found[:, :, 1:, 1:]], -1)
        return torch.cat([found[:, :, :1], changed], 2) @ value

    with _attending(model, attend):
        yield


@contextmanager
def _attending(model: nn.Module, attend: Callable[..., Tensor]) -> Iterator[None]:
    """Another attention: its number, queries (scaled), keys, values and additive mask in."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """``[B, H, T, D]`` in, ``[B, T, H, D]`` out, as Transformers wants it."""
        groups = module.num_key_value_groups
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        mask = query.new_zeros(()) if attention_mask is None else attention_mask
        found = attend(module.layer_idx, query * scaling, key, value, mask)
        return found.transpose(1, 2).contiguous(), None

    before = model.config._attn_implementation  # noqa: SLF001 - the one place that tells
    ALL_ATTENTION_FUNCTIONS.register(_NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, eager_mask)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
