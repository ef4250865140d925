"""Functions of autograd with a backward pass of their own, cheap enough to be called everywhere."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["OwnBackward"]


class OwnBackward(torch.autograd.Function):
    """A base of functions that any transform of ``torch.func`` can go through.

    They have ``forward`` without a context and ``setup_context``, and take positional arguments.
    """

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run the function.

        PyTorch's own ``apply`` looks up the signature of ``forward`` at each call to bind the
        arguments, which takes several times as long as the rest. Outside of transforms there is
        nothing else that it does.
        """
        if torch._C._are_functorch_transforms_active():  # noqa: SLF001 - no public name
            return super().apply(*args)  # type: ignore[no-untyped-call]
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]
