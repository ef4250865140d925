"""Grouping the entries of an explanation: words, and special tokens as one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from captum_lrpx import words
from captum_lrpx.explanation.arithmetic import total
from captum_lrpx.explanation.pictures import regions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captum_lrpx.explanation.record import Explanation
    from captum_lrpx.targets.scene import Part
    from captum_lrpx.words import Span


FOLDED = "(special tokens)"
"""Name of the entry for all special tokens."""


def grouped(explanation: Explanation, groups: Sequence[Sequence[int]]) -> Explanation:
    """An explanation with one entry per group of entries.

    Args:
        explanation: The explanation.
        groups: Indices, each in exactly one group.
    """
    offsets = tuple(extent(explanation, group) for group in groups)
    tokens, special, template = explanation.tokens, explanation.special, explanation.template
    return replace(
        explanation,
        tokens=tuple(
            explanation.text[start:end] if end > start else "".join(tokens[i] for i in group)
            for group, (start, end) in zip(groups, offsets, strict=True)
        ),
        ids=(),
        offsets=offsets,
        special=tuple(special[group[0]] for group in groups),
        template=template and tuple(template[group[0]] for group in groups),
        relevances=tuple(
            total([explanation.relevances[index] for index in group]) for group in groups
        ),
        position=next(
            (place for place, group in enumerate(groups) if explanation.position in group), None
        ),
        certificate=None,
        parts=explanation.parts and tuple(_part(part, groups) for part in explanation.parts),
    )


def _part(part: Part, groups: Sequence[Sequence[int]]) -> Part:
    """The groups within a part; groups across several parts belong to none."""
    inside = [
        place
        for place, group in enumerate(groups)
        if all(part.first <= index < part.stop for index in group)
    ]
    first = inside[0] if inside else 0
    return replace(part, first=first, stop=first + len(inside))


def patches(explanation: Explanation) -> tuple[bool, ...]:
    """Whether each entry is a patch of an image."""
    found = [False] * len(explanation.relevances)
    for part in regions(explanation):
        found[part.first : part.stop] = [True] * (part.stop - part.first)
    return tuple(found)


def folded(explanation: Explanation) -> Explanation:
    """Fold all special tokens and the chat template into one entry, the last."""
    apart = words.added(explanation.special, explanation.template)
    if not any(apart):
        return explanation
    groups = [[index] for index, each in enumerate(apart) if not each]
    last = [index for index, each in enumerate(apart) if each]
    result = grouped(explanation, [*groups, last])
    return replace(
        result,
        tokens=(*result.tokens[:-1], FOLDED),
        offsets=(*result.offsets[:-1], (0, 0)),
        special=(*result.special[:-1], True),
    )


def extent(explanation: Explanation, group: Sequence[int]) -> Span:
    """Characters from the first to the last token of a group, without a leading blank."""
    start, end = words.extent([explanation.offsets[index] for index in group])
    if len(group) > 1:
        covered = explanation.text[start:end]
        start += len(covered) - len(covered.lstrip(" "))
    return min(start, end), end
