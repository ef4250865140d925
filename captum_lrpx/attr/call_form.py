"""Forms of calls: what calls of the same operations have in common."""

from __future__ import annotations

import weakref
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from torch import nn

from captum_lrpx import _captum
from captum_lrpx.forms import argument_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from torch import Tensor

__all__ = ["form_of", "key_of"]


def form_of(
    model: nn.Module,
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    arguments: object | None,
    layers: Iterable[nn.Module],
    targets: Iterable[object] = (),
) -> Hashable | None:
    """What a call has in common with others of the same operations.

    Args:
        model: The model that the forward function runs.
        forward_func: The forward function.
        inputs: Its inputs.
        arguments: What it takes after them.
        layers: Layers whose tensors are captured.
        targets: What of the output will be explained.

    Returns:
        A key; None for a forward function that cannot be recognized again.
    """
    forward = key_of(forward_func, model)
    if forward is None:
        return None
    args = _captum.format_additional_forward_args(arguments)
    kinds = tuple((tensor.dtype, tensor.ndim) for tensor in inputs)
    chosen = tuple((type(target), type(target) is tuple and len(target)) for target in targets)
    return forward, kinds, argument_kind(args), tuple(map(weakref.ref, layers)), chosen


def key_of(  # noqa: PLR0911 - one for each kind
    value: object, model: nn.Module, depth: int = 0
) -> Hashable:
    """What a forward function is, for a dictionary that must not keep it alive.

    Forward modules of this package are what their classes are, with what they were given; anything
    else is itself.

    Returns:
        The key; None for what cannot be recognized again.
    """
    if value is model:
        return "model"
    if value is None or isinstance(value, (str, bool, int, float)):
        return (type(value), value)
    if isinstance(value, nn.Module) and type(value).__module__.startswith("captum_lrpx."):
        # What they are given besides modules decides what they compute: a quantity, a function.
        own = (each for each in vars(value).values() if isinstance(each, str) or callable(each))
        inner = [key_of(each, model, depth + 1) for each in (*value.children(), *own)]
        return None if None in inner else (type(value), *inner)
    if isinstance(value, MethodType):
        owner = key_of(value.__self__, model, depth + 1)
        return None if owner is None else (owner, value.__func__)
    if isinstance(value, FunctionType) and depth < _DEEPEST:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inside = [key_of(each, model, depth + 1) for each in (*cells, *(value.__defaults__ or ()))]
        return None if None in inside else (value.__code__, *inside)
    try:
        found = weakref.ref(value)
        hash(found)  # that of the value: an array, or what a processor returns, has none
    except TypeError:
        return None
    return found


_DEEPEST = 3
"""So many functions inside each other are looked into."""
