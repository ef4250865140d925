"""Switching off the least important components of a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from captum_lrpx.attr.checks import check_layers
from captum_lrpx.components.changes import changed, of_first
from captum_lrpx.components.experts import without_experts
from captum_lrpx.components.nodes import Nodes
from captum_lrpx.names import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


Part = Literal["head", "neuron", "expert"]
"""Kind of the parts that can be switched off."""


@contextmanager
def prune(
    model: nn.Module,
    scores: Mapping[nn.Module, Tensor],
    share: float,
    *,
    by: Part = "head",
    at_input: bool | None = None,
) -> Iterator[None]:
    """Switch off the parts with the lowest scores, over all layers, within the ``with`` block.

    A part that is off yields zero. The model itself is unchanged, and other threads use it whole.

    Args:
        model: The model that the layers belong to.
        scores: For each layer a number per part ``[N]``: per head for output projections of
            attention, per feature for activations or second layers of MLPs, per expert for
            modules called with hidden states, selected experts and their weights.
        share: Share of all parts that is switched off, from 0 to 1; their number is rounded.
        by: Kind of the parts.
        at_input: Whether parts are in a layer's input instead of its output. Default: True
            for heads and experts

    Raises:
        ValueError: If ``by`` or ``share`` is out of range, a score is NaN, or a layer does not have
            such parts; the latter in its first forward pass.
        TypeError: If ``scores`` is no mapping of layers to tensors ``[N]``.

    Examples::

        >>> projections = [block.self_attn.o_proj for block in model.model.layers]
        >>> relevance = RelevancePatching(forward, projections)
        >>> heads = relevance.attribute(ids, target=target, by="head", ablation="zero")
        >>> scores = {layer: each.abs().mean(0) for layer, each in zip(projections, heads)}
        >>> with prune(model, scores, share=0.3):
        ...     logits = model(ids).logits
    """
    off = _lowest(model, scores, share, by)
    inside = by != "neuron" if at_input is None else at_input
    if by == "expert" and not inside:
        raise ValueError("Experts are selected by a module's inputs: leave `at_input` out.")

    def change(layer: nn.Module, where: Tensor) -> Callable[[Any], Any]:
        if by == "expert":
            return partial(without_experts, layer=layer, experts=where)
        count = len(scores[layer])
        nodes = Nodes("head", count) if by == "head" else Nodes("neuron")

        def zeroed(values: Tensor) -> Tensor:
            width = values.shape[-1] if values.ndim else 0
            if width % count or (by == "neuron" and width != count):
                raise ValueError(
                    f"{type(layer).__name__} has {width} features here, but {count} scores by "
                    f"{by}: give a score for each {by}."
                )
            new = values.clone(memory_format=torch.contiguous_format)
            nodes.cut(new)[:, :, where.to(new.device)] = 0
            return new

        return of_first(zeroed)

    changes = [(layer, change(layer, where)) for layer, where in off.items() if len(where)]
    with changed(changes, at_input=inside):
        yield


def _lowest(
    model: nn.Module, scores: Mapping[nn.Module, Tensor], share: float, by: str
) -> dict[nn.Module, Tensor]:
    """Indices, by layer, of the parts with the lowest scores."""
    if by not in get_args(Part):
        meant = suggestion(str(by), get_args(Part))
        raise ValueError(f"`by` is 'head', 'neuron' or 'expert', not {by!r}{meant}.")
    if not 0 <= share <= 1:
        raise ValueError(f"`share` is a share of the parts, from 0 to 1, not {share}.")
    if not isinstance(scores, Mapping) or not all(
        isinstance(each, Tensor) and each.ndim == 1 for each in scores.values()
    ):
        raise TypeError(
            "`scores` maps layers to tensors [N], a number for each part: for results of "
            "`attribute`, `dict(zip(layers, (each.abs().mean(0) for each in results)))`."
        )
    layers = list(scores)
    check_layers(model, layers)
    inside = set(model.modules())
    for layer in layers:
        if layer not in inside:
            raise ValueError(f"{type(layer).__name__} is no module of this {type(model).__name__}.")
    every = torch.cat([each.detach().double().cpu() for each in scores.values()])
    if bool(every.isnan().any()):
        raise ValueError("A score is NaN, so the parts have no order.")
    off = torch.zeros_like(every, dtype=torch.bool)
    off[every.argsort(stable=True)[: round(share * len(every))]] = True
    parts = torch.split(off, [len(each) for each in scores.values()])
    return {layer: part.nonzero().squeeze(1) for layer, part in zip(layers, parts, strict=True)}
