"""Pearson's and Spearman's correlation of each row of two tensors, over the tokens that count."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from captum_lrpx.metrics.tokens import check_attributions, check_mask

if TYPE_CHECKING:
    from torch import Tensor


def pearson(left: Tensor, right: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Pearson's correlation of each row.

    Args:
        left: Numbers ``[B, T]``.
        right: Numbers ``[B, T]``.
        mask: ``[B, T]``, False for tokens that do not count. Default: all count.

    Returns:
        ``[B]``, from -1 to 1. NaN, as no correlation is defined, if the numbers that count are all
        equal on one side (or fewer than two), or one is not finite.

    Raises:
        AssertionError: If a shape or type does not fit.
        ValueError: If a mask of integers holds others than 0 and 1.

    Examples::

        >>> pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 7.0]]))
        tensor([0.9934])
    """
    left, right, counted = _checked(left, right, mask)
    x, y = _centered(left, counted), _centered(right, counted)
    # A single square root, so that rows with the same deviations give exactly 1.
    norm = ((x * x).sum(-1) * (y * y).sum(-1)).sqrt()
    correlation = ((x * y).sum(-1) / norm).clamp(-1, 1)
    return torch.where(_varies(left, counted) & _varies(right, counted), correlation, torch.nan)


def spearman(left: Tensor, right: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation of each row: Pearson's correlation of the ranks.

    Tied numbers share the mean of their ranks.

    Args:
        left: Numbers ``[B, T]``.
        right: Numbers ``[B, T]``.
        mask: ``[B, T]``, False for tokens that do not count. Default: all count.

    Returns:
        ``[B]``, from -1 to 1. NaN if the numbers that count are all equal on one side (or fewer
        than two), or one is NaN. Infinities have ranks.

    Raises:
        AssertionError: If a shape or type does not fit.
        ValueError: If a mask of integers holds others than 0 and 1.

    Examples::

        >>> spearman(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 7.0]]))
        tensor([1.])
    """
    left, right, counted = _checked(left, right, mask)
    return pearson(_ranks(left, counted), _ranks(right, counted), mask=counted)


def _checked(left: Tensor, right: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    left, right = check_attributions(left), check_attributions(right)
    if left.shape != right.shape:
        raise AssertionError(
            f"Numbers of the shapes {list(left.shape)} and {list(right.shape)} cannot be "
            "correlated: give one number per token on both sides."
        )
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype), right.to(left.device, dtype), check_mask(mask, left)


def _varies(values: Tensor, counted: Tensor) -> Tensor:
    """Whether a row has two different finite numbers that count ``[B]``."""
    highest = values.masked_fill(~counted, -torch.inf).amax(-1)
    lowest = values.masked_fill(~counted, torch.inf).amin(-1)
    return (highest > lowest) & highest.isfinite() & lowest.isfinite()


def _centered(values: Tensor, counted: Tensor) -> Tensor:
    """Deviations from the mean, scaled so that neither sums nor squares leave the range."""
    values = _scaled(values.masked_fill(~counted, 0))
    mean = values.sum(-1, keepdim=True) / counted.sum(-1, keepdim=True).clamp(min=1)
    return _scaled((values - mean).masked_fill(~counted, 0))


def _scaled(values: Tensor) -> Tensor:
    """Values over the power of two above the row's largest: exact except for the smallest."""
    exponent = values.abs().amax(-1, keepdim=True).frexp().exponent
    normal = int(-math.log2(torch.finfo(values.dtype).tiny))
    return values / torch.ldexp(torch.ones_like(values[..., :1]), exponent.clamp(-normal, normal))


def _ranks(values: Tensor, counted: Tensor) -> Tensor:
    """Ranks from 1 of the numbers that count, averaged over ties; NaN in rows with NaN."""
    undefined = (values.isnan() & counted).any(-1, keepdim=True)
    values = values.masked_fill(~counted, torch.inf).contiguous()
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    up_to = up_to.minimum(counted.sum(-1, keepdim=True))  # masked numbers sort after infinite ones
    return ((below + up_to + 1) / 2).to(values.dtype).masked_fill(undefined, torch.nan)
