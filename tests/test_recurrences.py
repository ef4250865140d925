"""Recurrent models: only the values carry relevance, and the output gate is that of a gated MLP.

The references are explicit relevances (``replica_recurrences``) from other forms of the recurrence:
token by token, where the models work in chunks. A mutated hint must differ from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from passes import opened
from replica_recurrences import gated_delta_net, mamba, mamba2
from tiny_models import build, example
from torch import Tensor

from captum_lrpx import traced
from captum_lrpx.attr.embedded import embedded_ids
from captum_lrpx.recipes import ATTN_LRP, LRP, PUBLISHED, Recipe
from captum_lrpx.trace.graph import Edge
from captum_lrpx.traced import TracedPass

if TYPE_CHECKING:
    from collections.abc import Callable

    from captum_lrpx.trace.natures import Nature

MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "mamba": ({}, mamba),
    "mamba2": ({}, mamba2),
    "qwen3_next": (
        {"layer_types": ["linear_attention"] * 2, "mlp_only_layers": [0, 1]},
        gated_delta_net,
    ),
}
MUTANTS: dict[str, Callable[[dict[Edge, Nature]], dict[Edge, Nature]]] = {
    # Then the step times B meets the activated convolution as the gate of an MLP does.
    "mamba": lambda natures: natures | {edge: "signal" for edge in natures if edge.output == 1},
    # Then nothing carries: what is written to the state is constant as well.
    "mamba2": lambda natures: natures | {Edge(edge.node, 0): "constant" for edge in natures},
    # Then values count as keys, and the output gate takes everything.
    "qwen3_next": lambda natures: natures | {Edge(edge.node, 2): "constant" for edge in natures},
}
FLOAT32 = 2e-5  # these models compute their recurrences in float32


def _model(kind: str, *, biases: bool) -> tuple[Any, Tensor]:
    model = build(kind, "CAUSAL_LM", dtype=torch.float64, biases=biases, **MODELS[kind][0])
    return model, example(model, length=7).keywords["input_ids"]


def _relevances(model: Any, ids: Tensor, target: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Value and relevance ``[T]``."""
    with (
        torch.enable_grad(),
        opened(TracedPass(model, recipe, None)) as rules,
        embedded_ids(model, [ids]) as embedded,
    ):
        value = model(ids, use_cache=False).logits[0, -1, target]
        rules.attach(value)
        leaf = embedded[0][0]
        if not rules.coverage([leaf]).complete:
            raise ValueError("refused")
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), (leaf * gradient).sum(-1)[0].detach()


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() < FLOAT32 * expected.abs().max())


@pytest.mark.parametrize(
    "recipe", [LRP, PUBLISHED["mambalrp"], ATTN_LRP], ids=lambda recipe: recipe.name
)
@pytest.mark.parametrize("kind", MODELS)
def test_relevances_are_those_of_the_formulas(kind: str, recipe: Recipe) -> None:
    model, ids = _model(kind, biases=True)
    _, found = _relevances(model, ids, 11, recipe)
    assert _close(found, MODELS[kind][1](model, ids[0], 11, recipe.name))


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("kind", MODELS)
def test_tokens_sum_to_the_value_without_biases(kind: str, recipe: Recipe) -> None:
    model, ids = _model(kind, biases=False)
    value, found = _relevances(model, ids, 11, recipe)
    assert abs(found.sum() - value) < FLOAT32 * abs(value)


@pytest.mark.parametrize("kind", MODELS)
def test_without_its_hint_a_recurrence_is_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced, "natures_of", lambda *_: {})
    model, ids = _model(kind, biases=True)
    with pytest.raises(ValueError, match="refused"):
        _relevances(model, ids, 11, LRP)


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("kind", MODELS)
def test_a_mutated_hint_gives_other_relevances(
    kind: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    natures_of = traced.natures_of
    monkeypatch.setattr(traced, "natures_of", lambda *given: MUTANTS[kind](natures_of(*given)))
    model, ids = _model(kind, biases=True)
    _, found = _relevances(model, ids, 11, recipe)
    assert not _close(found, MODELS[kind][1](model, ids[0], 11, recipe.name))
