"""Values that are infinite or NaN, and the module where they arise."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.capture import uncaptured
from captum_lrpx.attr.forward_function import RecordedForward
from captum_lrpx.notices import warn
from captum_lrpx.onlookers import hooked
from captum_lrpx.training import already_warned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Finite:
    """Check that explained values, and their relevances, are finite.

    If they are not, the forward function runs once more to find the first module with an output
    that is not finite.

    Args:
        model: The Hugging Face model.
        forward_func: The forward function, which runs the model.
        inputs: Its inputs.
        args: Its other arguments.
        noun: Name of one explained value: a row of a batch, a token of a continuation.
    """

    def __init__(
        self,
        model: nn.Module,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        args: object | None = None,
        *,
        noun: str = "row",
    ) -> None:
        self.model = model
        self.forward_func = forward_func
        self.inputs = inputs
        self.args = args
        self.noun = noun

    def require(self, values: Tensor) -> Tensor:
        """Refuse explained values that are not finite.

        Args:
            values: ``[B, ...]``.

        Returns:
            The values.

        Raises:
            ValueError: If one is infinite or NaN; the message names the rows, and the first module
                with such an output.
        """
        if _are_finite(values):
            return values
        wrong = ~torch.isfinite(values.detach())
        rows = _rows(wrong)
        shown = values.detach()[wrong].flatten()[0].item()
        raise ValueError(
            f"The explained value of {self._named(rows)} is {shown}, so there is nothing to "
            f"explain: {self._origin(rows)}. Ways out: a precision of a wider range "
            "(torch.bfloat16 or torch.float32 for torch.float16); with padding on the left, "
            'attn_implementation="sdpa" or padding on the right; inputs that are finite.'
        )

    def warn(self, relevances: tuple[Tensor, ...]) -> None:
        """Warn if relevances are infinite or NaN although the explained values are finite.

        Args:
            relevances: Of a batch, ``[B, ...]``.
        """
        if all(map(_are_finite, relevances)):
            return
        wrong = [~torch.isfinite(each).reshape(len(each), -1).all(1) for each in relevances]
        rows = _rows(torch.stack(wrong, 1))
        found = self._first(rows)
        cause = f"the backward pass left the range of {relevances[0].dtype}"
        way_out = "Explain the model in torch.float32 or torch.bfloat16."
        if found is not None:
            cause = f"{found} is not, at a position that is not explained"
            way_out = (
                'With padding on the left, load the model with attn_implementation="sdpa" or pad '
                "on the right."
            )
        warn(
            f"Relevances are not finite ({self._named(rows)}) although the output is: {cause}. "
            f"{way_out}"
        )

    def _named(self, rows: list[int]) -> str:
        several = "s" if len(rows) > 1 else ""
        return f"{self.noun}{several} {', '.join(map(str, rows))}"

    def _origin(self, rows: list[int]) -> str:
        found = self._first(rows)
        if found is not None:
            return f"{found} is the first that is not finite"
        return "all modules of the model give finite numbers, so it comes from the function around"

    def _first(self, rows: list[int]) -> str | None:
        """Description of the first module whose output is not finite in given rows."""
        found: list[str] = []
        batch = len(self.inputs[0])

        paths = {module: path for path, module in self.model.named_modules()}

        def look(module: nn.Module, _args: Any, output: Any) -> None:
            if found:
                return
            for tensor in _floating(output):
                by_row = self.noun == "row" and tensor.shape[:1] == (batch,)
                own = tensor[rows] if by_row else tensor
                if not _are_finite(own):
                    found.append(f"the output of {paths[module]!r} ({type(module).__name__})")
                    return

        args = _captum.format_additional_forward_args(self.args)
        args = None if args is None else tuple(map(own_copy, args))
        forward = RecordedForward(self.forward_func)
        with (
            torch.no_grad(),
            uncaptured(),
            already_warned(self.model),
            hooked(paths, after=look),
        ):
            _captum.run_forward(forward, self.inputs, None, args)
        return found[0] if found else None


def _rows(wrong: Tensor) -> list[int]:
    """Indices of the rows of ``[B, ...]`` with any element set."""
    found: list[int] = wrong.reshape(len(wrong), -1).any(1).nonzero().flatten().tolist()
    return found


def _are_finite(numbers: Tensor) -> bool:
    """Whether all numbers are finite: if their sum is (quick), or, as it may overflow, each."""
    return math.isfinite(numbers.detach().sum()) or bool(torch.isfinite(numbers).all())


def _floating(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _floating(each)
    elif isinstance(value, dict):
        yield from _floating(list(value.values()))


def own_copy(argument: object) -> object:
    """A copy of a mutable argument, so that a forward pass may change it unnoticed."""
    plain = isinstance(argument, (Tensor, nn.Module)) or callable(argument)
    return argument if plain else copy.deepcopy(argument)
