"""Gradients that replace functions called by the backward node that receives them.

A node of the graph calls one or two functions with its incoming gradient. A tensor subclass
intercepts such a call and answers in its place: with the gradient that a rule prescribes, or with
the same result computed in a shorter way (see :mod:`captum_lrpx.fast`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree
from typing_extensions import Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


class Answering(torch.Tensor):
    """A gradient that replaces some functions when it is their first argument.

    Attributes:
        whole: The gradient itself.
        answers: The replacement of each function.
        ruled: Whether the answer already applies the rule of the node.
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
        """Make a wrapper without storage, as PyTorch's tensor subclasses do."""
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
    """Whether the node that received a gradient has already applied its rule."""
    return isinstance(gradient, Answering) and gradient.ruled
