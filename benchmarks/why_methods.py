"""The methods that ``benchmarks/why.py`` compares, as functions of a query.

Each gives token relevances by the name of a method: what is made of one pass comes together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import sinks
import torch

from captum_lrpx import ATTN_LRP, LRP, LRP_UNIFORM_GATE, ALTILogit, LRPx, ledger
from captum_lrpx.methods import attribute
from captum_lrpx.metrics import abpc, leave_one_out
from captum_lrpx.recipes import Override
from captum_lrpx.rules import ConstantWeights, SignalTakeAll, Uniform, UniformAttention

if TYPE_CHECKING:
    from collections.abc import Callable

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.targets import Query

    Found = dict[str, list[list[float]] | list[float]]

__all__ = ["GROUPS", "MAIN", "RULES", "area"]

MAIN = (
    "LRP",
    "LRP, uniform gate",
    "LRP, sink rule",
    "AttnLRP",
    "ALTI-Logit",
    "Gradient, L1",
)
ATTENTION = {"constant": ConstantWeights(), "uniform": UniformAttention()}
GATE = {"signal": SignalTakeAll(), "mirrored": SignalTakeAll("activation"), "uniform": Uniform()}
NAMES = {
    "constant/signal": "LRP",
    "constant/uniform": "LRP, uniform gate",
    "constant/mirrored": "LRP, mirrored gate",
    "uniform/signal": "AttnLRP, signal gate",
    "uniform/uniform": "AttnLRP",
    "uniform/mirrored": "AttnLRP, mirrored gate",
}


def by_rules(recipe: Recipe, name: str) -> Callable[[Query], Found]:
    """A method that is a recipe."""
    return lambda query: {name: attribute("lrpx", query, recipe, {}).relevances.tolist()}


def bypassed(query: Query) -> Found:
    """AttnLRP that holds the attention weights constant from a layer on, for six such layers.

    From the first layer on it is LRP with a uniform gate.
    """
    layers: int = query.model.config.num_hidden_layers
    found: Found = {}
    for start in dict.fromkeys(layers * sixth // 6 for sixth in range(6)):
        later = [Override(f"*.layers.{each}.*", ConstantWeights()) for each in range(start, layers)]
        recipe = replace(ATTN_LRP, overrides=tuple(later))
        found |= by_rules(recipe, f"AttnLRP, weights constant from layer {start}")(query)
    return found


def gradients(query: Query) -> Found:
    """All that is made of one gradient."""
    embeddings = query.embeddings().detach().requires_grad_()
    value = query.forward(embeddings, *query.additional_forward_args).sum()
    (gradient,) = torch.autograd.grad(value, embeddings)
    return {
        "Gradient, L1": gradient.abs().sum(-1).tolist(),
        "Gradient, L2 squared": gradient.square().sum(-1).tolist(),
        "Gradient x Input": (gradient * embeddings.detach()).sum(-1).tolist(),
    }


def alti_logit(query: Query) -> Found:
    """With and without the start term, from one pass; and what the MLPs add."""
    parts = ALTILogit(query.forward, query.model).decompose(query.ids, **query.arguments)
    return {
        "ALTI-Logit": parts.tokens().tolist(),
        "ALTI-Logit, no start": parts.tokens(include_start=False).tolist(),
    }


def flow(query: Query) -> Found:
    """Information flow routes."""
    return {"IFR": attribute("information_flow", query, None, {}).relevances.tolist()}


def sink_rule(query: Query) -> Found:
    """LRP with a uniform gate, the first token's value a constant."""
    with sinks.constant_value(query.model):
        method = LRPx(query.forward, query.model, recipe=sinks.SINK_RULE)
        found = method.attribute(query.ids, **query.arguments)
    return {"LRP, sink rule": found.tolist()}


def left_out(query: Query) -> Found:
    """What the explained value loses without each token, the first one included."""
    effects = leave_one_out(
        query.forward, query.embeddings().detach(), perturbations_per_eval=4, **query.arguments
    )
    return {"leave one out": effects.tolist()}


def account(query: Query) -> Found:
    """Shares of the explained value by kind, as ``method: kind``."""
    recipes = {"LRP": LRP, "LRP, uniform gate": LRP_UNIFORM_GATE, "AttnLRP": ATTN_LRP}
    books = {
        name: ledger(LRPx(query.forward, query.model, recipe=recipe), query.ids, **query.arguments)
        for name, recipe in recipes.items()
    }
    books["ALTI-Logit"] = ledger(
        ALTILogit(query.forward, query.model), query.ids, **query.arguments
    )
    return {
        f"{name}: {kind}": (amount / book.value).tolist()
        for name, book in books.items()
        for kind, amount in book.by_kind().items()
    }


def area(query: Query, relevances: torch.Tensor) -> list[float]:
    """Area between the perturbation curves of all tokens but the first one, in logits."""
    counts = torch.ones_like(query.ids, dtype=torch.bool)
    counts[:, 0] = False
    found = abpc(
        query.forward,
        query.embeddings().detach(),
        relevances,
        mask=counts,
        steps=4,
        perturbations_per_eval=5,
        **query.arguments,
    )
    areas: list[float] = found.tolist()
    return areas


RULES: dict[str, Callable[[Query], Found]] = {
    NAMES[f"{attention}/{gate}"]: by_rules(
        replace(LRP, attention=of_attention, gate=of_gate), NAMES[f"{attention}/{gate}"]
    )
    for attention, of_attention in ATTENTION.items()
    for gate, of_gate in GATE.items()
}
GROUPS: dict[str, Callable[[Query], Found]] = {
    **RULES,
    "gradients": gradients,
    "ALTI-Logit": alti_logit,
    "IFR": flow,
    "sink rule": sink_rule,
    "bypass": bypassed,
    "leave one out": left_out,
    "ledger": account,
}
