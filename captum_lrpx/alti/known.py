"""What passes of one structure have in common, for an attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from captum_lrpx.alti.attention_weights import Order

__all__ = ["Known"]

Orders = tuple["Order", "Tensor | None", "Tensor | None"]


class Known:
    """What has been found out about the attentions of a graph, by their mixing nodes."""

    def __init__(self) -> None:
        self._projections: dict[int, Any] = {}
        self._orders: dict[int, Orders] = {}
        self._lengths: tuple[int, int] | None = None

    def projection(self, mixing: int, find: Callable[[], Any]) -> Any:
        """Where the output projection is, which follows from the structure alone."""
        if mixing not in self._projections:
            self._projections[mixing] = find()
        return self._projections[mixing]

    def order(self, mixing: int, lengths: tuple[int, int], find: Callable[[], Orders]) -> Orders:
        """Where heads and positions are, which is the same in each pass of some lengths.

        Factors beside them are numbers of one pass, and not kept.
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
