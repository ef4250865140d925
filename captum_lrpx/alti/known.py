"""Properties of an attention shared by all passes of one structure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from captum_lrpx.alti.attention_weights import Order

__all__ = ["Known"]

Orders = tuple["Order", "Tensor | None", "Tensor | None"]


class Known:
    """Cache of properties of the attentions of a graph, by their mixing nodes."""

    def __init__(self) -> None:
        self._projections: dict[int, Any] = {}
        self._orders: dict[int, Orders] = {}
        self._lengths: tuple[int, int] | None = None

    def projection(self, mixing: int, find: Callable[[], Any]) -> Any:
        """Place of the output projection, which depends on the structure alone."""
        if mixing not in self._projections:
            self._projections[mixing] = find()
        return self._projections[mixing]

    def order(self, mixing: int, lengths: tuple[int, int], find: Callable[[], Orders]) -> Orders:
        """Order of heads and positions, which depends on structure and lengths.

        It is not kept if there are factors beside it, which belong to one pass.
        """
        if self._lengths != lengths:
            self._orders.clear()
            self._lengths = lengths
        found = self._orders.get(mixing)
        if found is None:
            found = find()
            if found[1] is None and found[2] is None:
                self._orders[mixing] = found
        return found
