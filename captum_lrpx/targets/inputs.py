"""Forms of input, as a text and its tokens: texts, pairs, chat messages, ids, encodings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from captum_lrpx.segments import Region

if TYPE_CHECKING:
    from captum_lrpx.words import Span


TokenIds: TypeAlias = Sequence[int] | Tensor
"""Token ids ``[T]`` or ``[1, T]``."""

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""Chat messages, ``{"role": ..., "content": ...}`` each."""

Given: TypeAlias = "str | tuple[str, str] | Messages | TokenIds | Mapping[str, Any]"
"""An input to explain: a text, a pair of texts, chat messages, token ids, or the tokenizer's output
for one text."""

_NOT_READ = {"offset_mapping", "special_tokens_mask", "length", "overflow_to_sample_mapping"}
"""Entries of a tokenizer's output that no model takes."""


class Rendered(NamedTuple):
    """Chat messages as one text.

    Attributes:
        text: The text.
        contents: Places of the messages' contents in it.
        turns: The same by message, with the role of each; empty where the template changes the
            messages so that their places are uncertain.
    """

    text: str
    contents: tuple[Span, ...]
    turns: tuple[Region, ...]


# Chat messages ------------------------------------------------------------------------------------


def render(tokenizer: Any, messages: Messages, *, predict: bool) -> Rendered:
    """Write chat messages as one text, with the template of the tokenizer.

    Args:
        tokenizer: The tokenizer.
        messages: The messages.
        predict: Whether a model continues the text: the prompt for an answer is added, or the
            last message is left open if it is the assistant's.

    Returns:
        The text, and the places of the contents.

    Raises:
        ValueError: If there is no template, or it refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template and cannot write messages as text: "
            "give a text, or set `tokenizer.chat_template`."
        )
    text = _written(tokenizer, messages, predict=predict)
    contents = _contents(messages)
    marks = [f"content{index:04d}mark" for index in range(len(contents))]
    try:
        pattern = _written(tokenizer, _replaced(messages, iter(marks)), predict=predict)
    except ValueError:  # a template that checks the contents
        pattern = ""
    places = _between(text, contents, pattern, marks)
    if places is None:
        return Rendered(text, _searched(text, contents), ())
    found = tuple(sorted(place for place in places if place is not None))
    return Rendered(text, found, tuple(_turns(messages, iter(places))))


def _turns(messages: Messages, places: Iterator[Span | None]) -> Iterator[Region]:
    """The span of each message, from its first to its last text, unless the template drops it."""
    for message in messages:
        written = [next(places) for _ in _contents([message])]
        spans = [span for span in written if span is not None and span[0] < span[1]]
        if spans:
            yield Region("turn", str(message["role"]), spans[0][0], spans[-1][1])


def _written(tokenizer: Any, messages: Messages, *, predict: bool) -> str:
    goes_on = predict and messages[-1]["role"] == "assistant"
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=predict and not goes_on,
            continue_final_message=goes_on,
        )
    except Exception as error:  # whatever the template raises
        raise ValueError(f"The chat template cannot write these messages: {error}") from error
    return text


def _contents(messages: Messages) -> list[str]:
    """Texts of the messages, in order."""
    found = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            found.append(content)
        elif isinstance(content, Sequence):
            found += [part["text"] for part in content if "text" in part]
    return found


def _replaced(messages: Messages, marks: Any) -> list[dict[str, Any]]:
    """The messages with each text replaced by a mark."""
    replaced = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            content = next(marks)
        elif isinstance(content, Sequence):
            content = [
                {**part, "text": next(marks)} if "text" in part else part for part in content
            ]
        replaced.append({**message, "content": content})
    return replaced


def _between(
    text: str, contents: Sequence[str], pattern: str, marks: Sequence[str]
) -> list[Span | None] | None:
    """Places of the contents between the template's own text; None for a dropped one.

    A template may reorder contents, and shorten one (the reasoning of an earlier
    answer), which then ends where the template's text continues.

    Returns:
        A place for each content; None if the template does not fit the text.
    """
    if not pattern or any(pattern.count(mark) > 1 for mark in marks):
        return None
    order = sorted(
        (pattern.index(mark), index) for index, mark in enumerate(marks) if mark in pattern
    )
    places: list[Span | None] = [None] * len(marks)
    at = 0
    for _, index in order:
        before, _, pattern = pattern.partition(marks[index])
        if not text.startswith(before, at):
            return None
        at += len(before)
        after = pattern
        for mark in marks:
            after = after.partition(mark)[0]
        end = _end_of(text, contents[index], at, after)
        if end is None:
            return None
        places[index] = (at, end)
        at = end
    return places if text[at:] == pattern else None


def _end_of(text: str, content: str, start: int, after: str) -> int | None:
    """End of a content with a given start, before the template's text after it."""
    for written in (content, content.strip()):
        end = start + len(written)
        if text.startswith(written, start) and text.startswith(after, end):
            return end
    end = text.find(after, start) if after else -1
    # The rest must be a part of the content.
    return end if end >= 0 and text[start:end].strip() in content else None


def _searched(text: str, contents: Sequence[str]) -> tuple[Span, ...]:
    """Places of the contents in a text, found one after the other; missing ones are skipped."""
    spans, at = [], 0
    for content in contents:
        start = text.find(content.strip(), at)
        if start >= 0:
            at = start + len(content.strip())
            spans.append((start, at))
    return tuple(spans)


# Token ids ----------------------------------------------------------------------------------------


def of_row(
    given: TokenIds | Mapping[str, Any], name: str = "text"
) -> tuple[list[int], tuple[int, ...] | None]:
    """Read token ids and token types of one text, without padding.

    Args:
        given: Ids ``[T]`` or ``[1, T]``, or the tokenizer's output for one text.
        name: Name of the text, for messages.

    Returns:
        Ids, and token types if there are any.

    Raises:
        TypeError: If it is neither.
        ValueError: If there are several rows, no integers, or entries that cannot be used.
    """
    if not isinstance(given, Mapping):
        return _integers(f"token ids of the {name}", given).tolist(), None
    if "input_ids" not in given:
        raise TypeError(
            f"A mapping must have `input_ids`, as a tokenizer returns it, not {', '.join(given)}. "
            "A chat message must be in a list."
        )
    left = given.keys() - {"input_ids", "attention_mask", "token_type_ids"} - _NOT_READ
    if left:
        raise ValueError(
            f"{', '.join(sorted(left))} cannot be explained along with `input_ids`: leave it out, "
            "or give an attribution class a forward function with these arguments."
        )
    ids = _integers("`input_ids`", given["input_ids"])
    mask, types = (
        _integers(f"`{key}`", given[key]) if given.get(key) is not None else None
        for key in ("attention_mask", "token_type_ids")
    )
    for row in (mask, types):
        if row is not None and row.shape != ids.shape:
            raise ValueError(f"There are {len(ids)} token ids, but {len(row)} entries beside them.")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    return ids[real].tolist(), None if types is None else tuple(types[real].tolist())


def _integers(name: str, given: Any) -> Tensor:
    """One row of integers ``[T]``."""
    if any(isinstance(item, str) for item in _items(given)):
        raise TypeError(
            "A list of texts is not one text: give a pair as a tuple of two, or several texts, a "
            "target for each, to ask_batch()."
        )
    try:
        if isinstance(given, bytes) or not hasattr(given, "__len__"):
            raise TypeError("no row of numbers")  # noqa: TRY301 - the same mistake
        row = torch.as_tensor(given, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{type(given).__name__} cannot be explained: give a text, a pair of texts as a "
            "tuple, chat messages, token ids [T], or the tokenizer's output for one text."
        ) from error
    if row.ndim == 2 and row.shape[0] == 1:
        row = row[0]
    if row.ndim != 1 or (len(row) and (row.is_floating_point() or row.dtype == torch.bool)):
        raise ValueError(
            f"The {name} must be integers [T], not {tuple(row.shape)} of {row.dtype}: one text is "
            "explained at a time."
        )
    return row.long()


def _items(given: Any) -> Sequence[Any]:
    return given if isinstance(given, Sequence) else ()


def check_known(
    model: Any, ids: Sequence[int], name: str = "text", *, size: int | None = None
) -> None:
    """Refuse ids without an embedding.

    Args:
        model: A Hugging Face model.
        ids: The ids.
        name: Name of the text, for the message.
        size: Number of embeddings. Default: of the model's input embeddings.

    Raises:
        ValueError: If there is one.
    """
    if size is None:
        size = int(model.get_input_embeddings().num_embeddings)
    wrong = [number for number in ids if not 0 <= number < size]
    if wrong:
        raise ValueError(
            f"The {name} has token ids that {type(model).__name__} with its vocabulary of {size} "
            f"does not know ({wrong[0]}): use the tokenizer that belongs to the model."
        )
