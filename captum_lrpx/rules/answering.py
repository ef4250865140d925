"""Gradients that know better than the node that they are handed to.

A node of the graph calls one function or two with the gradient that it gets. A gradient of a class
of its own is asked first, and may answer in their place: with what a rule wants, or with the same
found in a shorter way (see :mod:`captum_lrpx.fast`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree
from typing_extensions import Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["Answering", "has_ruled"]


class Answering(torch.Tensor):
    """A gradient that answers some functions when it is their first argument.

    Attributes:
        whole: The gradient itself.
        answers: What is called in place of each function.
        ruled: Whether the answer is what the rule of the node wants, which is then done.
    """

    whole: Tensor
    answers: Mapping[Any, Callable[..., Any]]
    ruled: bool

    @staticmethod
    def __new__(
        cls: type[Self],
        whole: Tensor,
        _answers: Mapping[Any, Callable[..., Any]],
        *,
        ruled: bool = False,
    ) -> Self:
        """PyTorch's way to make a tensor that only looks like one."""
        return torch.Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, whole.shape, strides=whole.stride(), dtype=whole.dtype, device=whole.device
        )

    def __init__(
        self, whole: Tensor, answers: Mapping[Any, Callable[..., Any]], *, ruled: bool = False
    ) -> None:
        self.whole, self.answers, self.ruled = whole, answers, ruled

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        first = args[0]
        called = first.answers.get(func, func) if type(first) is cls else func
        args, kwargs = pytree.tree_map_only(cls, lambda each: each.whole, (args, kwargs or {}))
        return called(*args, **kwargs)


def has_ruled(gradient: Tensor) -> bool:
    """Whether the node that was handed a gradient has computed what its rule wants."""
    return isinstance(gradient, Answering) and gradient.ruled
