"""Many targets of one forward pass."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx import _captum
from captum_lrpx.attr.backward import at_once_of, gradients
from captum_lrpx.attr.capture import captured, embedding_with_gradients
from captum_lrpx.attr.checks import CheckedForward
from captum_lrpx.attr.engine import forward_pass
from captum_lrpx.attr.forward import with_gradients
from captum_lrpx.propagation import sites_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from captum_lrpx._captum import TargetType
    from captum_lrpx.attr.capture import Captured
    from captum_lrpx.attr.input import LRPx
    from captum_lrpx.attr.strictness import Check

__all__ = [
    "all_targets",
    "check_embedded",
    "gradients_by_target",
    "only_ids",
    "relevances_by_target",
    "traced_by_target",
]


def relevances_by_target(
    attribution: LRPx,
    check: Check | None,
    inputs: tuple[Tensor, ...],
    targets: Sequence[TargetType] | None,
    arguments: tuple[Any, ...] | None,
    at_once: int | None,
) -> tuple[Tensor, ...]:
    """Relevances of inputs for each of several targets: one graph, several backward passes.

    Args:
        attribution: Forward function and rules.
        check: The check of coverage that is still to be made.
        inputs: Token ids ``[B, T]``, or any number of floating inputs ``[B, ...]``.
        targets: Targets in Captum's forms, or None.
        arguments: What the forward function takes behind the inputs.
        at_once: Number of targets per backward pass, None for one that fits the lengths; compiled
            blocks take one.

    Returns:
        For each input ``[K, B, ...]``.

    Raises:
        AssertionError: Captum's errors for targets that do not fit.
        ValueError: If inputs or targets do not fit.
    """
    of_ids = not all(torch.is_floating_point(tensor) for tensor in inputs)
    if of_ids:
        only_ids(inputs)
    leaves = with_gradients(inputs)
    embedding = sites_of(attribution.model).token_embedding
    given = () if targets is None else targets
    forward = CheckedForward(attribution.forward_func, attribution.model, given)
    with ExitStack() as opened:
        opened.enter_context(torch.enable_grad())
        opened.enter_context(attribution.rules(plain=check is not None))
        caught: Captured = {}
        if of_ids:
            opened.enter_context(embedding_with_gradients(embedding))
            caught = opened.enter_context(captured([embedding]))
        if check is not None:
            forward.around = check.around(lambda: caught.get(embedding, ()) if of_ids else leaves)
        output: Any = _captum.run_forward(forward, leaves, None, arguments)
        values = caught.get(embedding, ()) if of_ids else leaves
        if of_ids:
            check_embedded(values[0].shape[:-1] if values else (), inputs[0])
        chosen = all_targets(output, targets)
        parts: list[list[Tensor]] = [[] for _ in values]
        asked = at_once_of(at_once, _positions(inputs), inputs[0].device)
        at_once = attribution.targets_at_once(asked)
        finite = attribution.finite(inputs, arguments)
        for found, slopes in gradients_by_target(output, chosen, values, at_once):
            finite.require(found.T)
            for part, value, slope in zip(parts, values, slopes, strict=True):
                relevance = slope * value.detach()
                part.append(relevance.sum(-1) if of_ids else relevance)
    return tuple(torch.cat(part) for part in parts)


def traced_by_target(
    attribution: LRPx,
    inputs: tuple[Tensor, ...],
    targets: Sequence[TargetType] | None,
    arguments: tuple[Any, ...] | None,
    at_once: int | None,
) -> tuple[Tensor, ...]:
    """The same as :func:`relevances_by_target`, by rules on the graph."""
    given = () if targets is None else targets
    at_once = at_once_of(at_once, _positions(inputs), inputs[0].device)
    with forward_pass(attribution, inputs, arguments, targets=given) as passed:
        chosen = all_targets(passed.output, targets)
        at_once = at_once if passed.output.ndim <= 2 else 1
        passed.explain(lambda run: run.output, at_once=at_once)
        finite = attribution.finite(inputs, arguments)
        parts = []
        for values, slopes in gradients_by_target(passed.output, chosen, passed.sources, at_once):
            finite.require(values.T)
            parts.append(passed.relevances(slopes))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _positions(inputs: tuple[Tensor, ...]) -> int:
    """Rows times positions of the first input."""
    return inputs[0].shape[:2].numel()


def only_ids(inputs: tuple[Tensor, ...]) -> None:
    """Refuse token ids that are not the only input.

    Raises:
        ValueError: If there are others.
    """
    if len(inputs) != 1:
        raise ValueError(
            f"Token ids must be the only input, but {len(inputs)} inputs were given. Give "
            "masks and the like as additional_forward_args."
        )


def check_embedded(shape: Sequence[int], ids: Tensor) -> None:
    """Refuse a forward function that embeds something else than the ids it is given.

    Args:
        shape: ``[B, T]`` of what was embedded.
        ids: ``[B, T]``.

    Raises:
        ValueError: If the shapes differ.
    """
    if tuple(shape) != tuple(ids.shape):
        raise ValueError(
            f"The forward function embedded ids of shape {tuple(shape)}, but was "
            f"given ids of shape {tuple(ids.shape)}: give embeddings instead of ids, as "
            "`model.get_input_embeddings()(ids)` makes them."
        )


def all_targets(output: Tensor, targets: Sequence[TargetType] | None) -> Sequence[TargetType]:
    """The targets, by default every output of each row.

    Args:
        output: ``[B, C]``; any shape where targets are given.
        targets: Targets in Captum's forms, or None.

    Raises:
        ValueError: If all are asked for of an output that is not ``[B, C]``.
    """
    if targets is None:
        if output.ndim != 2:
            raise ValueError(
                f"The output has the shape {tuple(output.shape)}: without `targets` it must be "
                "[B, C], all of which is explained. Give `targets`."
            )
        return range(output.shape[1])
    return targets


def gradients_by_target(
    output: Tensor, targets: Sequence[TargetType], inputs: Sequence[Tensor], at_once: int
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Explained values and their gradients, one backward pass for ``at_once`` targets.

    The gradient at logits of all positions is zero almost everywhere, which the head makes use of
    in a backward pass of one target only: such outputs are explained one by one.

    Args:
        output: What the forward function gave ``[B, ...]``.
        targets: Targets in Captum's forms.
        inputs: Tensors of the graph ``[B, ...]``.
        at_once: Number of targets per backward pass.

    Yields:
        Values ``[k, B]``, and for each input the gradients ``[k, B, ...]``.

    Raises:
        AssertionError: Captum's errors for targets that do not fit.
    """
    at_once = at_once if output.ndim <= 2 else 1
    for start in range(0, len(targets), at_once):
        values = torch.stack(
            [_selected(output, target) for target in targets[start : start + at_once]]
        )
        count, rows = values.shape
        seeds = torch.eye(count, dtype=values.dtype, device=values.device)
        retain = start + at_once < len(targets)
        found = gradients(
            values, inputs, seeds.unsqueeze(2).expand(count, count, rows), retain=retain
        )
        yield values.detach(), found


def _selected(output: Tensor, target: TargetType) -> Tensor:
    values: Any = _captum.select_targets(output, target)
    selected: Tensor = values.reshape(-1)
    return selected
