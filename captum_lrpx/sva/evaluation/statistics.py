"""Means with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CONFIDENCE", "RESAMPLES", "Estimate", "estimates", "resampling"]

RESAMPLES = 1000
"""How often the samples are drawn anew, with replacement."""

CONFIDENCE = 0.95
"""The share of the resampled means that an interval holds, half of the others on either side."""


@dataclass(frozen=True)
class Estimate:
    """A mean over samples.

    Attributes:
        mean: The mean, of the samples for which there is a value; NaN without any.
        low: Lower end of the bootstrap interval.
        high: Upper end.
        count: For how many samples there is a value.
        spread: Standard deviation of the mean over the draws of a random method.
    """

    mean: float
    low: float
    high: float
    count: int
    spread: float | None = None


def resampling(count: int, seed: int = 0, resamples: int = RESAMPLES) -> Tensor:
    """How often each sample is in each bootstrap resample, ``[resamples, count]``.

    The same arguments give the same resamples, so that estimates made with them are paired.

    Args:
        count: Number of samples.
        seed: Seed; no random state but its own is read or changed.
        resamples: Number of resamples.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(count, (resamples, count), generator=generator, device="cpu")
    times = torch.zeros(resamples, count, dtype=torch.float64, device="cpu")
    return times.scatter_add_(1, drawn, torch.ones_like(times))


def estimates(values: Tensor, resampled: Tensor) -> list[Estimate]:
    """Means over samples with percentile bootstrap intervals.

    Args:
        values: ``[K, draws, N]``, one or several draws of ``K`` quantities for ``N`` samples; NaN
            where there is none.
        resampled: What :func:`resampling` gave, ``[R, N]``.

    Returns:
        ``K`` estimates. The interval is that of the mean over the draws.
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
