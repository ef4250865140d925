"""The one function mode of the package: whoever looks at functions of PyTorch does it by this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FunctionMode"]


class FunctionMode(TorchFunctionMode):
    """Hands each function that one thread calls to somebody, for a ``with`` block.

    Of several that are open, the innermost is asked first; the functions that it calls go to the
    next one, and never to itself.

    Args:
        call: ``call(func, args, kwargs)`` has to call the function and return what it returns.
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
        """PyTorch's entry."""
        return self._call(func, args, kwargs or {})
