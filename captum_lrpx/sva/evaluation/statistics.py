"""Means with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


RESAMPLES = 1000
"""Number of bootstrap resamples, drawn with replacement."""

CONFIDENCE = 0.95
"""Share of the resampled means within an interval; the others are half on either side."""


@dataclass(frozen=True)
class Estimate:
    """A mean over samples.

    Attributes:
        mean: The mean of the samples that have a value; NaN without any.
        low: Lower end of the bootstrap interval.
        high: Upper end.
        count: Number of samples that have a value.
        spread: Standard deviation of the mean over the draws of a random method.
    """

    mean: float
    low: float
    high: float
    count: int
    spread: float | None = None


def resampling(count: int, seed: int = 0, resamples: int = RESAMPLES) -> Tensor:
    """Count each sample in each bootstrap resample, ``[resamples, count]``.

    The same arguments give the same resamples, so that estimates made with them are paired.

    Args:
        count: Number of samples.
        seed: Seed; no other random state is read or changed.
        resamples: Number of resamples.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(count, (resamples, count), generator=generator, device="cpu")
    times = torch.zeros(resamples, count, dtype=torch.float64, device="cpu")
    return times.scatter_add_(1, drawn, torch.ones_like(times))


def estimates(values: Tensor, resampled: Tensor) -> list[Estimate]:
    """Compute means over samples with percentile bootstrap intervals.

    Args:
        values: ``[K, draws, N]``, one or several draws of ``K`` quantities for ``N`` samples; NaN
            where undefined.
        resampled: Counts from :func:`resampling`, ``[R, N]``.

    Returns:
        ``K`` estimates. Each interval is for the mean over the draws.
    """
    per_sample = values.mean(1)  # [K, N]
    there = ~per_sample.isnan()
    known = per_sample.masked_fill(~there, 0)
    means = (known @ resampled.T) / (there.double() @ resampled.T)  # [K, R]
    tail = (1 - CONFIDENCE) / 2
    low, high = means.nanquantile(
        torch.tensor([tail, 1 - tail], dtype=torch.float64, device="cpu"), dim=1
    )
    spreads = values.nanmean(-1).std(1).tolist() if values.shape[1] > 1 else [None] * len(values)
    return [
        Estimate(
            mean=float(per_sample[k].nanmean()),
            low=float(low[k]),
            high=float(high[k]),
            count=int(there[k].sum()),
            spread=spreads[k],
        )
        for k in range(len(values))
    ]
