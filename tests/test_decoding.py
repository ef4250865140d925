"""Token ids as a text: the text that was encoded, with the place of every token."""

import pytest
from byte_tokenizers import END, START, TOKENIZERS
from hypothesis import given
from hypothesis import strategies as st

from captum_lrpx.decoding import decoded

kinds = pytest.mark.parametrize("kind", TOKENIZERS)
TEXT = "the capital 日本 🍕 keys\n to"


def labels(found):
    return [found.text[start:end] for start, end in found.offsets]


@kinds
def test_a_text_is_what_was_encoded(kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer(TEXT).input_ids
    found = decoded(tokenizer, ids)
    assert found.text == TEXT
    assert found.tokens == tuple(tokenizer.convert_ids_to_tokens(ids))
    assert "capital" in labels(found)
    for character in "日本🍕":
        assert labels(found).count(character) == len(character.encode())
    assert not any(found.special)


@kinds
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd▁ĠĊ")))
def test_any_text_comes_back_and_every_token_has_its_place(kind, text):
    tokenizer = TOKENIZERS[kind]
    encoded = tokenizer(text, return_offsets_mapping=True)
    found = decoded(tokenizer, encoded.input_ids)
    assert found.text == text
    end = 0
    for start, stop in found.offsets:
        assert start <= end <= stop or text[end:start].strip() == ""
        assert start < stop
        end = stop
    assert end == len(text)


@kinds
def test_every_prefix_of_a_text_has_no_broken_character(kind):
    """A generation that stops inside a character: the bytes that are there, by number."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer("the 日本").input_ids
    for length in range(1, len(ids) + 1):
        assert "\ufffd" not in decoded(tokenizer, ids[:length]).text
    cut = decoded(tokenizer, ids[:-1])
    assert cut.text == "the 日<0xE6><0x9C>"
    assert labels(cut)[-2:] == ["<0xE6>", "<0x9C>"]


@kinds
def test_bytes_that_are_no_character_stand_by_themselves(kind):
    tokenizer = TOKENIZERS[kind]
    before, after = tokenizer("the 日").input_ids, tokenizer("keys").input_ids
    found = decoded(tokenizer, [*before[:-1], *after])
    assert "<0xE6><0x97>" in found.text
    assert found.text.startswith("the <0xE6><0x97>")
    assert labels(found)[-1] == "keys"


@kinds
def test_no_character_spans_the_cut(kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer("the 日本").input_ids
    place = len(ids) - 4  # inside the first of the two
    found = decoded(tokenizer, ids, cut=place)
    assert found.offsets[place - 1][1] <= found.offsets[place][0]
    assert found.text == "the <0xE6><0x97><0xA5>本"


@kinds
def test_special_tokens_are_marked_and_stand_in_the_text(kind):
    tokenizer = TOKENIZERS[kind]
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    ids = [start, *tokenizer("the keys").input_ids, end]
    found = decoded(tokenizer, ids)
    assert found.special == (True, *[False] * (len(ids) - 2), True)
    assert labels(found)[0] == START
    assert labels(found)[-1] == END
    assert "the" in labels(found)


def test_a_token_for_unknown_words_is_no_special_token(loaded):
    from generation_cases import words

    assert not any(decoded(words(), [1, 2, 3]).special)
    tokenizer = loaded["sva-gpt2"][1]  # one token for everything: unknown words, start, and end
    assert decoded(tokenizer, [tokenizer.bos_token_id]).special == (True,)
