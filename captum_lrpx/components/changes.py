"""Changes the input or output of a layer while a model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrpx.onlookers import hooked

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor, nn


class First:
    """Applies a function to the first floating-point tensor, and leaves the others."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.done = False

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the tensor, or the function's result for the first floating-point one."""
        if self.done or not tensor.is_floating_point():
            return tensor
        self.done = True
        return self.function(tensor)


def changed(
    layer: nn.Module, change: Callable[[Any], Any], *, at_input: bool
) -> AbstractContextManager[None]:
    """Change the input or output of a layer, in calls of this thread within the ``with`` block.

    Args:
        layer: The layer.
        change: Maps the input ``(args, kwargs)``, or the output, to its replacement.
        at_input: Whether the input is changed.
    """
    if at_input:
        return hooked([layer], before=lambda _, args, kwargs: change((args, kwargs)))
    return hooked([layer], after=lambda _, _args, output: change(output))
