"""Agreement of estimated effects of nodes with measured ones, over many pairs of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from captum_lrpx.metrics.correlation import pearson, spearman
from captum_lrpx.metrics.replacement import check_count

if TYPE_CHECKING:
    from collections.abc import Sequence


Measure = Literal["pearson", "spearman", "top_k"]
"""Measures of agreement."""

_AT_ONCE = 1 << 22
"""Number of elements that one step of the bootstrap may draw."""


class Interval(NamedTuple):
    """A mean over rows with its bootstrap interval.

    Attributes:
        mean: The mean.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Agreement:
    """How well estimates agree with effects, row by row.

    Attributes:
        pearson: Pearson's correlation over the nodes ``[B]``.
        spearman: Spearman's rank correlation ``[B]``.
        top_k: Share of the k nodes with the largest effects, in absolute value, that are among the
            k with the largest estimates ``[B]``.
        k: The number of nodes.
    """

    pearson: Tensor
    spearman: Tensor
    top_k: Tensor
    k: int

    @staticmethod
    def joined(parts: Sequence[Agreement]) -> Agreement:
        """Concatenate the rows of agreements, for instance over different numbers of nodes.

        Args:
            parts: At least one, all with the same k.

        Raises:
            ValueError: If there is none, or k differs.
        """
        if not parts or len({part.k for part in parts}) != 1:
            raise ValueError("Join one or more agreements of the same `k`.")
        return Agreement(
            torch.cat([part.pearson for part in parts]),
            torch.cat([part.spearman for part in parts]),
            torch.cat([part.top_k for part in parts]),
            parts[0].k,
        )

    def interval(
        self,
        measure: Measure,
        *,
        groups: Tensor | None = None,
        level: float = 0.95,
        resamples: int = 2000,
        seed: int = 0,
    ) -> Interval:
        """Compute the mean of a measure with a percentile bootstrap interval over rows.

        Args:
            measure: ``"pearson"``, ``"spearman"`` or ``"top_k"``.
            groups: Integers ``[B]``; rows of one group (two directions of a pair) are drawn
                together. Default: each row is a group.
            level: Share of the resampled means inside of the interval.
            resamples: Number of means to draw.
            seed: Seed of the draws.

        Returns:
            The interval; NaN if no row has the measure.

        Raises:
            ValueError: If the measure is unknown, or an option is out of range.
        """
        if measure not in get_args(Measure):
            raise ValueError(f"`measure` is pearson, spearman or top_k, not {measure!r}.")
        if not 0 < level < 1:
            raise ValueError(f"`level` is a share between 0 and 1, not {level}.")
        check_count(resamples, "resamples")
        values = getattr(self, measure).cpu().double()
        defined = ~values.isnan()
        which = torch.arange(len(values), device="cpu") if groups is None else groups.cpu()
        values, which = values[defined], which[defined]
        if not len(values):
            return Interval(torch.nan, torch.nan, torch.nan)
        _, index = torch.unique(which, return_inverse=True)
        sums = values.new_zeros(int(index.max()) + 1).index_add(0, index, values)
        counts = torch.bincount(index).double()
        generator = torch.Generator("cpu").manual_seed(seed)
        means = []
        for start in range(0, resamples, step := max(1, _AT_ONCE // len(sums))):
            shape = (min(step, resamples - start), len(sums))
            drawn = torch.randint(len(sums), shape, generator=generator, device="cpu")
            means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
        tails = values.new_tensor([(1 - level) / 2, (1 + level) / 2])
        low, high = torch.cat(means).quantile(tails).tolist()
        return Interval(float(values.mean()), low, high)


def agreement(
    estimate: Tensor | Sequence[Tensor], effect: Tensor | Sequence[Tensor], *, k: int = 10
) -> Agreement:
    """Compare estimated effects with measured ones, over the nodes of each row.

    Args:
        estimate: ``[B, ...]``, or one such tensor per layer, as
            :class:`~captum_lrpx.RelevancePatching` returns them: all nodes of a row are
            compared at once.
        effect: The effects, as :class:`~captum_lrpx.ActivationPatching` returns them.
        k: Number of nodes that count as the largest; all where there are fewer.

    Returns:
        The measures of each row; NaN if all numbers of a side are equal.

    Raises:
        AssertionError: If the shapes differ.
        ValueError: If ``k`` is not a positive integer.

    Examples::

        >>> found = agreement(estimates, effects)
        >>> found.pearson, found.interval("spearman")
    """
    check_count(k, "k")
    left, right = _by_row(estimate), _by_row(effect)
    if left.shape != right.shape:
        raise AssertionError(
            f"Estimates of the shape {list(left.shape)} cannot be compared with effects of the "
            f"shape {list(right.shape)}: pass the results for the same layers and nodes."
        )
    return Agreement(pearson(left, right), spearman(left, right), _overlap(left, right, k), k)


def _by_row(values: Tensor | Sequence[Tensor]) -> Tensor:
    layers = [values] if isinstance(values, Tensor) else list(values)
    return torch.cat([each.detach().reshape(len(each), -1) for each in layers], dim=1)


def _overlap(left: Tensor, right: Tensor, k: int) -> Tensor:
    """Share of the k largest of one side among the k largest of the other ``[B]``."""
    k = min(k, left.shape[1])
    best = [each.abs().topk(k, dim=1).indices for each in (left, right)]
    chosen = [
        torch.zeros_like(left, dtype=torch.bool).scatter(1, each, value=True) for each in best
    ]
    return (chosen[0] & chosen[1]).sum(1) / k
