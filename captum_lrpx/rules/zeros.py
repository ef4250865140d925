"""Zeros that stand for what a rule does not look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Zeros"]


class Zeros:
    """Zeros of each form, made once: for one pass, whose nodes only read them."""

    def __init__(self) -> None:
        self._found: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}

    def of(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros of a form."""
        key = shape, dtype, device
        found = self._found.get(key)
        if found is None:
            with torch.no_grad():
                found = self._found[key] = torch.zeros(shape, dtype=dtype, device=device)
        return found

    def like(self, tensor: Tensor) -> Tensor:
        """Zeros of the form of a tensor."""
        return self.of(tensor.shape, tensor.dtype, tensor.device)
