"""Relevances for parts of a continuation, all from one forward pass: by rules or by ALTI-Logit.

Hops: how much an answer owes to the reasoning before it says little about the prompt. The relevance
of a generated token is therefore passed on to the tokens that it was predicted from, in proportion:
one more backward pass in which every token is a target, weighted by its relevance over its logit
(the recursion of FlashTrace, https://arxiv.org/abs/2602.01914). As relevance is linear in the
explained value, each hop is one pass, whatever the number of tokens.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from captum_lrpx.attr.backward import at_once_of, gradients
from captum_lrpx.attr.engine import ForwardPass
from captum_lrpx.attr.finite import Finite
from captum_lrpx.attr.layer import LayerLRPx
from captum_lrpx.models import device_of
from captum_lrpx.structure import token_embedding_of
from captum_lrpx.targets.encoding import vocabulary_size
from captum_lrpx.targets.head import LanguageModelHead, ModelForward
from captum_lrpx.targets.quantity import in_quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum_lrpx.attr.alti_logit import ALTILogit
    from captum_lrpx.attr.input import LRPx
    from captum_lrpx.targets.quantity import Quantity


_LOGITS = 2**23
"""Number of logits over the whole vocabulary that exist at a time."""

_AT_ONCE = 16
"""Targets per decomposition; its temporary tensors grow with their number."""


class RowRelevances(NamedTuple):
    """Relevances of prompt and continuation for parts of the continuation.

    Attributes:
        context: ``[R, P + K]``.
        values: The explained values ``[R]``.
        decomposed: The sums of relevances and delta ``[R]``.
        lost: Relevance lost at each hop ``[R, hops]``.
    """

    context: Tensor
    values: Tensor
    decomposed: Tensor
    lost: Tensor


# By rules -----------------------------------------------------------------------------------------


def rows_of_rules(
    method: LRPx | LayerLRPx,
    ids: Tensor,
    wanted: Tensor,
    rows: Tensor,
    hops: int,
    *,
    quantity: Quantity,
    at_once: int | None,
    at_input: bool,
) -> RowRelevances:
    """Run one forward pass, one seed per step, one backward pass per ``at_once`` rows.

    Args:
        method: Model and rules.
        ids: Prompt and continuation ``[P + K]``.
        wanted: Token, and foil if there is one, of each step ``[K, 1 or 2]``.
        rows: Weight of each step in each row ``[R, K]``.
        hops: How many times relevance of the continuation is passed on.
        quantity: The explained quantity of a token.
        at_once: Number of rows per backward pass; None chooses by length.
        at_input: Whether the input of the layer is explained.
    """
    reading = _reading(method)
    layer = reading.layer
    device = device_of(method.model)
    read = ids[None, :-1].to(device)
    wanted = wanted.to(device)
    size = at_once_of(at_once, len(ids) - 1, device)
    with ForwardPass(
        reading, (read,), None, layers=[layer], at_input=at_input, at_inputs=False
    ) as passed:
        states = passed.explain(
            lambda run: run.output[0, -len(wanted) :],
            lambda run: _of_sequence(run.layers.get(layer), len(ids) - 1, layer),
            at_once=min(size, len(rows)),
        )  # [K, D]
        found = _of_sequence(passed.layers.get(layer), len(ids) - 1, layer)
        head = LanguageModelHead(method.model)
        values, decomposed, seeds = _seeds_of(head, states, wanted, quantity)
        Finite(method.model, method.model, (read,), noun="token").require(values)
        rows = rows.to(seeds)

        explain = partial(_explained, method, states, found, size)
        context = explain(rows, seeds, retain=hops > 0)
        # Hops need logits as targets, whatever the explained quantity.
        logits, _, of_logits = (
            _seeds_of(head, states, wanted[:, :1], "logit") if hops else (values, values, seeds)
        )
        remaining = iter(range(hops - 1, -1, -1))
        context, lost = followed(
            context,
            lambda weights: explain(weights, of_logits, retain=next(remaining) > 0),
            logits,
            hops,
        )
    return RowRelevances(context, rows.to(values) @ values, rows.to(decomposed) @ decomposed, lost)


def _reading(method: LRPx | LayerLRPx) -> LayerLRPx:
    """Explains states of the model at the method's layer, or at the token embeddings."""
    reading = LayerLRPx(
        _LastStates(method.model),
        method.layer if isinstance(method, LayerLRPx) else token_embedding_of(method.model),
        model=method.model,
        recipe=method.recipe,
        strict=method.strict,
        fast=method.economical,
    )
    reading.checkpointing = method.checkpointing
    return reading


class _LastStates(ModelForward):
    """A language model without its head: its states at each position."""

    def forward(self, ids: Tensor) -> Tensor:
        """States ``[B, T, D]``."""
        return LanguageModelHead(self.model).states(ids)


def _relevance(
    method: LRPx | LayerLRPx,
    values: Sequence[Tensor],
    slopes: Sequence[Tensor],
) -> Tensor:
    """Relevance of each position ``[R, T]``, from gradients ``[R, 1, T, ...]``."""
    products = (
        gradient * (value.detach() if method.multiplies_by_inputs else 1)
        for value, gradient in zip(values, slopes, strict=True)
    )
    return cast("Tensor", sum(each.detach()[:, 0].flatten(2).sum(2) for each in products))


def _of_sequence(
    values: tuple[Tensor, ...] | None, length: int, layer: nn.Module
) -> tuple[Tensor, ...]:
    """The tensors of a layer, which must have one vector per token."""
    if not values or any(value.shape[:2] != (1, length) for value in values):
        shown = "nothing" if not values else ", ".join(str(tuple(value.shape)) for value in values)
        raise ValueError(
            f"The layer {type(layer).__name__} gave {shown} where the model read {length} tokens: "
            "choose a layer between the embeddings and the head, with hidden states for each token."
        )
    return values


def _explained(
    method: LRPx | LayerLRPx,
    states: Tensor,
    found: Sequence[Tensor],
    size: int,
    weights: Tensor,
    seeds: Tensor,
    *,
    retain: bool,
) -> Tensor:
    """Relevances ``[R, P + K]`` of weighted sums ``[R, K]``; the last token is never read.

    Args:
        method: The rules.
        states: State that each step is predicted from ``[K, D]``.
        found: The tensors of the layer ``[1, T, ...]``.
        size: Number of sums per backward pass.
        weights: Weight of each step in each sum.
        seeds: Gradients at the states ``[K, D]``.
        retain: Whether to keep the graph after the last pass.
    """
    chunks = torch.split(weights, size)
    parts = []
    for number, chunk in enumerate(chunks, start=1):
        again = retain or number < len(chunks)
        slopes = gradients(states, found, chunk.unsqueeze(2) * seeds, retain=again)
        parts.append(_relevance(method, found, slopes))
    context = torch.cat(parts)
    _check_causal(context, weights)
    return nn.functional.pad(context, (0, 1))


def _check_causal(relevance: Tensor, rows: Tensor) -> None:
    """Refuse a model that sees later tokens: one pass then differs from a pass per prefix.

    Args:
        relevance: ``[R, T]`` for the text without its last token.
        rows: ``[R, K]``.
    """
    length, steps = relevance.shape[1], rows.shape[1]
    at = torch.arange(steps, device=rows.device)
    read_from = length - steps + torch.where(rows != 0, at, 0).amax(1)  # [R]
    later = torch.arange(length, device=rows.device) > read_from.unsqueeze(1)
    if bool((relevance[later] != 0).any()):
        raise ValueError(
            "The model's predictions depend on tokens that come later, so it is not a causal "
            "language model: a bidirectional one needs `is_decoder=True` in its config."
        )


def _seeds_of(
    head: LanguageModelHead, states: Tensor, wanted: Tensor, quantity: Quantity
) -> tuple[Tensor, Tensor, Tensor]:
    """Explained values of all steps, and the seeds of their backward passes.

    The step of one token depends on the state at its own position only, so one backward pass
    through the head yields the seeds of many steps. Logits over the whole vocabulary are computed
    for as many steps at a time as :data:`_LOGITS` allows, which does not grow with the answer.

    Args:
        head: The head.
        states: ``[K, D]``, the state that each step is predicted from.
        wanted: ``[K, 1]`` tokens, or ``[K, 2]`` with foils.
        quantity: The explained quantity of a token.

    Returns:
        Explained values ``[K]``, gradient times logits ``[K]``, gradients at the states ``[K, D]``.
    """
    size = vocabulary_size(head.model) if head.chain else states.shape[1]
    steps = max(_LOGITS // size, 1)
    parts = [
        _of_steps(head, *part, quantity)
        for part in zip(torch.split(states, steps), torch.split(wanted, steps), strict=True)
    ]
    values, decomposed, seeds = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(decomposed), torch.cat(seeds)


def _of_steps(
    head: LanguageModelHead, states: Tensor, wanted: Tensor, quantity: Quantity
) -> tuple[Tensor, Tensor, Tensor]:
    """Explained values and seeds of some of the steps."""
    leaves = states.detach().requires_grad_()
    if quantity == "logit" or (quantity == "log_prob" and wanted.shape[1] == 2):
        # The normalizer of a log-probability cancels in the difference to a foil.
        logits = head.logits(leaves, wanted)
        explained = logits
    else:
        logits = head.logits(leaves)
        explained = in_quantity(logits, quantity).gather(1, wanted)
    values = explained[:, 0] - explained[:, 1] if wanted.shape[1] == 2 else explained[:, 0]
    (slopes,) = torch.autograd.grad(values.sum(), logits, retain_graph=True)
    (seeds,) = torch.autograd.grad(logits, leaves, slopes)
    return values.detach(), (slopes * logits.detach()).sum(1), seeds


# By ALTI-Logit ------------------------------------------------------------------------------------


def rows_of_alti(
    method: ALTILogit, ids: Tensor, wanted: Tensor, rows: Tensor, hops: int
) -> RowRelevances:
    """Contributions of prompt and continuation to the logits of a continuation.

    Args:
        method: ALTI-Logit on the model.
        ids: Prompt and continuation ``[P + K]``.
        wanted: Token, and foil if there is one, of each step ``[K, 1 or 2]``.
        rows: Weight of each step in each row ``[R, K]``.
        hops: Number of times that relevance of the continuation is passed on.

    Returns:
        The contributions; they decompose the explained values.
    """
    device = device_of(method.model)
    read, steps = ids[None, :-1].to(device), len(wanted)
    first = len(ids) - 1 - steps
    with torch.no_grad():
        head = LanguageModelHead(method.model)
        logits = head.logits(head.states(read)[0, first:], wanted.to(device))
    single = [_contributions(method, read, column.tolist(), first) for column in wanted.T]
    explained, values = single[0], logits[:, 0]
    if len(single) == 2:
        explained, values = explained - single[1], values - logits[:, 1]
    rows = rows.to(explained)
    context, lost = followed(
        rows @ explained,
        lambda weights: weights.to(explained) @ single[0],
        logits[:, 0].to(explained),
        hops,
    )
    values = rows.to(values) @ values
    return RowRelevances(context, values, values, lost)


def _contributions(method: ALTILogit, read: Tensor, tokens: list[int], first: int) -> Tensor:
    """One row ``[K, P + K]`` per token; the last token is only predicted, never read."""
    targets = [(first + step, token) for step, token in enumerate(tokens)]
    parts = [
        cast("Tensor", method.attribute_targets(read, targets[start : start + _AT_ONCE]))[:, 0]
        for start in range(0, len(targets), _AT_ONCE)
    ]
    return torch.nn.functional.pad(torch.cat(parts), (0, 1))


# Hops ---------------------------------------------------------------------------------------------


def followed(
    relevance: Tensor, explain: Callable[[Tensor], Tensor], logits: Tensor, hops: int
) -> tuple[Tensor, Tensor]:
    """Pass relevance of generated tokens on to the tokens that they were predicted from.

    A token keeps its relevance if its logit is not positive: shares of zero or of a negative
    number are not defined.

    Args:
        relevance: Of prompt and continuation ``[R, P + K]``.
        explain: Maps weights of the continuation's logits ``[R, K]`` to the relevances
            ``[R, P + K]`` of the weighted sums.
        logits: Of the tokens of the continuation ``[K]``.
        hops: Number of hops.

    Returns:
        Relevances ``[R, P + K]`` and, for each hop, the relevance that reached no token
        ``[R, hops]``: the share of biases, positions and the softmax.
    """
    lost = []
    start = relevance.shape[1] - len(logits)
    given_on = logits > 0
    for _ in range(hops):
        mass = torch.where(given_on, relevance[:, start:], 0)
        arrived = explain(torch.where(given_on, mass / logits, 0))
        lost.append(mass.sum(1) - arrived.sum(1))
        relevance = relevance.clone()
        relevance[:, start:] -= mass
        relevance = relevance + arrived
    return relevance, torch.stack(lost, 1) if lost else relevance.new_zeros(len(relevance), 0)
