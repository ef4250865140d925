"""Effects of single propagation rules on the measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from captum_lrpx.sva.evaluation.ablation import RULES, combination
from captum_lrpx.sva.evaluation.scores import MEASURES, VIEWS
from captum_lrpx.sva.evaluation.statistics import Estimate, estimates, resampling

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from captum_lrpx.sva.evaluation.contenders import Contender
    from captum_lrpx.sva.evaluation.scores import Scores

__all__ = ["ALONE", "IN_ATTNLRP", "ON_AVERAGE", "Contribution", "contributions"]

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


def contributions(scores: Scores, contenders: Iterable[Contender]) -> Iterator[Contribution]:
    """Compute the effect of each rule, if all combinations of some rules were compared.

    Args:
        scores: The measures of one model.
        contenders: The contenders.

    Returns:
        The contributions to the measures of both views; none for other comparisons.
    """
    names = {combination(contender): contender.name for contender in contenders}
    if None in names or not scores.values:
        return
    resampled = resampling(len(scores.results.samples))
    for view in VIEWS:
        measures = [
            name for name in MEASURES if (next(iter(names.values())), view, name) in scores.values
        ]
        for change, kind, pairs in _comparisons({key: name for key, name in names.items() if key}):
            for measure in measures:
                difference = _mean_difference(scores, view, measure, pairs)
                (estimate,) = estimates(difference[None, None], resampled)
                yield Contribution(scores.results.model, change, kind, view, measure, estimate)


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
