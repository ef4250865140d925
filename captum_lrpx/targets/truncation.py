"""Cutting texts that are too long for a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.task import Task


def truncated(task: Task, tokenizer: Any, encoding: Encoding, limit: int | None) -> Encoding:
    """Cut an encoding to a number of tokens.

    One run of tokens is removed, or two around a mask: at the beginning of the text for a causal
    language model, which predicts at its end; at the end for others, in a pair of the second text.
    Start tokens, special tokens at the end, and a mask stay.

    Args:
        task: The task of the model.
        tokenizer: Its tokenizer.
        encoding: The encoding.
        limit: The largest number of tokens; None for no limit.

    Returns:
        The encoding; its text is cut as well.

    Raises:
        ValueError: If not enough tokens may be cut.
    """
    length = len(encoding.ids)
    if limit is None or length <= limit:
        return encoding
    first = _start(tokenizer, encoding)
    last = length
    if task != "causal-lm":
        while last > first and encoding.special[last - 1]:
            last -= 1
    order = list(range(first, last)) if task == "causal-lm" else list(range(first, last))[::-1]
    if task == "masked-lm" and tokenizer.mask_token_id in encoding.ids:
        mask = encoding.ids.index(tokenizer.mask_token_id)
        order = [*range(last - 1, mask, -1), *range(first, mask)]
    if encoding.second:
        order = [index for index in order if encoding.offsets[index][0] >= encoding.second]
    excess = length - limit
    if excess >= len(order):
        raise ValueError(
            f"The text has {length} tokens and cannot be cut to {limit}: {length - len(order)} of "
            "them are special tokens, the mask or the first text of a pair."
        )
    gone = set(order[:excess])
    # Start and end stay although the text between is cut, so they lose their place in it.
    apart = (
        (0, 0) if not first <= index < last else place
        for index, place in enumerate(encoding.offsets)
    )
    encoding = replace(encoding, offsets=tuple(apart))
    return _without(encoding, [index for index in range(length) if index not in gone])


def _start(tokenizer: Any, encoding: Encoding) -> int:
    """Number of start tokens."""
    starts = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    count = 0
    while encoding.ids[count] in starts or (
        encoding.special[count] and encoding.offsets[count] == (0, 0)
    ):
        count += 1
    return count


def _without(encoding: Encoding, kept: list[int]) -> Encoding:
    """Some of the tokens, and the part of the text that they cover."""
    encoding = encoding.take(kept)
    standing = [place for place in encoding.offsets if place[0] < place[1]]
    start, stop = standing[0][0], max(end for _, end in standing)
    return replace(
        encoding,
        text=encoding.text[start:stop],
        offsets=tuple((a - start, b - start) if a < b else (0, 0) for a, b in encoding.offsets),
        second=max(encoding.second - start, 0),
        regions=tuple(
            region._replace(start=max(region.start - start, 0), end=min(region.end, stop) - start)
            for region in encoding.regions
            if region.start < stop and start < region.end
        ),
    )
