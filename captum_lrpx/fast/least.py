"""From how many numbers on a detour is worth it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Least"]


class Least(NamedTuple):
    """The least count of numbers for which a detour pays.

    On a processor it competes with the arithmetic that it saves. Another device does that in no
    time, and what counts is that the processor keeps it busy.

    Attributes:
        cpu: On a processor.
        elsewhere: On any other device.
    """

    cpu: int
    elsewhere: int

    def of(self, device: str) -> int:
        """That on a type of device."""
        return self.cpu if device == "cpu" else self.elsewhere
