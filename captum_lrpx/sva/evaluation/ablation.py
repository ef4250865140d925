"""All combinations of propagation rules as contenders, and the effect of each rule."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

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
from captum_lrpx.sva.evaluation.scores import MEASURES, VIEWS
from captum_lrpx.sva.evaluation.statistics import Estimate, estimates, resampling

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.rules import Rule
    from captum_lrpx.sva.evaluation.scores import Scores

__all__ = [
    "ALONE",
    "IN_ATTNLRP",
    "ON_AVERAGE",
    "RULES",
    "Contribution",
    "ablation",
    "contributions",
]

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

ALONE = "as in LRP"
IN_ATTNLRP = "as in AttnLRP"
ON_AVERAGE = "average over all"
_LRP = tuple(next(iter(rules)) for rules in RULES.values())
_OTHERS = {ALONE: _LRP, IN_ATTNLRP: ("uniform", "uniform", *_LRP[2:])}


@dataclass(frozen=True)
class Contribution:
    """The effect of replacing one rule.

    Attributes:
        model: Name of the model.
        change: The role, and the rule that it has instead of LRP's.
        kind: The rules of the other roles: LRP's (:data:`ALONE`), AttnLRP's
            (:data:`IN_ATTNLRP`), or all combinations that were compared, whose differences are
            averaged (:data:`ON_AVERAGE`).
        view: The tokens that count, one of :data:`captum_lrpx.sva.evaluation.scores.VIEWS`.
        measure: Name of the measure.
        estimate: Mean difference over samples, with a paired bootstrap interval.
    """

    model: str
    change: str
    kind: str
    view: str
    measure: str
    estimate: Estimate


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


def _recipe(names: tuple[str, ...]) -> Recipe:
    rules: dict[str, Any] = {
        role: RULES[role][name] for role, name in zip(RULES, names, strict=True)
    }
    return replace(LRP, name="/".join(names), **rules)


def contributions(scores: Scores, contenders: Iterable[Contender]) -> Iterator[Contribution]:
    """Compute the effect of each rule, if all combinations of some rules were compared.

    Args:
        scores: The measures of one model.
        contenders: The contenders.

    Returns:
        The contributions to the measures of both views; none for other comparisons.
    """
    names = {_combination(contender): contender.name for contender in contenders}
    if None in names or not scores.values:
        return
    resampled = resampling(len(scores.results.samples))
    for view in VIEWS:
        for change, kind, pairs in _comparisons({key: name for key, name in names.items() if key}):
            for measure in MEASURES:
                difference = _mean_difference(scores, view, measure, pairs)
                (estimate,) = estimates(difference[None, None], resampled)
                yield Contribution(scores.results.model, change, kind, view, measure, estimate)


def _combination(contender: Contender) -> tuple[str, ...] | None:
    """Names of the rules of a contender of :func:`ablation`; None for any other."""
    names = tuple(contender.name.split("/"))
    if len(names) != len(RULES) or contender.recipe is None:
        return None
    known = all(name in rules for name, rules in zip(names, RULES.values(), strict=True))
    return names if known else None


def _comparisons(
    names: Mapping[tuple[str, ...], str],
) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Each change of a rule, its kind, and the pairs of contenders with and without the change."""
    for place, (role, rules) in enumerate(RULES.items()):
        usual, *others = rules
        for other in others:
            pairs = [
                (names[_exchanged(key, place, other)], name)
                for key, name in names.items()
                if key[place] == usual and _exchanged(key, place, other) in names
            ]
            for kind, of_recipe in _OTHERS.items():
                key = _exchanged(of_recipe, place, usual)
                alone = [pair for pair in pairs if pair[1] == names.get(key)]
                if alone:
                    yield f"{role}: {other}", kind, alone
            if pairs:
                yield f"{role}: {other}", ON_AVERAGE, pairs


def _exchanged(key: tuple[str, ...], place: int, name: str) -> tuple[str, ...]:
    """A combination with another rule in one place."""
    return (*key[:place], name, *key[place + 1 :])


def _mean_difference(
    scores: Scores, view: str, measure: str, pairs: list[tuple[str, str]]
) -> Tensor:
    """Difference within each pair, averaged over the pairs, per sample ``[N]``."""
    differences = [
        scores.values[ours, view, measure][0] - scores.values[theirs, view, measure][0]
        for ours, theirs in pairs
    ]
    return torch.stack(differences).mean(0)
