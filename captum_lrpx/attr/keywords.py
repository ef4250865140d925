"""Explains keywords of other methods that ``attribute`` does not take, in the error message."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from captum_lrpx import _captum
from captum_lrpx.names import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


P = ParamSpec("P")
R = TypeVar("R")

_NO_BASELINE = "has no baseline: it compares with no other input"
_ONE_RUN = "has no steps or samples: the model runs once"
_NOTHING_LEFT_OUT = "leaves no features out, so there is nothing to group or to slide"
_OF_OTHERS = {
    **dict.fromkeys(("baselines", "baseline"), _NO_BASELINE),
    **dict.fromkeys(
        (
            "n_steps",
            "method",
            "internal_batch_size",
            "n_samples",
            "n_samples_batch_size",
            "nt_type",
            "nt_samples",
            "nt_samples_batch_size",
            "stdevs",
            "draw_baseline_from_distrib",
        ),
        _ONE_RUN,
    ),
    **dict.fromkeys(
        ("feature_mask", "perturbations_per_eval", "sliding_window_shapes", "strides"),
        _NOTHING_LEFT_OUT,
    ),
    **dict.fromkeys(
        ("verbose", "show_progress"),
        "prints nothing: captum_lrpx.ledger shows where relevance went",
    ),
    "abs": "keeps the sign: call `.abs()` on the result for the size alone",
}
"""Arguments of Captum's other attributions, and the reason why they do not exist here."""


def entry_point(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate an ``attribute`` method: log its use as Captum does, and refuse unknown keywords.

    Args:
        method: The method.

    Returns:
        The method; its TypeError says why a keyword does not exist, or which one is similar.
    """
    known = inspect.signature(method).parameters
    logged = cast(
        "Callable[P, R]",
        _captum.log_usage(part_of_slo=True)(method),
    )

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(_sentence(type(args[0]).__name__, method.__name__, name, known))
        return logged(*args, **kwargs)

    return checked


def _sentence(kind: str, method: str, name: str, known: Iterable[str]) -> str:
    names = [each for each in known if each != "self"]
    if name in _OF_OTHERS:
        return f"{kind} {_OF_OTHERS[name]}. Leave `{name}` out."
    return (
        f"{kind}.{method} has no argument {name!r}{suggestion(name, names)}: "
        f"it takes {', '.join(names)}."
    )
