"""Measures of each explained sample, and their means over samples and groups of samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import TYPE_CHECKING

import torch

from captum_lrpx.metrics import (
    mean_reciprocal_rank,
    per_token_accuracy,
    pointing_game,
    relevance_mass_accuracy,
)
from captum_lrpx.sva.evaluation.statistics import Estimate, estimates, resampling
from captum_lrpx.sva.samples import NUMBERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from captum_lrpx.sva.evaluation.contenders import Contender
    from captum_lrpx.sva.evaluation.results import ModelResults


MEASURES: dict[str, Callable[..., Tensor]] = {
    "PG-1": partial(pointing_game, k=1),
    "PG-2": partial(pointing_game, k=2),
    "MRR": mean_reciprocal_rank,
    "RMA": relevance_mass_accuracy,
    "PTA": per_token_accuracy,
    "PTA-K": partial(per_token_accuracy, selection="top"),
}
"""Metrics of relevances against evidence, see :mod:`captum_lrpx.metrics.ground_truth`. PTA uses
the sign of a relevance, as in the paper; PTA-K names as many tokens as there is evidence."""

VIEWS = ("all tokens", "text tokens")
"""With special tokens (a first token, [CLS], [SEP]), as in the paper, and without them."""

ALL = "all"
"""The group of all samples."""


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        model: Name of the model.
        method: Name of the contender.
        view: The tokens that count, one of :data:`VIEWS`.
        group: The samples that count: :data:`ALL`, a number of attractors, a number of the subject.
        measure: A name in :data:`MEASURES`, or a measure of faithfulness.
        estimate: The mean.
    """

    model: str
    method: str
    view: str
    group: str
    measure: str
    estimate: Estimate


class Scores:
    """The measures of all explained samples of one model.

    Args:
        results: Results of the run.
        contenders: The contenders.

    Attributes:
        results: Results of the run.
        values: By contender, view and measure, ``[draws, N]``.
    """

    def __init__(self, results: ModelResults, contenders: Iterable[Contender]) -> None:
        self.results = results
        masks = {VIEWS[0]: results.mask, VIEWS[1]: results.mask & ~results.special}
        self.values: dict[tuple[str, str, str], Tensor] = {}
        for contender in contenders if results.samples else ():
            draws = [(contender.name, draw) for draw in range(contender.draws)]
            for (view, mask), (name, measure) in product(masks.items(), MEASURES.items()):
                columns = [
                    measure(results.relevances[each], results.evidence, mask=mask) for each in draws
                ]
                self.values[contender.name, view, name] = torch.stack(columns)
            for name in results.faithfulness.get(draws[0], {}):
                columns = [results.faithfulness[each][name] for each in draws]
                self.values[contender.name, VIEWS[0], name] = torch.stack(columns)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures."""
        return tuple(dict.fromkeys(name for _, _, name in self.values))

    def groups(self) -> dict[str, Tensor]:
        """The non-empty groups of samples: whether each sample is in them, ``[N]``."""
        samples = self.results.samples
        groups_of = [{ALL, _attractors(each.n_attractors), each.number} for each in samples]
        counts = sorted({each.n_attractors for each in samples})
        found = {
            name: torch.tensor([name in groups for groups in groups_of], device="cpu")
            for name in (ALL, *map(_attractors, counts), *NUMBERS)
        }
        return {name: rows for name, rows in found.items() if bool(rows.any())}

    @cached_property
    def means(self) -> dict[tuple[str, str, str, str], Estimate]:
        """Means by contender, view, group and measure."""
        found = {}
        for group, rows in self.groups().items():
            resampled = resampling(int(rows.sum()))
            for (method, view, measure), values in self.values.items():
                (estimate,) = estimates(values[None, :, rows], resampled)
                found[method, view, group, measure] = estimate
        return found


def _attractors(count: int) -> str:
    return f"{count} attractor{'' if count == 1 else 's'}"
