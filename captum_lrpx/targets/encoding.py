"""Inputs of a model, encoded as the token ids that it sees."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from captum_lrpx.decoding import check_characters, decoded
from captum_lrpx.structure import positions_after_padding
from captum_lrpx.targets.inputs import check_known, of_row, render
from captum_lrpx.targets.place import Token, token_id, token_names
from captum_lrpx.targets.task import task_of
from captum_lrpx.targets.truncation import truncated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from captum_lrpx.segments import Region
    from captum_lrpx.targets.inputs import Given
    from captum_lrpx.targets.task import Task
    from captum_lrpx.words import Span


@dataclass(frozen=True)
class Encoding:
    """A text as a model sees it.

    Attributes:
        text: The text that was encoded: with the mask token appended if a masked model needed one,
            a pair on two lines, chat messages as the template writes them, token ids decoded.
        ids: Token ids.
        tokens: The tokens as text, as the tokenizer shows them.
        offsets: Place of each token in the text, ``(start, end)`` characters; empty for special
            tokens that the tokenizer added.
        special: Whether each token is a special one. The mask token is not: it has a place in the
            text, and something is predicted there.
        template: Whether each token was written by the chat template, around the contents of the
            messages; None without a template.
        token_types: The token types, if the model takes them and the tokenizer returns them.
        second: Start of the second text of a pair; 0 if there is no pair.
        regions: The turns of chat messages, where the template makes their places certain.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    offsets: tuple[Span, ...]
    special: tuple[bool, ...]
    template: tuple[bool, ...] | None = None
    token_types: tuple[int, ...] | None = None
    second: int = 0
    regions: tuple[Region, ...] = ()

    def take(self, kept: Sequence[int]) -> Encoding:
        """Some of the tokens, by their indices; places still refer to the whole text."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in _PER_TOKEN}
        for name, values in fields.items():
            fields[name] = values and tuple(values[index] for index in kept)
        return replace(self, **fields)


_PER_TOKEN = ("ids", "tokens", "offsets", "special", "template", "token_types")


def encode(
    model: nn.Module,
    tokenizer: Any,
    given: Given,
    first_token: str | None = None,
    *,
    truncate: bool | int = False,
) -> Encoding:
    """Encode an input for a model.

    Special tokens are those that the tokenizer adds, or the chat template writes; one that the text
    itself starts or ends with is not added again. For a causal language model they are dropped at
    the end, where the next token is predicted; for a masked language model without a mask token in
    the text, one is appended. Token ids are used as they are.

    Args:
        model: A Hugging Face model with a head.
        tokenizer: Its tokenizer, for texts a fast one (with offsets).
        given: A text; a pair of texts, as a tuple; chat messages, a list of ``{"role": ...,
            "content": ...}``; token ids ``[T]`` or ``[1, T]``; or the tokenizer's output for
            one text.
        first_token: A special token to prepend (``"<|endoftext|>"``), for models
            trained with one that their tokenizer does not add.
        truncate: Cut texts that are too long for the model, or to this number of tokens: a
            causal model loses the beginning, others the end, in a pair of the second text.
            Start tokens, special tokens at the end and a mask are kept.

    Returns:
        The encoding.

    Raises:
        ValueError: If the text is empty or longer than the model's context, if the tokenizer has no
            offsets, no chat template or no mask token where one is needed, if ``first_token`` is
            unknown, or if token ids are of another tokenizer or of several texts.
        TypeError: If the input is none of these.
    """
    encoding = encode_for(task_of(model), tokenizer, given, first_token, model)
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        encoding = replace(encoding, token_types=None)
    limit = context_length(model)
    if truncate:
        if truncate is not True:
            limit = truncate if limit is None else min(truncate, limit)
        encoding = truncated(task_of(model), tokenizer, encoding, limit)
    check_length(model, len(encoding.ids))
    return encoding


def encode_for(
    task: Task,
    tokenizer: Any,
    given: Given,
    first_token: str | None = None,
    model: nn.Module | None = None,
) -> Encoding:
    """Encode an input for any model of a task, whatever its context length.

    Args:
        task: The task of the model.
        tokenizer: Its tokenizer, for texts a fast one (with offsets).
        given: As in :func:`encode`.
        first_token: As in :func:`encode`.
        model: A model that must know all ids.

    Returns:
        The encoding.

    Raises:
        ValueError: As in :func:`encode`, except for the length and unknown ids.
        TypeError: As in :func:`encode`.
    """
    if isinstance(given, str):
        encoding = _of_texts(task, tokenizer, (given,))
    elif isinstance(given, tuple) and len(given) == 2 and all(isinstance(x, str) for x in given):
        encoding = _of_texts(task, tokenizer, given)  # type: ignore[arg-type]
    elif _are_messages(given):
        rendered = render(tokenizer, given, predict=task == "causal-lm")  # type: ignore[arg-type]
        encoding = _of_texts(task, tokenizer, (rendered.text,), rendered.contents)
        encoding = replace(encoding, regions=rendered.turns)
    else:
        ids, types = of_row(given)  # type: ignore[arg-type]
        if model is not None:  # before decoding
            check_known(model, ids)
        encoding = encoding_of_ids(tokenizer, ids, types)
    if first_token is not None:
        encoding = _with_first(tokenizer, encoding, first_token)
    if model is not None:
        check_known(model, encoding.ids)
    if all(encoding.special):
        raise ValueError("The text has no token of its own: there is nothing to explain.")
    return encoding


def _are_messages(given: Any) -> bool:
    return (
        isinstance(given, (list, tuple))
        and len(given) > 0
        and all(isinstance(item, Mapping) and "role" in item for item in given)
    )


def _of_texts(
    task: Task, tokenizer: Any, texts: tuple[str, ...], contents: Sequence[Span] | None = None
) -> Encoding:
    """Encode a text, a pair of texts, or the text of a chat template with its contents."""
    if not all(text.strip() for text in texts):
        raise ValueError("The text is empty: there is nothing to explain.")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no offsets: load the fast version of the tokenizer."
        )
    for each in texts:
        check_characters(each)
    if task == "masked-lm":
        texts = _with_mask(tokenizer, texts)
    encoded = tokenizer(
        *texts,
        add_special_tokens=contents is None,  # a chat template writes its own
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,  # no warning about length, which is checked elsewhere
    )
    second = len(texts[0]) + 1
    text = "\n".join(texts)
    shifts = [second if number == 1 else 0 for number in encoded.sequence_ids(0)]
    offsets = [
        _trimmed(text, start + shift, end + shift)
        for (start, end), shift in zip(encoded["offset_mapping"], shifts, strict=True)
    ]
    added = [
        bool(flag) and start == end
        for flag, (start, end) in zip(encoded["special_tokens_mask"], offsets, strict=True)
    ]
    kept = _kept(task, list(encoded["input_ids"]), added)
    types = encoded.get("token_type_ids")
    encoding = _encoding(
        tokenizer,
        text,
        [encoded["input_ids"][index] for index in kept],
        [(0, 0) if added[index] else offsets[index] for index in kept],
        None if types is None else tuple(types[index] for index in kept),
        second if len(texts) == 2 else 0,
    )
    return replace(
        encoding,
        special=tuple(
            added[index] or special for index, special in zip(kept, encoding.special, strict=True)
        ),
        template=None if contents is None else _template(encoding.offsets, contents),
    )


def _kept(task: Task, ids: list[int], added: list[bool]) -> range:
    """Tokens without the added special ones that the text itself has already."""
    start = stop = 0
    while start < len(ids) and added[start]:
        start += 1
    while stop < len(ids) - start and added[-1 - stop]:
        stop += 1
    first = start if start and ids[start : 2 * start] == ids[:start] else 0
    end = len(ids) - stop
    if task != "causal-lm" and not (stop and ids[end - stop : end] == ids[end:]):
        end = len(ids)
    return range(first, end)


def _template(offsets: Sequence[Span], contents: Sequence[Span]) -> tuple[bool, ...]:
    """Whether each token has no character of the contents."""
    return tuple(
        not any(start < last and first < end for first, last in contents) for start, end in offsets
    )


def encoding_of_ids(
    tokenizer: Any, ids: list[int], types: tuple[int, ...] | None = None
) -> Encoding:
    """Token ids as they are, with their decoded text.

    Raises:
        ValueError: If there are none.
    """
    if not ids:
        raise ValueError("The text is empty: there is nothing to explain.")
    found = decoded(tokenizer, ids)
    text, offsets = found.text, [_trimmed(found.text, *span) for span in found.offsets]
    second = 0
    if types is not None and 1 in types and 0 in types:
        second = offsets[types.index(1)][0]
    return _encoding(tokenizer, text, ids, offsets, types, second)


def _encoding(
    tokenizer: Any,
    text: str,
    ids: list[int],
    offsets: list[Span],
    types: tuple[int, ...] | None,
    second: int,
) -> Encoding:
    known = _special_ids(tokenizer)
    return Encoding(
        text=text,
        ids=tuple(ids),
        tokens=token_names(tokenizer, ids),
        offsets=tuple(offsets),
        special=tuple(number in known for number in ids),
        token_types=types if types is not None and any(types) else None,
        second=second,
    )


def _special_ids(tokenizer: Any) -> set[int]:
    """Ids of special tokens, except for the mask and the token for unknown words."""
    roles = tokenizer.special_tokens_map.items()
    unknown = [role for role, token in roles if token == tokenizer.unk_token] == ["unk_token"]
    ids = set(tokenizer.all_special_ids)
    ids |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids.discard(tokenizer.mask_token_id)
    return ids - {tokenizer.unk_token_id} if unknown else ids


def _with_first(tokenizer: Any, encoding: Encoding, token: str) -> Encoding:
    """Prepend a special token, unless the encoding starts with it."""
    try:
        number = token_id(tokenizer, Token(token))
    except ValueError:
        raise ValueError(f"The tokenizer has no token {token!r} to put in front.") from None
    if encoding.ids[0] == number:
        return encoding
    template, types = encoding.template, encoding.token_types
    return replace(
        encoding,
        ids=(number, *encoding.ids),
        tokens=(*token_names(tokenizer, [number]), *encoding.tokens),
        offsets=((0, 0), *encoding.offsets),
        special=(True, *encoding.special),
        template=None if template is None else (True, *template),
        token_types=None if types is None else (0, *types),
    )


def vocabulary_size(model: nn.Module) -> int:
    """Number of tokens that a language model predicts."""
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    return int(output.weight.shape[0])


def check_length(model: nn.Module, length: int) -> None:
    """Refuse more tokens than a model has positions.

    Raises:
        ValueError: If there are more.
    """
    limit = context_length(model)
    if limit is not None and length > limit:
        raise ValueError(
            f"The text has {length} tokens, but {type(model).__name__} takes at most {limit}: "
            "shorten it, or cut it with `truncate=True`."
        )


def context_length(model: nn.Module) -> int | None:
    """The largest number of tokens that a model takes, if there is a limit."""
    config: Any = model.config
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is not None and config.pad_token_id is not None and positions_after_padding(model):
        limit -= config.pad_token_id + 1
    return limit


def _with_mask(tokenizer: Any, texts: tuple[str, ...]) -> tuple[str, ...]:
    mask = tokenizer.mask_token
    if mask is None:
        raise ValueError("The tokenizer of this masked language model has no mask token.")
    count = sum(text.count(mask) for text in texts)
    if count > 1:
        raise ValueError(
            f"The text has {count} mask tokens {mask!r}: fill in all but the one to explain."
        )
    return texts if count else (*texts[:-1], f"{texts[-1].rstrip()} {mask}")


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Place of a token without its leading blank, which some tokenizers include."""
    blank = len(text[start:end]) - len(text[start:end].lstrip())
    return (start + blank, end) if start + blank < end else (start, end)
