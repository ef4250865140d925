"""All combinations of propagation rules, as contenders."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from captum_lrpx.recipes import LRP
from captum_lrpx.rules import (
    ActivationGradient,
    AttentionGradient,
    ConstantWeights,
    FrozenScale,
    Identity,
    NormGradient,
    ProductGradient,
    SignalTakeAll,
    Uniform,
    UniformAttention,
)
from captum_lrpx.sva.evaluation.contenders import Contender

if TYPE_CHECKING:
    from collections.abc import Iterable

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.rules import Rule

__all__ = ["RULES", "ablation", "combination"]

RULES: dict[str, dict[str, Rule]] = {
    "attention": {
        "values": ConstantWeights(),
        "uniform": UniformAttention(),
        "gradient": AttentionGradient(),
    },
    "gate": {
        "signal": SignalTakeAll(),
        "mirrored": SignalTakeAll("activation"),
        "uniform": Uniform(),
        "gradient": ProductGradient(),
    },
    "activation": {"identity": Identity(), "gradient": ActivationGradient()},
    "norm": {"frozen": FrozenScale(), "gradient": NormGradient()},
}
"""Rules of each role by name; LRP's come first."""


def ablation(roles: Iterable[str] = ()) -> tuple[Contender, ...]:
    """One contender for each combination of :data:`RULES`.

    LRP is the first of them, AttnLRP is ``uniform/uniform/identity/frozen``, and plain Gradient x
    Input is ``gradient/gradient/gradient/gradient``. In a model without gated products, the four
    rules for gates are the same.

    Args:
        roles: The roles whose rules are combined; the others keep LRP's. Default: all.

    Raises:
        ValueError: If there is no such role.
    """
    chosen = set(roles) or set(RULES)
    unknown = chosen - set(RULES)
    if unknown:
        raise ValueError(f"A role is one of {', '.join(RULES)}, not {', '.join(sorted(unknown))}.")
    options = (
        rules if role in chosen else list(rules)[:1]  # LRP's comes first
        for role, rules in RULES.items()
    )
    return tuple(
        Contender("/".join(names), "lrpx", recipe=_recipe(names))
        for names in itertools.product(*options)
    )


def combination(contender: Contender) -> tuple[str, ...] | None:
    """Names of the rules of a contender of :func:`ablation`; None for any other."""
    names = tuple(contender.name.split("/"))
    if len(names) != len(RULES) or contender.recipe is None:
        return None
    known = all(name in rules for name, rules in zip(names, RULES.values(), strict=True))
    return names if known else None


def _recipe(names: tuple[str, ...]) -> Recipe:
    rules: dict[str, Any] = {
        role: RULES[role][name] for role, name in zip(RULES, names, strict=True)
    }
    return replace(LRP, name="/".join(names), **rules)
