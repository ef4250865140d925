"""Metrics of faithfulness: agreement of attributions with effects of replacing tokens.

The form follows ``captum.metrics.infidelity``: a forward function, inputs and attributions in,
one number per example out. Common to all:

- ``forward_func`` is a Hugging Face model, a forward module, or any function of Captum's kind. With
  ``additional_forward_args`` after the inputs and ``target`` it returns **one value per example**.
- ``inputs`` are **token ids** ``[B, T]`` **or embeddings** ``[B, T, D]``, or a tuple of the one.
- ``attributions`` are ``[B, T]``, or ``[B, T, D]``, which are summed over ``D``.
- A token is replaced by ``baselines``: an id, or a tensor that can be broadcast to the inputs, as
  an embedding ``[D]``. By default **embeddings are replaced by zero**; ids have no default.
- Tokens excluded by the ``mask`` ``[B, T]`` (padding, special tokens if wished) **stay**: they
  are never replaced, and their attributions are ignored. By default all can be replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, get_args

import torch
from tqdm.auto import tqdm

from captum_lrpx.attr.protocol import only_input
from captum_lrpx.metrics.correlation import pearson, spearman
from captum_lrpx.metrics.replacement import Replacement, check_count, check_input, relevances_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from typing_extensions import Unpack

    from captum_lrpx._captum import TargetType


Order = Literal["morf", "lerf"]
"""Most relevant tokens first, or least relevant first."""


class CurveOptions(TypedDict, total=False):
    """Options that :func:`abpc` passes on to :func:`perturbation_curve`, see there."""

    steps: int | None
    fraction: float
    mask: Tensor | None
    perturbations_per_eval: int
    show_progress: bool


class Alignment(NamedTuple):
    """Agreement of attributions with the effects of leaving tokens out.

    Attributes:
        pearson: Pearson's correlation ``[B]``.
        spearman: Spearman's rank correlation ``[B]``.
    """

    pearson: Tensor
    spearman: Tensor


@dataclass(frozen=True)
class PerturbationCurve:
    """The explained output while more and more tokens are replaced.

    Attributes:
        replaced: Number of tokens replaced at each point ``[B, S + 1]``, from 0.
        tokens: Number of tokens that can be replaced ``[B]``.
        values: The explained output at each point ``[B, S + 1]``; NaN in rows with a NaN among the
            attributions that count, as their tokens have no order.
    """

    replaced: Tensor
    tokens: Tensor
    values: Tensor

    @property
    def fractions(self) -> Tensor:
        """Share of the tokens replaced at each point ``[B, S + 1]``; NaN without tokens."""
        tokens = torch.where(self.tokens > 0, self.tokens.to(self.values.dtype), torch.nan)
        return self.replaced / tokens.unsqueeze(-1)

    def area(self) -> Tensor:
        """Compute the area under the curve by the trapezoidal rule, divided by its width ``[B]``.

        This is the mean of the output along the curve, in units of the output. NaN where no token
        is replaced.
        """
        replaced = self.replaced.to(self.values.dtype)
        area = torch.trapezoid(self.values, replaced, dim=-1)
        return torch.where(replaced[:, -1] > 0, area / replaced[:, -1], torch.nan)


def leave_one_out(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    baselines: Tensor | float | None = None,
    additional_forward_args: object | None = None,
    target: TargetType = None,
    *,
    mask: Tensor | None = None,
    perturbations_per_eval: int = 1,
    show_progress: bool = False,
) -> Tensor:
    """Loss of the explained output when one token is replaced: ``f(x) - f(x without it)``.

    Args:
        forward_func: A Hugging Face model, a forward module, or any function of Captum's kind.
        inputs: Token ids ``[B, T]`` or embeddings ``[B, T, D]``, or a tuple of the one.
        baselines: Replacement of a token: an id, or a tensor that can be broadcast to the
            inputs, as an embedding ``[D]``. Default: the zero vector for embeddings; ids have no
            default.
        additional_forward_args: Arguments of ``forward_func`` after the inputs.
        target: Output index, in every form that Captum takes.
        mask: ``[B, T]``, False for tokens that stay. Default: all can be replaced.
        perturbations_per_eval: Number of tokens tried in one forward pass, each of which is
            ``perturbations_per_eval * B`` rows.
        show_progress: Whether to show a progress bar.

    Returns:
        ``[B, T]``, 0 for tokens that stay.

    Raises:
        AssertionError: If the output has more than one value per example, or a shape does not fit.
        ValueError: If ids have no baseline, there are several inputs, or
            ``perturbations_per_eval`` is not positive.

    Examples::

        >>> effects = leave_one_out(TokenLogits(model), embeds, target=are)  # [B, T]
    """
    given = Replacement(
        "leave_one_out", forward_func, inputs, baselines, additional_forward_args, target, mask
    )
    batch, tokens = given.counted.shape
    each = torch.eye(tokens, dtype=torch.bool, device=given.inputs.device)
    each = each.unsqueeze(1).expand(-1, batch, -1)
    chunks = torch.split(each, check_count(perturbations_per_eval, "perturbations_per_eval"))
    with torch.no_grad():
        whole = given.values(torch.zeros_like(each[:1]))
        without = [
            given.values(gone)
            for gone in tqdm(chunks, desc="Leave one out", disable=not show_progress)
        ]
    return (whole - torch.cat(without)).T.masked_fill(~given.counted, 0)


def leave_one_out_alignment(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    baselines: Tensor | float | None = None,
    additional_forward_args: object | None = None,
    target: TargetType = None,
    *,
    mask: Tensor | None = None,
    perturbations_per_eval: int = 1,
    show_progress: bool = False,
) -> Alignment:
    """Correlate attributions, per example, with the effects of leaving one token out.

    This agreement is the criterion of You et al. (2025, "When LRP Diverges from Leave-One-Out in
    Transformers", https://arxiv.org/abs/2510.18810) for LRP. For several methods on the same
    examples, compute :func:`leave_one_out` once and correlate with
    :func:`~captum_lrpx.metrics.pearson` and :func:`~captum_lrpx.metrics.spearman`. Compare
    magnitudes with ``effects.abs()``.

    Args:
        forward_func: As in :func:`leave_one_out`.
        inputs: The same.
        attributions: ``[B, T]``, or ``[B, T, D]``, which is summed over ``D``.
        baselines: As in :func:`leave_one_out`.
        additional_forward_args: The same.
        target: The same.
        mask: The same; tokens that stay do not count in the correlation.
        perturbations_per_eval: As in :func:`leave_one_out`.
        show_progress: The same.

    Returns:
        Pearson's and Spearman's correlation, ``[B]`` each; NaN as in
        :func:`~captum_lrpx.metrics.pearson`.

    Raises:
        AssertionError: As :func:`leave_one_out`.
        ValueError: The same.
    """
    tensor = check_input(only_input(inputs, "leave_one_out_alignment"))
    relevances = relevances_of(attributions, tensor)
    effects = leave_one_out(
        forward_func,
        tensor,
        baselines,
        additional_forward_args,
        target,
        mask=mask,
        perturbations_per_eval=perturbations_per_eval,
        show_progress=show_progress,
    )
    return Alignment(
        pearson(relevances, effects, mask=mask), spearman(relevances, effects, mask=mask)
    )


def perturbation_curve(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    baselines: Tensor | float | None = None,
    additional_forward_args: object | None = None,
    target: TargetType = None,
    *,
    order: Order = "morf",
    steps: int | None = None,
    fraction: float = 1.0,
    mask: Tensor | None = None,
    perturbations_per_eval: int = 1,
    show_progress: bool = False,
) -> PerturbationCurve:
    """Compute the explained output while tokens are replaced, most or least relevant first.

    Also known as pixel flipping (Samek et al. 2017, https://arxiv.org/abs/1509.06321). Tokens with
    equal attributions are replaced from left to right, in both orders.

    Args:
        forward_func: As in :func:`leave_one_out`.
        inputs: The same.
        attributions: ``[B, T]``, or ``[B, T, D]``, which is summed over ``D``.
        baselines: As in :func:`leave_one_out`.
        additional_forward_args: The same.
        target: The same.
        order: ``"morf"``, most relevant first, or ``"lerf"``, least relevant first.
        steps: Number of steps ``S``. If ``n`` tokens are replaced in the end, ``s * n // S``
            are after step ``s``. Default: one token per step; shorter rows stay at their end.
        fraction: Share of the tokens replaced in the end; their number is rounded, and is
            at least 1.
        mask: As in :func:`leave_one_out`.
        perturbations_per_eval: Number of points of the curve computed in one forward pass, each
            of which is ``perturbations_per_eval * B`` rows.
        show_progress: Whether to show a progress bar.

    Returns:
        The curve, with the untouched input as its first point.

    Raises:
        AssertionError: If the output has more than one value per example, or a shape does not fit.
        ValueError: If an option is unknown or out of range, ids have no baseline, or there are
            several inputs.

    Examples::

        >>> curve = perturbation_curve(TokenLogits(model), embeds, relevances, target=are)
        >>> curve.values, curve.area()  # [B, S + 1], [B]
    """
    if order not in get_args(Order):
        raise ValueError(f"`order` is {' or '.join(get_args(Order))}, not {order!r}.")
    given = Replacement(
        "perturbation_curve", forward_func, inputs, baselines, additional_forward_args, target, mask
    )
    relevances = relevances_of(attributions, given.inputs)
    tokens = given.counted.sum(-1)
    replaced = _replaced(tokens, steps, fraction)
    places = _places(relevances, given.counted, order)
    chunks = torch.split(replaced.T, check_count(perturbations_per_eval, "perturbations_per_eval"))
    with torch.no_grad():
        values = [
            given.values(places < points.unsqueeze(-1))
            for points in tqdm(chunks, desc=f"Perturbation ({order})", disable=not show_progress)
        ]
    curve = torch.cat(values).T
    curve = curve.to(torch.promote_types(curve.dtype, torch.float32))
    ordered = ~(relevances.isnan() & given.counted).any(-1, keepdim=True)
    return PerturbationCurve(replaced, tokens, torch.where(ordered, curve, torch.nan))


def abpc(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    baselines: Tensor | float | None = None,
    additional_forward_args: object | None = None,
    target: TargetType = None,
    **options: Unpack[CurveOptions],
) -> Tensor:
    """Area between the perturbation curves: area of LeRF minus area of MoRF.

    The measure of Achtibat et al. (2024, AttnLRP, https://arxiv.org/abs/2402.05602, section 4.1):
    the larger, the more faithful. Here the areas are means along the curve, in the unit
    of the output, so that texts of different lengths can be compared. 0 if all attributions are
    equal.

    Args:
        forward_func: As in :func:`leave_one_out`.
        inputs: The same.
        attributions: ``[B, T]``, or ``[B, T, D]``, which is summed over ``D``.
        baselines: As in :func:`leave_one_out`.
        additional_forward_args: The same.
        target: The same.
        **options: Options of :func:`perturbation_curve` except ``order``: ``steps``, ``fraction``,
            ``mask``, ``perturbations_per_eval`` and ``show_progress``.

    Returns:
        ``[B]``; NaN where no token can be replaced, or an attribution that counts is NaN.

    Raises:
        AssertionError: As :func:`perturbation_curve`.
        ValueError: As :func:`perturbation_curve`.
        TypeError: If an option is unknown.

    Examples::

        >>> abpc(TokenLogits(model), embeds, relevances, target=are, perturbations_per_eval=8)
    """
    arguments = (forward_func, inputs, attributions, baselines, additional_forward_args, target)
    least = perturbation_curve(*arguments, order="lerf", **options)
    most = perturbation_curve(*arguments, order="morf", **options)
    return least.area() - most.area()


def _replaced(tokens: Tensor, steps: int | None, fraction: float) -> Tensor:
    """Number of tokens replaced at each point ``[B, S + 1]``."""
    if not 0 < fraction <= 1:
        raise ValueError(
            f"`fraction` is a share of the tokens, above 0 and up to 1, not {fraction}."
        )
    share = (tokens.cpu().double() * fraction).round().long().clamp(min=1)
    end = share.to(tokens.device).minimum(tokens).unsqueeze(-1)
    number = int(end.max()) if steps is None else check_count(steps, "steps")
    points = torch.arange(number + 1, device=tokens.device)
    return points.minimum(end) if steps is None else points * end // number


def _places(relevances: Tensor, counted: Tensor, order: Order) -> Tensor:
    """Position of each token in the order of replacement ``[B, T]``; tokens that stay come last."""
    key = relevances if order == "lerf" else -relevances
    by_key = key.argsort(dim=-1, stable=True)
    stays = (~counted).gather(-1, by_key).to(torch.uint8)
    ordering = by_key.gather(-1, stays.argsort(dim=-1, stable=True))
    return ordering.argsort(dim=-1)
