"""Changes the input or output of a layer while a model runs."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


@contextmanager
def changed(layer: nn.Module, change: Callable[[Any], Any], *, at_input: bool) -> Iterator[None]:
    """Change the input or output of a layer, in calls of this thread within the ``with`` block.

    Args:
        layer: The layer.
        change: Maps the input ``(args, kwargs)``, or the output, to its replacement.
        at_input: Whether the input is changed.
    """
    thread = threading.get_ident()

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return change((args, kwargs)) if threading.get_ident() == thread else None

    def after(_: nn.Module, _args: Any, output: Any) -> Any:
        return change(output) if threading.get_ident() == thread else None

    if at_input:
        handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = layer.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
