"""Sizes from which a detour is worth it."""

from __future__ import annotations

from typing import NamedTuple


class Least(NamedTuple):
    """Number of elements from which a detour is faster.

    On a CPU it competes with the arithmetic that it saves. On other devices arithmetic is nearly
    free, and the CPU must keep the device busy.

    Attributes:
        cpu: On a CPU.
        elsewhere: On any other device.
    """

    cpu: int
    elsewhere: int

    def of(self, device: str) -> int:
        """The number for a type of device."""
        return self.cpu if device == "cpu" else self.elsewhere
