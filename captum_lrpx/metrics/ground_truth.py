"""Metrics of attributions against a ground truth: tokens that are known to matter.

All metrics take attributions ``[B, T]``, the evidence ``[B, T]`` and a mask of the tokens that
count ``[B, T]``, and return one number per example ``[B]``: the figure of a benchmark is their
mean, left to the caller (``torch.nanmean`` if some examples have no evidence).

Common to all:

- **Larger is more relevant.** Signs matter: negative relevance ranks last. Magnitudes, such as
  norms of gradients, are attributions that are never negative.
- **Ties** get the expected value under random tie-breaking. Attributions that are all equal are
  worth as much as random ones, neither more nor less.
- **Masked tokens** do not exist: their attributions (NaN included) and their evidence are ignored.
- **No evidence** among the tokens that count: NaN, as there is nothing to point at.
- **NaN** in an attribution that counts: NaN, as the tokens cannot be ranked. Infinities are ranked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch

from captum_lrpx import _captum
from captum_lrpx.metrics.tokens import check_attributions, check_mask, token_relevances

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import Tensor


Selection = Literal["positive", "top"]
"""Tokens that :func:`per_token_accuracy` reads as named by the attributions."""


def pointing_game(
    attributions: Tensor, evidence: Tensor, *, k: int = 1, mask: Tensor | None = None
) -> Tensor:
    """Pointing game, PG-k: whether evidence is among the k most relevant tokens.

    With ``k=1`` the pointing game of Zhang et al. (2018, https://arxiv.org/abs/1608.00507) as
    Poerner et al. (2018, https://aclanthology.org/P18-1032, section 4.2) play it with tokens.

    Args:
        attributions: Token relevances ``[B, T]``.
        evidence: Ground truth ``[B, T]``, True where a token belongs to it.
        k: Number of tokens that point. If fewer count, all of them point.
        mask: ``[B, T]``, False for tokens that do not count: padding, and others if wished (special
            tokens). Default: all count.

    Returns:
        ``[B]``: 1 or 0; with ties, the probability of a hit under random tie-breaking.
        NaN as for all metrics of this module.

    Raises:
        AssertionError: If a shape or type does not fit.
        ValueError: If ``k`` is not a positive integer, or a mask holds other integers than 0 and 1.

    Examples::

        >>> pointing_game(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([[False, True, False]]))
        tensor([1.])
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"`k` is a number of tokens, 1 or more, not {k!r}.")
    tokens = _checked(attributions, evidence, mask)
    ranks, probabilities = _first_evidence(tokens)
    return tokens.defined((probabilities * (ranks <= k)).sum(-1))


def mean_reciprocal_rank(
    attributions: Tensor, evidence: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    """Reciprocal rank of the most relevant evidence token; its mean over examples is the MRR.

    The rank of the most relevant token is 1. Used for attributions of language models by Yin &
    Neubig (2022, https://arxiv.org/abs/2202.10419, section 4.2).

    Args:
        attributions: Token relevances ``[B, T]``.
        evidence: Ground truth ``[B, T]``, True where a token belongs to it.
        mask: ``[B, T]``, False for tokens that do not count. Default: all count.

    Returns:
        ``[B]``, from 1 / (number of tokens that count) to 1; with ties, the reciprocal rank
        expected under random tie-breaking. NaN as for all metrics of this module.

    Raises:
        AssertionError: If a shape or type does not fit.
        ValueError: If a mask of integers holds others than 0 and 1.

    Examples::

        >>> mean_reciprocal_rank(torch.tensor([[0.7, 0.2]]), torch.tensor([[False, True]]))
        tensor([0.5000])
    """
    tokens = _checked(attributions, evidence, mask)
    ranks, probabilities = _first_evidence(tokens)
    return tokens.defined((probabilities / ranks).sum(-1))


def relevance_mass_accuracy(
    attributions: Tensor, evidence: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    """Relevance mass accuracy, RMA: the share of positive relevance on evidence.

    Arras et al. (2022, https://arxiv.org/abs/2003.07258, section 3.3, CLEVR-XAI), where heat maps
    are made positive first: here negative relevance counts as zero.

    Args:
        attributions: Token relevances ``[B, T]``.
        evidence: Ground truth ``[B, T]``, True where a token belongs to it.
        mask: ``[B, T]``, False for tokens that do not count. Default: all count.

    Returns:
        ``[B]``, from 0 to 1; 0 where no token has positive relevance. NaN as for all metrics of
        this module, and where shares are undefined because a relevance is infinite.

    Raises:
        AssertionError: If a shape or type does not fit.
        ValueError: If a mask of integers holds others than 0 and 1.

    Examples::

        >>> relevance_mass_accuracy(torch.tensor([[3.0, 1.0]]), torch.tensor([[True, False]]))
        tensor([0.7500])
    """
    tokens = _checked(attributions, evidence, mask)
    mass = tokens.relevances.clamp(min=0)
    # Shares of the largest first, so that the sum can neither overflow nor vanish.
    largest = mass.amax(-1, keepdim=True)
    mass = mass / torch.where(largest > 0, largest, 1.0)
    total = mass.sum(-1)
    share = torch.where(tokens.evidence, mass, 0.0).sum(-1) / torch.where(total == 0, 1.0, total)
    return tokens.defined(share)


def relevance_rank_accuracy(
    attributions: Tensor, evidence: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    """Relevance rank accuracy, RRA: the share of the evidence among as many top tokens.

    With K evidence tokens, how many of the K most relevant tokens are evidence, divided by K (Arras
    et al. 2022, https://arxiv.org/abs/2003.07258, section 3.3).

    Args:
        attributions: Token relevances ``[B, T]``.
        evidence: Ground truth ``[B, T]``, True where a token belongs to it.
        mask: ``[B, T]``, False for tokens that do not count. Default: all count.

    Returns:
        ``[B]``, from 0 to 1; with ties, the share expected under random tie-breaking. NaN as
        for all metrics of this module.

    Raises:
        AssertionError: If a shape or type does not fit.
        ValueError: If a mask of integers holds others than 0 and 1.

    Examples::

        >>> relevance_rank_accuracy(
        ...     torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[True, False, True]])
        ... )
        tensor([0.5000])
    """
    tokens = _checked(attributions, evidence, mask)
    return tokens.defined(_evidence_on_top(tokens) / tokens.evidence.sum(-1).clamp(min=1))


def per_token_accuracy(
    attributions: Tensor,
    evidence: Tensor,
    *,
    mask: Tensor | None = None,
    selection: Selection = "positive",
) -> Tensor:
    """Per-token accuracy, PTA: the share of tokens whose sign tells whether they are evidence.

    A token with strictly positive relevance counts as evidence, any other does not; this
    classification has an accuracy over all tokens that count (Arras et al. 2025,
    https://arxiv.org/abs/2502.15886, section 4.3). Attributions with random signs score 0.5, and
    magnitudes, which are all positive, score the share of the evidence.

    Args:
        attributions: Token relevances ``[B, T]``.
        evidence: Ground truth ``[B, T]``, True where a token belongs to it.
        mask: ``[B, T]``, False for tokens that do not count. Default: all count.
        selection: Tokens that count as evidence: ``"positive"``, tokens with positive relevance;
            ``"top"``, as many of the most relevant tokens as there is evidence. The latter is
            another measure, called PTA-K here: it needs no threshold and treats signed relevances
            and magnitudes alike.

    Returns:
        ``[B]``, from 0 to 1; with ``"top"``, ties get the accuracy expected under random
        tie-breaking. NaN as for all metrics of this module.

    Raises:
        AssertionError: If a shape or type does not fit.
        ValueError: If ``selection`` is unknown, or a mask of integers holds others than 0 and 1.

    Examples::

        >>> per_token_accuracy(
        ...     torch.tensor([[0.5, 0.3, -0.2, 0.0]]), torch.tensor([[True, False, False, False]])
        ... )
        tensor([0.7500])
    """
    if selection not in get_args(Selection):
        raise ValueError(f"`selection` is {' or '.join(get_args(Selection))}, not {selection!r}.")
    tokens = _checked(attributions, evidence, mask)
    count = tokens.counted.sum(-1)
    if selection == "positive":
        named = tokens.counted & (tokens.relevances > 0)
        wrong = (named ^ tokens.evidence).sum(-1).to(tokens.relevances.dtype)
    else:  # each missed evidence token leaves its place to one that is no evidence
        wrong = 2 * (tokens.evidence.sum(-1) - _evidence_on_top(tokens))
    return tokens.defined(1 - wrong / count.clamp(min=1))


def ground_truth_metric(
    metric: Callable[..., Tensor],
    explanation_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    evidence: Tensor,
    *,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Compute a metric of this module for an attribution method, in the form of ``captum.metrics``.

    As in ``captum.metrics.sensitivity_max``, the attributions are computed
    here; attributions of embeddings are summed over the embedding. For several metrics of the same
    attributions, compute these once and pass them to the metrics.

    Args:
        metric: One of the metrics; options by ``functools.partial(pointing_game, k=2)``.
        explanation_func: The ``attribute`` method of an attribution, or any function that returns
            attributions ``[B, T]`` or ``[B, T, D]``, of a layer for example.
        inputs: The one input, as ``explanation_func`` takes it, or a tuple of it.
        evidence: Ground truth ``[B, T]``, True where a token belongs to it.
        mask: ``[B, T]``, False for tokens that do not count. Default: all count. The model does not
            get it: pass a padding mask among the ``additional_forward_args`` as well.
        **kwargs: Arguments of ``explanation_func``: ``target``, ``additional_forward_args``,
            ``baselines``, ...

    Returns:
        ``[B]``, see the metric.

    Raises:
        AssertionError: If the attributions are not one tensor of tokens, or do not fit.

    Examples::

        >>> method = AttnLRPx(TokenLogits(model))
        >>> ground_truth_metric(
        ...     pointing_game, method.attribute, ids, evidence, mask=padding, target=are,
        ...     additional_forward_args=(padding,),
        ... )  # [B]
    """
    attributions = _captum.format_tensor_into_tuples(explanation_func(inputs, **kwargs))
    if len(attributions) != 1:
        raise AssertionError(
            f"The explanation function returned {len(attributions)} tensors, but the metric needs "
            "the attributions of the tokens alone: give one input, leave return_convergence_delta "
            "out, or wrap the function so that it returns one tensor."
        )
    return metric(token_relevances(attributions[0]), evidence, mask=mask)


# Shared helpers -----------------------------------------------------------------------------------


class _Tokens(NamedTuple):
    """Relevances (minimal where a token does not count), tokens that count, and evidence."""

    relevances: Tensor
    counted: Tensor
    evidence: Tensor
    valid: Tensor

    def defined(self, values: Tensor) -> Tensor:
        """Values ``[B]`` where they are defined, NaN elsewhere."""
        return torch.where(self.valid, values, torch.nan)


def _checked(attributions: Tensor, evidence: Tensor, mask: Tensor | None) -> _Tokens:
    relevances = check_attributions(attributions)
    counted = check_mask(mask, relevances)
    evidence = check_mask(evidence, relevances, "evidence") & counted
    relevances = relevances.masked_fill(~counted, -torch.inf)
    valid = evidence.any(-1) & ~relevances.isnan().any(-1)
    return _Tokens(relevances, counted, evidence, valid)


def _first_evidence(tokens: _Tokens) -> tuple[Tensor, Tensor]:
    """Possible ranks ``[B, T]`` of the first evidence token, and their probabilities ``[B, T]``.

    With ``a`` tokens above the best evidence token, and ``n`` as relevant as it, ``e`` of them
    evidence: in a random order of the ``n``, the first evidence is the j-th with probability
    ``S(j-1) - S(j)``, where ``S(j) = prod_{i<=j} (n - e - i + 1) / (n - i + 1)`` is the probability
    that the first ``j`` hold none. Its rank is ``a + j``.
    """
    relevances, counted, evidence, _ = tokens
    best = relevances.masked_fill(~evidence, -torch.inf).amax(-1, keepdim=True)
    tied = counted & (relevances == best)
    above = (counted & (relevances > best)).sum(-1, keepdim=True)
    n = tied.sum(-1, keepdim=True)
    others = n - (tied & evidence).sum(-1, keepdim=True)
    j = torch.arange(1, relevances.shape[-1] + 1, device=relevances.device)
    factors = (others - j + 1).clamp(min=0).to(relevances.dtype) / (n - j + 1).clamp(min=1)
    none_yet = factors.cumprod(-1)
    before = torch.cat([torch.ones_like(none_yet[:, :1]), none_yet[:, :-1]], dim=-1)
    return above + j, before - none_yet


def _evidence_on_top(tokens: _Tokens) -> Tensor:
    """Expected number ``[B]`` of evidence tokens among as many most relevant tokens."""
    relevances, counted, evidence, _ = tokens
    places = evidence.sum(-1, keepdim=True)
    ordered = relevances.sort(dim=-1, descending=True).values
    last = ordered.gather(-1, (places - 1).clamp(min=0))  # relevance of the last place
    above, tied = counted & (relevances > last), counted & (relevances == last)
    free = places - above.sum(-1, keepdim=True)  # places that the tied tokens share
    share = free.to(relevances.dtype) / tied.sum(-1, keepdim=True).clamp(min=1)
    return ((above & evidence) + share * (tied & evidence)).sum(-1)
