"""A word as tokens at its place in a text, the convention of the whole package; parts of a text.

The tokens of a word depend on the text before it. A word that follows a text is encoded together
with it:

- after white space, as it stands, and so is a word that itself starts with white space;
- after a letter, a digit or a closing mark, with a blank in between, unless one of the two belongs
  to a script that is written without blanks. If the word is one token only without the blank (a
  digit), there is none;
- anywhere else (after a special token, an opening mark or a dash, or a word that starts with a
  mark) the place leaves it open, so both are tried: if each is one token, but not the same, the
  word is refused with both tokens named.

A special or added token is written by its name. A word in place of a mask is encoded there.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from captum_lrpx.decoding import check_characters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.task import Task


_CLOSING = frozenset(".,;:!?%>\N{HORIZONTAL ELLIPSIS}")
_WITHOUT_BLANKS = (
    "CJK",
    "IDEOGRAPHIC",
    "HIRAGANA",
    "KATAKANA",
    "FULLWIDTH",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)
"""Prefixes of Unicode names of characters that are written without blanks between words."""

_SEVERAL = (
    ", or explain all of its tokens, with LLMRelevance, or with Target(span=...) where the text "
    "has the word."
)


@dataclass(frozen=True)
class Token:
    """One token, by the exact string that the tokenizer has for it.

    Attributes:
        text: The token as ``tokenizer.convert_ids_to_tokens`` shows it: ``"Ġare"``, ``"▁are"``,
            ``"##s"``, ``"<0x0A>"``.

    Examples:
        >>> Target(Token("Ġare"), contrast=Token("are"))
    """

    text: str


def token_id(tokenizer: Any, token: Token) -> int:
    """Look up the id of a token.

    Raises:
        ValueError: If the tokenizer has no such token.
    """
    found = tokenizer.convert_tokens_to_ids(token.text)
    if found is None or (found == tokenizer.unk_token_id and token.text != tokenizer.unk_token):
        raise ValueError(
            f"The tokenizer has no token {token.text!r}: give it as "
            "`tokenizer.convert_ids_to_tokens` shows it, with its mark for a blank."
        )
    return int(found)


def token_names(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Tokens of ids as the tokenizer writes them; an id without a token by its number."""
    found = tokenizer.convert_ids_to_tokens(list(ids))
    return tuple(
        f"id {number}" if token is None else str(token)
        for number, token in zip(ids, found, strict=True)
    )


def word_id(
    task: Task, tokenizer: Any, encoding: Encoding, word: str, position: int | None = None
) -> int:
    """Find the token id of a word at the place where a language model predicts.

    Args:
        task: "causal-lm" or "masked-lm".
        tokenizer: The tokenizer of the model.
        encoding: The text.
        word: The word.
        position: Index of the token whose logits are read. Default: the end of the text, or its
            mask.

    Returns:
        The id.

    Raises:
        ValueError: If the word is empty or unknown to the tokenizer, is several tokens there, or
            may be either of two tokens.
    """
    if not word or (task == "masked-lm" and not word.strip()):
        raise ValueError("The target word is empty.")
    found = _candidates(task, tokenizer, encoding, word, position)
    single = [ids for ids in found if len(ids) == 1]
    if len(single) == 2:
        raise ValueError(_ambiguous(tokenizer, word, single))
    if not single:
        raise ValueError(
            f"The target {word!r} is {len(found[0])} tokens ({_joined(tokenizer, found[0])}), and "
            "a model predicts one at a time: give a word of one token, a token id or "
            f"Token('...'){'.' if task == 'masked-lm' else _SEVERAL}"
            f"{_trailing_blank(tokenizer, encoding)}"
        )
    number = single[0][0]
    if number == tokenizer.unk_token_id and word.strip() != tokenizer.unk_token:
        raise ValueError(f"The tokenizer does not know the target word {word!r}.")
    return number


def word_ids(task: Task, tokenizer: Any, encoding: Encoding, word: str) -> list[int]:
    """Token ids of a word that follows a blank, or replaces a mask.

    Args:
        task: "causal-lm" or "masked-lm".
        tokenizer: The tokenizer of the model.
        encoding: The text; the word comes after it, or in place of its mask token.
        word: The word, without blanks around it.

    Returns:
        The ids, one or more.
    """
    spaced = word if task == "masked-lm" else f" {word}"
    return _candidates(task, tokenizer, encoding, spaced, None)[0]


def continuation(tokenizer: Any, text: str, words: str) -> list[int]:
    """Token ids of words that follow a text.

    Args:
        tokenizer: The tokenizer.
        text: The text before them.
        words: One or more words.

    Returns:
        The ids.

    Raises:
        ValueError: If the place leaves open whether there is a blank in between.
    """
    found = _after(tokenizer, text, words)
    single = [ids for ids in found if len(ids) == 1]
    if len(found) > 1 and len(single) != 1:
        raise ValueError(_ambiguous(tokenizer, words, found))
    return single[0] if len(found) > 1 else found[0]


def _candidates(
    task: Task, tokenizer: Any, encoding: Encoding, word: str, position: int | None
) -> list[list[int]]:
    """One or two possible encodings of a word."""
    text = encoding.text
    if task != "masked-lm":
        last = len(encoding.ids) - 1
        at_end = position is None or position == last
        return _after(tokenizer, text if at_end else text[: encoding.offsets[position][1]], word)  # type: ignore[index]
    known = _added(tokenizer).get(word.strip())
    if known is not None:
        return [[known]]
    if position is None:
        position = encoding.ids.index(tokenizer.mask_token_id)
    start, stop = encoding.offsets[position]
    if start == stop:  # a special token outside of the text
        return [_ids(tokenizer, word.strip())]
    filled = f"{text[:start]}{word.strip()}{text[stop:]}"
    return [_difference(_ids(tokenizer, text), _ids(tokenizer, filled))]


def _after(tokenizer: Any, text: str, word: str) -> list[list[int]]:
    """One or two possible encodings of a word after a text, the likelier one first."""
    added = _added(tokenizer)
    known = added.get(word, added.get(word.strip()))
    if known is not None:
        return [[known]]
    plain = _exact(tokenizer, text, word)
    if len(plain) > 1 and text.endswith(tuple(added)):  # some add a blank after a special token
        apart = _exact(tokenizer, _other(word), word)
        plain = apart if len(apart) == 1 else plain
    if not text or text[-1].isspace() or not word or word[0].isspace():
        return [plain]
    if without_blanks(text[-1]) or without_blanks(word[0]):
        return [plain]
    spaced = _exact(tokenizer, text, f" {word}")
    if spaced == plain:
        return [plain]
    decided = _wants_blank(text[-1]) and _wants_blank_before(word[0])
    if decided and not text.endswith(tuple(added)):
        return [plain if len(plain) == 1 < len(spaced) else spaced]
    return [spaced, plain]


def _exact(tokenizer: Any, text: str, word: str) -> list[int]:
    """Tokens by which a word continues a text, character by character.

    Where tokens of the text would change (``"a "`` and ``"b"`` make ``"Ġb"``), the word is
    encoded after another text, whose tokens stay.
    """
    for before in (text, _other(word)):
        start, both = _ids(tokenizer, before), _ids(tokenizer, before + word)
        if both[: len(start)] == start:
            return both[len(start) :]
    return _difference(_ids(tokenizer, text), _ids(tokenizer, text + word))


def _other(word: str) -> str:
    """A text that no tokenizer merges with a word."""
    return "a" if word[:1].isspace() else "\n"


def _wants_blank(character: str) -> bool:
    """Whether a word follows this character after a blank."""
    category = unicodedata.category(character)
    return character.isalnum() or character in _CLOSING or category in ("Mn", "Mc", "Pe", "Pf")


def _wants_blank_before(character: str) -> bool:
    """Whether a word that starts with this character comes after a blank."""
    return character.isalnum() or unicodedata.category(character) in ("So", "Sc")


def without_blanks(character: str) -> bool:
    """Whether a character belongs to a script that is written without blanks between words."""
    return unicodedata.name(character, "").startswith(_WITHOUT_BLANKS)


def _added(tokenizer: Any) -> dict[str, int]:
    """Special and other added tokens, by their text."""
    return dict(tokenizer.get_added_vocab())


def _ids(tokenizer: Any, text: str) -> list[int]:
    check_characters(text)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _difference(before: list[int], after: list[int]) -> list[int]:
    """Ids that replace, in one list, some ids of the other."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    stop = 0
    while stop < min(len(before), len(after)) - start and before[-1 - stop] == after[-1 - stop]:
        stop += 1
    return after[start : len(after) - stop]


def _joined(tokenizer: Any, ids: Sequence[int]) -> str:
    return " + ".join(map(repr, token_names(tokenizer, ids)))


def _ambiguous(tokenizer: Any, word: str, found: Sequence[Sequence[int]]) -> str:
    spaced, plain = (_joined(tokenizer, ids) for ids in found)
    return (
        f"At this place {word!r} may be {plain} or, with a blank in front, {spaced}: say which by "
        f"{' ' + word!r}, a token id, or Token('...') with the exact token."
    )


def _trailing_blank(tokenizer: Any, encoding: Encoding) -> str:
    if not encoding.text.endswith(" ") or not tokenizer.decode([encoding.ids[-1]]).isspace():
        return ""
    return (
        " The blank at the end of the text is a separate token there: without it, the word may "
        "be one token."
    )


# Parts of a text ---------------------------------------------------------------------------------


def span_of(encoding: Encoding, span: str | tuple[int, int]) -> tuple[int, int]:
    """Find the tokens of a part of a text.

    Args:
        encoding: The text.
        span: The part (its last occurrence), or the indices ``(first, stop)``.

    Returns:
        The indices, counted from the front.

    Raises:
        ValueError: If the part does not occur, cuts through a token, or starts with the
            first token, which no token comes before.
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


def places_of(encoding: Encoding, part: str, end: Literal["start", "end"]) -> list[int]:
    """Find where a part of a question's context starts or ends.

    Args:
        encoding: The text; its context is the second text of a pair, or all of it.
        part: One or more words, as in the text.
        end: Whether to return the first or the last token.

    Returns:
        The index of that token for each occurrence of the part as whole words.
    """
    words = part.strip()
    if not words:
        return []
    places = []
    # In scripts without blanks a part of a run of letters may be a word.
    left, right = (
        r"\b" if end.isalnum() and not without_blanks(end) else "" for end in (words[0], words[-1])
    )
    for found in re.finditer(f"{left}{re.escape(words)}{right}", encoding.text):
        start, stop = found.span()
        inside = [index for index, (a, b) in enumerate(encoding.offsets) if a < stop and b > start]
        if inside and start >= encoding.second:
            places.append(inside[0 if end == "start" else -1])
    return places


def _tokens_of(encoding: Encoding, part: str) -> tuple[int, int]:
    """Tokens of the last occurrence of a part of the text."""
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
        raise ValueError(f"The span {part!r} cuts through a token: its tokens cover {covered!r}.")
    return first, last + 1
