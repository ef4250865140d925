"""Zeros in place of gradients that a rule does not use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Zeros:
    """Cache of zeros, one per shape, dtype and device, for a pass whose nodes only read them."""

    def __init__(self) -> None:
        self._found: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}

    def of(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros of a shape, dtype and device."""
        key = shape, dtype, device
        found = self._found.get(key)
        if found is None:
            with torch.no_grad():
                found = self._found[key] = torch.zeros(shape, dtype=dtype, device=device)
        return found

    def like(self, tensor: Tensor) -> Tensor:
        """Zeros like a tensor."""
        return self.of(tensor.shape, tensor.dtype, tensor.device)
