"""Arguments of all metrics: a relevance per token, and the tokens that count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def token_relevances(attributions: Tensor) -> Tensor:
    """Sum attributions of embeddings over the embedding: one relevance per token.

    Args:
        attributions: ``[B, T]`` of token ids, which are returned as they are, or ``[B, T, D]`` of
            embeddings.

    Returns:
        ``[B, T]``.

    Raises:
        AssertionError: If the attributions are not real numbers of one of these shapes.
    """
    if not isinstance(attributions, torch.Tensor) or not attributions.is_floating_point():
        found = getattr(attributions, "dtype", type(attributions).__name__)
        raise AssertionError(
            f"Attributions must be one tensor of floating-point numbers, not {found}. Of a tuple "
            "of attributions, give the entry of the tokens; leave return_convergence_delta out."
        )
    if attributions.ndim not in {2, 3}:
        raise AssertionError(
            "Attributions must have the shape [B, T] (tokens) or [B, T, D] (embeddings), not "
            f"{list(attributions.shape)}. A single example is a batch of one: unsqueeze(0)."
        )
    relevances = attributions.detach()
    return relevances if relevances.ndim == 2 else relevances.sum(-1)


def check_attributions(attributions: Tensor) -> Tensor:
    """Check token relevances for a metric.

    Args:
        attributions: ``[B, T]``.

    Returns:
        The same, detached, in float32 at least.

    Raises:
        AssertionError: If they are not real numbers of that shape.
    """
    relevances = token_relevances(attributions)
    if 0 in attributions.shape[1:]:
        raise AssertionError(f"There are no tokens in attributions of {list(attributions.shape)}.")
    if attributions.ndim != 2:
        raise AssertionError(
            f"This metric compares tokens, [B, T], but the attributions are "
            f"{list(attributions.shape)}: give captum_lrpx.metrics.token_relevances(attributions), "
            "their sum over the embedding."
        )
    return relevances.to(torch.promote_types(relevances.dtype, torch.float32))


def check_mask(mask: Tensor | None, like: Tensor, name: str = "mask") -> Tensor:
    """Check a mask of tokens and convert it to booleans.

    Args:
        mask: ``[B, T]`` of booleans, or of the integers 0 and 1 as tokenizers return them. None:
            all tokens.
        like: Tensor whose first two dimensions are ``[B, T]``.
        name: Name of the mask, for messages.

    Returns:
        ``[B, T]``, booleans on the device of ``like``.

    Raises:
        AssertionError: If shape or type do not fit.
        ValueError: If there are other integers than 0 and 1.
    """
    shape = like.shape[:2]
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=like.device)
    if not isinstance(mask, torch.Tensor) or mask.is_floating_point() or mask.is_complex():
        found = getattr(mask, "dtype", type(mask).__name__)
        raise AssertionError(
            f"`{name}` must be a tensor of booleans, or of the integers 0 and 1, not {found}: "
            "compare it with something, as in `tensor > 0`."
        )
    if mask.shape != shape:
        raise AssertionError(
            f"`{name}` must have the shape of the tokens, {list(shape)}, not {list(mask.shape)}."
        )
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"`{name}` must hold 0 and 1 only. Positions of tokens are turned into a mask by "
            "`torch.zeros(B, T, dtype=torch.bool).scatter(1, positions, True)`."
        )
    return mask.to(device=like.device, dtype=torch.bool)
