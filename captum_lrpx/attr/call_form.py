"""Keys of calls: equal for calls that run the same operations."""

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


def form_of(
    model: nn.Module,
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    arguments: object | None,
    layers: Iterable[nn.Module],
    targets: Iterable[object] = (),
) -> Hashable | None:
    """Key of a call, equal for calls that run the same operations.

    Args:
        model: The model that the forward function runs.
        forward_func: The forward function.
        inputs: Its inputs.
        arguments: Its further arguments.
        layers: Layers whose tensors are captured.
        targets: Targets within the output.

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
    """Key of a value in a call, for a dictionary that must not keep the value alive.

    Forward modules of this package are identified by their class and their arguments; anything
    else by itself.

    Returns:
        The key; None for a value that cannot be recognized again.
    """
    if value is model:
        return "model"
    if value is None or isinstance(value, (str, bool, int, float)):
        return (type(value), value)
    if isinstance(value, nn.Module) and type(value).__module__.startswith("captum_lrpx."):
        # Their arguments besides modules decide what they compute: a quantity, a function.
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
        hash(found)  # the value's own hash: arrays and outputs of a processor have none
    except TypeError:
        return None
    return found


_DEEPEST = 3
"""Depth of nested functions up to which closures are searched."""
