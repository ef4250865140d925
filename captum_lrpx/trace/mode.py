"""The function mode through which this package observes calls of PyTorch functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable


class FunctionMode(TorchFunctionMode):
    """Passes each function that one thread calls to a callback, for a ``with`` block.

    If several are open, the innermost comes first; functions that its callback calls go to the
    next one, never to itself.

    Args:
        call: ``call(func, args, kwargs)`` must call the function and return its result.
    """

    def __init__(
        self, call: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        super().__init__()
        self._call = call

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """PyTorch's entry point."""
        return self._call(func, args, kwargs or {})
