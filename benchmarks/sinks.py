"""The attention sink, taken away from a model or kept out of an explanation.

:func:`zero_values` changes what a model computes: what attends to the first token gets nothing from
it. :func:`constant_value` changes gradients alone, so that the rules of :data:`SINK_RULE` are LRP
with another rule for what attention reads from the first token.
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
    from collections.abc import Iterator

    from torch import Tensor, nn

_NAME = "first_token_constant"

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
    before = model.config._attn_implementation  # noqa: SLF001 - the one place that tells
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, eager_mask)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """The form of attention that Transformers calls: ``[B, H, T, D]`` in, ``[B, T, H, D]`` out."""
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    first, others = key[:, :, :1].detach(), key[:, :, 1:]
    at_first = query @ first.mT
    at_others = (query @ others.detach().mT + query.detach() @ others.mT) / 2
    scores = torch.cat([at_first, at_others], -1) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, :, : key.shape[2]]
    weights = scores.softmax(-1)
    read = weights[..., 1:].detach() @ value[:, :, 1:]
    read = read + weights[..., :1] * value[:, :, :1].detach()
    return read.transpose(1, 2).contiguous(), weights
