"""Caches of keys and values among the arguments of a forward function."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrpx.notices import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def warn_of_cache(forward_func: Callable[..., Any], args: tuple[Any, ...] | None) -> None:
    """Warn that cached tokens take part in the prediction but get no relevance.

    Args:
        forward_func: The forward function; values that it closes over are searched too.
        args: Its arguments after the inputs.
    """
    held = [*(args or ()), *_held_by(forward_func)]
    if any(_is_filled_cache(each) for each in _flat(held)):
        warn(
            "A cache of keys and values takes part in the forward pass: the contribution of the "
            "cached tokens is in no relevance, only in the convergence delta. Give the whole text "
            "without a cache to explain it."
        )


def _held_by(function: object) -> Iterator[Any]:
    if isinstance(function, partial):
        yield from (*function.args, *function.keywords.values())
    elif isinstance(function, FunctionType):
        yield from function.__defaults__ or ()
        with suppress(ValueError):  # a cell that is not bound yet
            yield from (cell.cell_contents for cell in function.__closure__ or ())


def _flat(values: Any) -> Iterator[Any]:
    """All values in nested tuples, lists and mappings, the containers themselves included."""
    for value in values.values() if isinstance(values, Mapping) else values:
        yield value
        if isinstance(value, (tuple, list, Mapping)):
            yield from _flat(value)


def _is_filled_cache(value: Any) -> bool:
    if hasattr(value, "get_seq_length"):
        return bool(value.get_seq_length() > 0)
    if isinstance(value, (tuple, list)) and len(value) in (2, 4):  # keys and values of a layer
        return all(isinstance(each, Tensor) and each.ndim == 4 for each in value)
    return hasattr(value, "conv_states")  # cache of a state space model
