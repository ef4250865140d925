"""Sums and multiples of explanations, which are linear in the explained value."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from captum_lrpx.explanation.record import Explanation


def total(values: Iterable[float]) -> float:
    """Sum, rounded once; infinite or NaN where the values or their sum are."""
    values = list(values)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # too large, or infinities of both signs
        return sum(values)


def require_same_tokens(explanations: Sequence[Explanation]) -> None:
    """Check that explanations have the same tokens of the same text.

    Raises:
        ValueError: If they are not of the same tokens of the same text.
    """
    first = explanations[0]
    for other in explanations[1:]:
        if first.text != other.text:
            raise ValueError(
                f"The explanations are of different texts, {first.text!r} and {other.text!r}: "
                "explain one text by both."
            )
        if first.parts != other.parts:
            raise ValueError(
                "The explanations are of different images, or of other parts: explain the same "
                "inputs by both."
            )
        if (first.tokens, first.offsets) != (other.tokens, other.offsets):
            raise ValueError(
                f"The explanations are of different tokens, {' '.join(first.tokens)!r} and "
                f"{' '.join(other.tokens)!r}: two tokenizers, or words and tokens? Where both have "
                "offsets, .words() of each may agree."
            )


def combined(left: Explanation, right: Explanation, sign: float, word: str) -> Explanation:
    """``left + sign * right``.

    Args:
        left: An explanation.
        right: Another one, of the same tokens.
        sign: Factor of the second.
        word: Word between two names that differ.

    Raises:
        ValueError: If they are not of the same tokens.
    """
    require_same_tokens([left, right])

    def name(ours: str | None, theirs: str | None) -> str | None:
        return ours if ours == theirs else f"{ours} {word} {theirs}"

    deltas = left.convergence_delta, right.convergence_delta
    return replace(
        left,
        relevances=tuple(
            ours + sign * theirs
            for ours, theirs in zip(left.relevances, right.relevances, strict=True)
        ),
        value=left.value + sign * right.value,
        convergence_delta=(
            None if deltas[0] is None or deltas[1] is None else deltas[0] + sign * deltas[1]
        ),
        target=f"{left.target} {word} {_bracketed(right.target)}",
        position=left.position if left.position == right.position else None,
        versions=_merged(left.versions, right.versions),
        options=_merged(left.options, right.options),
        certificate=None,
        standings=None,
        **{
            key: name(getattr(left, key), getattr(right, key))
            for key in ("method", "recipe", "model", "revision", "dtype")
        },  # type: ignore[arg-type]
    )


def scaled(explanation: Explanation, factor: float, divisor: float = 1.0) -> Explanation:
    """``factor * explanation / divisor``.

    Raises:
        ZeroDivisionError: If the divisor is zero.
    """
    words = "" if factor == 1 else f"{factor:g} times "
    over = "" if divisor == 1 else f" over {divisor:g}"
    delta = explanation.convergence_delta
    return replace(
        explanation,
        relevances=tuple(factor * relevance / divisor for relevance in explanation.relevances),
        value=factor * explanation.value / divisor,
        convergence_delta=None if delta is None else factor * delta / divisor,
        target=f"{words}{_bracketed(explanation.target)}{over}",
        certificate=None,
    )


def _bracketed(target: str) -> str:
    words = target.split()
    return f"({target})" if {"minus", "plus", "times", "over"} & set(words) else target


def _merged(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Merge two dictionaries; where they differ, both values in a list."""
    return {
        key: left[key] if left.get(key) == right.get(key) else [left.get(key), right.get(key)]
        for key in {**left, **right}
    }
