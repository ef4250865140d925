"""Token ids as a text, with the place of each token in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Decoded:
    """The text of token ids.

    Attributes:
        text: The text, special tokens included. Bytes that are no UTF-8 character are written
            as ``<0xE6>``.
        tokens: The tokens as the tokenizer writes them ``[T]``.
        offsets: ``(start, end)`` characters of each token ``[T]``, without a leading blank.
            Tokens that form one character share its place.
        special: Whether each token is a special one ``[T]``.
    """

    text: str
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]


def decoded(tokenizer: Any, ids: Sequence[int], cut: int | None = None) -> Decoded:
    """Decode token ids, keeping track of the place of each token.

    A token is decoded together with the one before it, since its text may depend on that (the
    blank between two words); a token that ends inside a character, together with the next ones.

    Args:
        tokenizer: The tokenizer, slow or fast.
        ids: Token ids ``[T]``.
        cut: Index of a token that starts a new character, such as the first generated one.

    Returns:
        The text and its tokens.
    """
    ids = list(ids)
    tokens: list[str] = tokenizer.convert_ids_to_tokens(ids)
    parts: list[str] = []
    offsets: list[tuple[int, int]] = []
    length = 0

    def add(text: str, count: int) -> None:
        nonlocal length
        blank = len(text) - len(text.lstrip(" "))
        start = length + blank if blank < len(text) else length
        parts.append(text)
        length += len(text)
        offsets.extend([(start, length)] * count)

    context, read = 0, 0  # first token of the decoding context, first token without a place
    for stop in range(1, len(ids) + 1):
        before = _decode(tokenizer, ids[context:read])
        text = _decode(tokenizer, ids[context:stop])
        text = (
            text[len(before) :] if text.startswith(before) else _decode(tokenizer, ids[read:stop])
        )
        if (not text or text.endswith(_BROKEN)) and stop not in (cut, len(ids)):
            continue  # the next token may complete the character
        whole = read
        if _BROKEN in text:
            whole = _first_whole(tokenizer, ids, read, stop)
            for index in range(read, whole):
                add(_bytes_of(tokens[index]), 1)
            text = text[text.rfind(_BROKEN) + 1 :] or _decode(tokenizer, ids[whole:stop])
        if whole < stop:
            add(text, stop - whole)
        context, read = whole, stop
    special = _special_ids(tokenizer)
    return Decoded(
        "".join(parts), tuple(tokens), tuple(offsets), tuple(number in special for number in ids)
    )


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text


def _first_whole(tokenizer: Any, ids: list[int], first: int, stop: int) -> int:
    """First of some tokens from which on they are whole characters; ``stop`` if there is none."""
    for start in range(first, stop):
        if _BROKEN not in _decode(tokenizer, ids[start:stop]):
            return start
    return stop


def _bytes_of(token: str) -> str:
    """The bytes of a token that is no text, as numbers; the token itself if it shows them."""
    if not _BYTE_TOKEN.fullmatch(token) and all(char in _BYTES for char in token):
        return "".join(f"<0x{_BYTES[char]:02X}>" for char in token)
    return token


def _byte_alphabet() -> dict[str, int]:
    """Maps the characters that byte-level tokenizers (as GPT-2's) use for bytes.

    A printable byte of Latin-1 is its own character; the others, in order, start at U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


_BYTES = _byte_alphabet()


def _special_ids(tokenizer: Any) -> set[int]:
    """Ids of the special tokens, without a token for unknown words alone."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {number for number, token in added.items() if token.special}
    found.update(tokenizer.all_special_ids)
    roles = {getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}
    if tokenizer.unk_token_id not in roles:
        found.discard(tokenizer.unk_token_id)
    return found


_ROLES = ("bos", "eos", "pad", "cls", "sep")


def check_characters(text: str) -> None:
    """Check that a text can be encoded: half of a surrogate pair is no character.

    Bytes of a command line or a file that are no UTF-8 become such halves.

    Raises:
        ValueError: If there is one.
    """
    found = _SURROGATE.search(text)
    if found is not None:
        raise ValueError(
            f"Character {found.start()} of the text, {found[0]!r}, is half of a surrogate pair, "
            "and no tokenizer reads it: the text was not UTF-8, or cut within a character. "
            "`text.encode('utf-8', 'replace').decode()` writes a question mark there."
        )
