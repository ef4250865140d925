"""Replacement of tokens by a baseline, shared by the metrics of faithfulness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx import _captum
from captum_lrpx.attr.forward_function import RecordedForward
from captum_lrpx.attr.protocol import only_input
from captum_lrpx.metrics.tokens import check_attributions, check_mask, token_relevances

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from captum_lrpx._captum import TargetType


class Replacement:
    """A forward function whose tokens can be replaced.

    Attributes:
        forward: The forward function.
        inputs: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
        counted: Which tokens may be replaced ``[B, T]``.
        baseline: Replacement of each token, shaped like the inputs; the token itself if it
            stays.
        target: Output index, in every form that Captum takes.
        additional_forward_args: Arguments of the forward function after the inputs.
    """

    def __init__(
        self,
        caller: str,
        forward_func: Callable[..., Any],
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Tensor | float | None,
        additional_forward_args: object | None,
        target: TargetType,
        mask: Tensor | None,
    ) -> None:
        """Check the arguments of a metric.

        Args:
            caller: Name of the metric, for messages.
            forward_func: As in :func:`captum_lrpx.metrics.leave_one_out`, like the rest.
            inputs: The same.
            baselines: The same.
            additional_forward_args: The same.
            target: The same.
            mask: The same.

        Raises:
            AssertionError: If a shape or type does not fit.
            ValueError: If ids have no baseline, or there are several inputs.
        """
        self.inputs = check_input(only_input(inputs, caller))
        self.counted = check_mask(mask, self.inputs)
        self.baseline = _baseline_of(baselines, self.inputs, self.counted)
        self.forward = RecordedForward(forward_func)
        self.target = target
        self.additional_forward_args = additional_forward_args

    def replaced(self, gone: Tensor) -> tuple[Tensor, TargetType, Any]:
        """Inputs with tokens replaced, and target and further arguments for as many rows.

        Args:
            gone: The replaced tokens at each of ``P`` points ``[P, B, T]``.

        Returns:
            Inputs of ``P * B`` rows, target, and arguments after the inputs, or None.
        """
        where = _over_embedding(gone & self.counted, self.inputs)
        args = _captum.format_additional_forward_args(self.additional_forward_args)
        return (
            torch.where(where, self.baseline, self.inputs).flatten(0, 1),
            _captum.expand_target(self.target, len(gone)),
            _captum.expand_additional_forward_args(args, len(gone)),
        )

    def values(self, gone: Tensor) -> Tensor:
        """Compute the explained output with tokens replaced.

        Args:
            gone: The replaced tokens at each of ``P`` points ``[P, B, T]``.

        Returns:
            ``[P, B]``, from one forward pass.

        Raises:
            AssertionError: If the output has more than one value per example.
        """
        inputs, target, args = self.replaced(gone)
        output: Tensor = _captum.run_forward(self.forward, inputs, target, args)
        if output.shape[:1] != inputs.shape[:1] or output.numel() != len(inputs):
            raise AssertionError(
                "The forward function must return one value per example, but returned "
                f"{list(output.shape)} for {len(inputs)} examples: give a `target`, or a forward "
                "module of captum_lrpx.targets."
            )
        return output.reshape(gone.shape[:2])


def check_input(tensor: Tensor) -> Tensor:
    """Check token ids or embeddings, at least one; an AssertionError otherwise."""
    if tensor.ndim != (3 if tensor.is_floating_point() else 2) or tensor.shape[1] == 0:
        raise AssertionError(
            "Inputs must be token ids [B, T] or embeddings [B, T, D], with one token at least, not "
            f"{tensor.dtype} of {list(tensor.shape)}."
        )
    return tensor


def relevances_of(attributions: Tensor, inputs: Tensor) -> Tensor:
    """Token relevances ``[B, T]`` that fit the inputs; an AssertionError otherwise."""
    relevances = check_attributions(token_relevances(attributions))
    if relevances.shape != inputs.shape[:2]:
        raise AssertionError(
            f"Attributions of {list(attributions.shape)} do not belong to inputs of "
            f"{list(inputs.shape)}: batch and tokens must be the same."
        )
    return relevances.to(inputs.device)


def _baseline_of(baselines: Tensor | float | None, inputs: Tensor, counted: Tensor) -> Tensor:
    """Replacement of each token; the token itself if it stays."""
    if baselines is None:
        if not inputs.is_floating_point():
            raise ValueError(
                "Token ids have no natural baseline: give `baselines`, the id that replaces a "
                "token (the mask or padding token), or give embeddings, which are replaced "
                "by zero."
            )
        baselines = 0.0
    value = torch.as_tensor(baselines, device=inputs.device)
    if value.is_floating_point() and not inputs.is_floating_point():
        raise AssertionError("Token ids are replaced by token ids: `baselines` must be integers.")
    try:
        value = value.to(inputs.dtype).broadcast_to(inputs.shape)
    except RuntimeError as error:
        raise AssertionError(
            f"`baselines` of {list(value.shape)} cannot be broadcast to the inputs, "
            f"{list(inputs.shape)}: give a number, one embedding [D], or a tensor like the inputs."
        ) from error
    return torch.where(_over_embedding(counted, inputs), value, inputs)


def _over_embedding(tokens: Tensor, inputs: Tensor) -> Tensor:
    """Values per token ``[..., T]``, as ``[..., T, 1]`` if inputs are embeddings."""
    return tokens.unsqueeze(-1) if inputs.ndim == 3 else tokens


def check_count(number: int, name: str) -> int:
    """Check a positive integer; a ValueError otherwise."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"`{name}` must be an integer of 1 or more, not {number!r}.")
    return number
