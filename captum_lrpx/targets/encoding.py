"""A text as the token ids that a model sees, and words as the ids that it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captum_lrpx.binding import architecture_of
from captum_lrpx.propagation import is_declared
from captum_lrpx.targets.task import task_of

if TYPE_CHECKING:
    from torch import nn

    from captum_lrpx.targets.task import Task

__all__ = [
    "Encoding",
    "check_length",
    "context_length",
    "encode",
    "encode_for",
    "span_of",
    "vocabulary_size",
    "word_id",
    "word_ids",
]


@dataclass(frozen=True)
class Encoding:
    """A text as a model sees it.

    Attributes:
        text: The text that was encoded; with the mask token appended if a masked model needed one.
        ids: Token ids.
        tokens: The tokens as text, as the tokenizer shows them.
        offsets: Where each token stands in the text, ``(start, end)`` characters; special tokens
            that the tokenizer added are empty there.
        special: Whether each token is a special token that is not part of the text.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]


def encode(model: nn.Module, tokenizer: Any, text: str, first_token: str | None = None) -> Encoding:
    """Encode a text for a model.

    Special tokens are those that the tokenizer adds. For a causal language model they are dropped
    at the end, where the next token is predicted; for a masked language model without a mask token
    in the text, one is appended to it.

    Args:
        model: A Hugging Face model with a head.
        tokenizer: Its tokenizer, a fast one (with offsets).
        text: The text.
        first_token: A special token to put in front (``"<|endoftext|>"``), for models that were
            trained with one that their tokenizer does not add.

    Returns:
        The encoding.

    Raises:
        ValueError: If the text is empty or longer than the model's context, if the tokenizer has no
            offsets or no mask token where one is needed, or if ``first_token`` is unknown.
    """
    encoding = encode_for(task_of(model), tokenizer, text, first_token)
    check_length(model, len(encoding.ids))
    return encoding


def encode_for(task: Task, tokenizer: Any, text: str, first_token: str | None = None) -> Encoding:
    """Encode a text for any model of a task, of whatever context length.

    Args:
        task: What the model predicts.
        tokenizer: Its tokenizer, a fast one (with offsets).
        text: The text.
        first_token: As in :func:`encode`.

    Returns:
        The encoding.

    Raises:
        ValueError: As in :func:`encode`, but for the length.
    """
    if not isinstance(text, str):
        raise TypeError(f"The text must be a string, not {type(text).__name__}.")
    if not text.strip():
        raise ValueError("The text is empty: there is nothing to explain.")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no offsets: load the fast version of the tokenizer."
        )
    causal = task == "causal-lm"
    if task == "masked-lm":
        text = _with_mask(tokenizer, text)
    encoded = tokenizer(
        text,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,  # no warning for what is too long: that is refused, or counted
    )
    ids = list(encoded["input_ids"])
    offsets = [_trimmed(text, int(start), int(end)) for start, end in encoded["offset_mapping"]]
    # A mask token in the text is in the special tokens mask too, but it has a place in the text.
    special = [
        bool(flag) and start == end
        for flag, (start, end) in zip(encoded["special_tokens_mask"], offsets, strict=True)
    ]
    while causal and special and special[-1]:
        ids.pop(), offsets.pop(), special.pop()
    if first_token is not None:
        ids.insert(0, _special_id(tokenizer, first_token))
        offsets.insert(0, (0, 0))
        special.insert(0, True)
    if all(special):
        raise ValueError("The text has no token of its own: there is nothing to explain.")
    tokens = tuple(tokenizer.convert_ids_to_tokens(ids))
    return Encoding(text, tuple(ids), tokens, tuple(offsets), tuple(special))


def word_id(model: nn.Module, tokenizer: Any, encoding: Encoding, word: str) -> int:
    """The token id of a word at the place where the model predicts.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        encoding: The text; the word stands behind it, or in the place of its mask token.
        word: The word.

    Returns:
        The id.

    Raises:
        ValueError: If the word is unknown to the tokenizer, or is several tokens there.
    """
    if not word.strip():
        raise ValueError("The target word is empty.")
    word = word.strip()
    ids = word_ids(task_of(model), tokenizer, encoding, word)
    if len(ids) != 1:
        pieces = " + ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(ids))
        raise ValueError(
            f"The target {word!r} is {len(ids)} tokens ({pieces}), and a model predicts one at a "
            "time: give a word of one token, or a token id."
        )
    if ids[0] == tokenizer.unk_token_id and word != tokenizer.unk_token:
        raise ValueError(f"The tokenizer does not know the target word {word!r}.")
    return ids[0]


def word_ids(task: Task, tokenizer: Any, encoding: Encoding, word: str) -> list[int]:
    """The token ids of a word at the place where a language model predicts.

    Args:
        task: "causal-lm" or "masked-lm".
        tokenizer: The tokenizer of the model.
        encoding: The text; the word stands behind it, or in the place of its mask token.
        word: The word, without blanks around it.

    Returns:
        The ids, one or more.
    """
    if task == "masked-lm":
        filled = encoding.text.replace(tokenizer.mask_token, word, 1)
    else:
        filled = f"{encoding.text.rstrip()} {word}"
    return _difference(tokenizer, encoding.text, filled)


def span_of(encoding: Encoding, span: str | tuple[int, int]) -> tuple[int, int]:
    """The tokens of a part of a text.

    Args:
        encoding: The text.
        span: The part, where it last occurs, or the indices ``(first, behind the last)``.

    Returns:
        The indices, counted from the front.

    Raises:
        ValueError: If there is no such part, if it cuts through a token, or if it starts with the
            first token, which nothing comes before.
        IndexError: If an index is out of range.
    """
    if isinstance(span, str):
        first, stop = _tokens_of(encoding, span)
    else:
        length = len(encoding.ids)
        first, stop = (index + length if index < 0 else index for index in span)
        if not 0 <= first < length or not first < stop <= length:
            raise IndexError(f"The span {span} is empty or out of range for {length} tokens.")
    if first == 0:
        raise ValueError(
            "The span starts with the first token, which no token comes before: start it later, or "
            "put a special token in front (`first_token`)."
        )
    return first, stop


def vocabulary_size(model: nn.Module) -> int:
    """Number of tokens that a language model predicts."""
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    return int(output.weight.shape[0])


def check_length(model: nn.Module, length: int) -> None:
    """Refuse more tokens than a model has positions for.

    Raises:
        ValueError: If there are more.
    """
    limit = context_length(model)
    if limit is not None and length > limit:
        raise ValueError(
            f"The text has {length} tokens, but {type(model).__name__} takes at most {limit}: "
            "shorten it."
        )


def context_length(model: nn.Module) -> int | None:
    """The most tokens that a model takes, if it has a limit."""
    config: Any = model.config
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is not None and _positions_after_padding(model):
        limit -= config.pad_token_id + 1
    return limit


def _positions_after_padding(model: nn.Module) -> bool:
    """Whether positions are counted from the padding token's number on, as in RoBERTa."""
    if is_declared(model):
        return architecture_of(model).embeddings.positions_after_padding
    return any(
        path.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        for path, module in model.named_modules()
    )


def _with_mask(tokenizer: Any, text: str) -> str:
    mask = tokenizer.mask_token
    if mask is None:
        raise ValueError("The tokenizer of this masked language model has no mask token.")
    count = text.count(mask)
    if count > 1:
        raise ValueError(
            f"The text has {count} mask tokens {mask!r}: fill in all but the one to explain."
        )
    return text if count else f"{text.rstrip()} {mask}"


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A token's place without the blank in front, which some tokenizers count to the token."""
    blank = len(text[start:end]) - len(text[start:end].lstrip())
    return (start + blank, end) if start + blank < end else (start, end)


def _special_id(tokenizer: Any, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or (found == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ValueError(f"The tokenizer has no token {token!r} to put in front.")
    return int(found)


def _tokens_of(encoding: Encoding, part: str) -> tuple[int, int]:
    """The tokens of a part of the text, where it last occurs."""
    words = part.strip()
    start = encoding.text.rfind(words)
    if start < 0 or not words:
        raise ValueError(f"The span {part!r} does not occur in the text {encoding.text!r}.")
    stop = start + len(words)
    inside = [
        index for index, (a, b) in enumerate(encoding.offsets) if a < b and a < stop and b > start
    ]
    first, last = inside[0], inside[-1]
    if encoding.offsets[first][0] < start or encoding.offsets[last][1] > stop:
        covered = encoding.text[encoding.offsets[first][0] : encoding.offsets[last][1]]
        raise ValueError(
            f"The span {part!r} cuts through a token: its tokens are those of {covered!r}."
        )
    return first, last + 1


def _difference(tokenizer: Any, text: str, filled: str) -> list[int]:
    """The ids that stand in ``filled`` where ``text`` ends or has its mask."""
    before = tokenizer(text, verbose=False)["input_ids"]
    after = tokenizer(filled, verbose=False)["input_ids"]
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    stop = 0
    while stop < min(len(before), len(after)) - start and before[-1 - stop] == after[-1 - stop]:
        stop += 1
    return list(after[start : len(after) - stop])
