"""A word as a target is the token that it is at its place in the text, or it is refused."""

from functools import partial

import pytest
import torch
from chat import QUESTION, byte_level, chat_model

import captum_lrpx
from captum_lrpx import AttnLRPx, LLMRelevance, LRPx, Target, Token, ask_batch, zoo
from captum_lrpx.targets import encode
from captum_lrpx.targets.place import continuation

explain = partial(captum_lrpx.explain, certify=False)  # certificates have tests of their own
TEXT = "the keys to the cabinet"
CAUSAL = ["sva-gpt2", "sva-llama"]
BLANK = {"sva-gpt2": "Ġ", "sva-llama": "▁"}


@pytest.fixture(scope="module")
def chat():
    return chat_model()


def explained(model, tokenizer, text, word):
    """The token that the record names, whose logit must be the explained value."""
    found = explain(model, tokenizer, text, word)
    (standing,) = found.standings
    logits = model(torch.tensor([found.ids])).logits[0, -1]
    assert found.value == pytest.approx(float(logits[standing.index]), abs=1e-4)
    assert tokenizer.convert_ids_to_tokens(standing.index) == standing.name
    assert found.target == f"logit of {standing.name!r}"
    return standing.name


@pytest.mark.parametrize("name", CAUSAL)
def test_white_space_at_the_end_of_the_text_counts(loaded, name):
    model, tokenizer = loaded[name]
    spaced = f"{BLANK[name]}are"
    for ending, expected in [("", spaced), ("\n", "are"), ("\n\n", "are"), (" ", "are")]:
        assert explained(model, tokenizer, TEXT + ending, "are") == expected, repr(ending)
        assert explained(model, tokenizer, TEXT + ending, " are") == spaced, "as it stands"


@pytest.mark.parametrize(
    ("ending", "expected"),
    [("", "ĠYes"), (".", "ĠYes"), ("\n", "Yes"), (":\n\n", "Yes"), ("\t", "Yes"), (" ", "Yes")],
)
def test_the_place_decides(chat, ending, expected):
    assert explained(*chat, f"Is 7 prime{ending}", "Yes") == expected


def test_a_chat_prompt_ends_in_a_line_break(chat):
    model, tokenizer = chat
    prompt = tokenizer.apply_chat_template(
        list(QUESTION), tokenize=False, add_generation_prompt=True
    )
    for given in (prompt, list(QUESTION)):
        assert explained(model, tokenizer, given, "Yes") == "Yes"


@pytest.mark.parametrize("text", ["Is 7 prime (", 'Is 7 "', "Is 7 -", "Is 7 =", "Is<|im_start|>"])
def test_a_place_that_does_not_decide_is_refused_with_both_tokens(chat, text):
    model, tokenizer = chat
    for word in ("Yes", "No"):
        with pytest.raises(ValueError, match=rf"may be '{word}' or, with a blank .* 'Ġ{word}'"):
            explain(model, tokenizer, text, word)
        assert explained(model, tokenizer, text, f" {word}") == f"Ġ{word}"
        assert explained(model, tokenizer, text, Token(word)) == word
    assert explained(model, tokenizer, text, "7") == "7", "there is one such token only"


@pytest.mark.parametrize(
    ("word", "token"),
    [
        ("7", "7"),
        ("<|im_end|>", "<|im_end|>"),
        ("<s>", "<s>"),
        ("<think>", "<think>"),
        ("\n", "Ċ"),
        ("!", "!"),
        ("\t", "ĉ"),
        (" ", "Ġ"),
    ],
)
@pytest.mark.parametrize("ending", ["", "\n", "?", "<|im_end|>"])
def test_one_token_can_be_named_whatever_it_is(chat, word, token, ending):
    if word == "!" and ending != "\n":
        word = Token("!")  # "!" and "Ġ" + "!" are both possible, but only one is one token
    assert explained(*chat, f"Is 7 prime{ending}", word) == token


def test_special_and_byte_tokens_of_the_embedded_models(loaded):
    assert explained(*loaded["sva-llama"], TEXT, "</s>") == "</s>"
    assert explained(*loaded["sva-llama"], TEXT, "\n") == "<0x0A>"
    assert explained(*loaded["sva-llama"], TEXT, Token("<0xE2>")) == "<0xE2>"
    assert explained(*loaded["sva-gpt2"], TEXT, "<|endoftext|>") == "<|endoftext|>"
    assert explained(*loaded["sva-gpt2"], f"{TEXT} are <|endoftext|>", "the") == "Ġthe"


def test_scripts_without_blanks_get_none():
    tokenizer = byte_level()
    assert tokenizer.decode(continuation(tokenizer, "Is", "prime numbers")) == " prime numbers"
    assert tokenizer.decode(continuation(tokenizer, "그것은", "좋다")) == " 좋다"
    for text in ("日本の首都は", "Is"):
        assert tokenizer.decode(continuation(tokenizer, text, "東京")) == "東京"
    assert tokenizer.decode(continuation(tokenizer, "日本は", "Is")) == "Is"


@pytest.mark.parametrize("word", ["日本", "🍕", "Paris, of course", "keyboards"])
def test_several_tokens_are_refused_with_the_ways_out(loaded, word):
    for name in CAUSAL:
        model, tokenizer = loaded[name]
        with pytest.raises(ValueError, match=r"tokens \('.*' \+ '.*LLMRelevance.*Target\(span="):
            explain(model, tokenizer, TEXT, word)
        found = LLMRelevance(AttnLRPx(model), tokenizer).attribute(TEXT, target=word)
        assert len(found.continuation_ids) > 1
    with pytest.raises(ValueError, match=r"do(es)? not know|tokens") as refused:
        explain(*loaded["sva-bert"], TEXT, word)
    assert "span" not in str(refused.value), "no way out for a masked model"


def test_a_token_that_is_none():
    model, tokenizer = zoo.load("sva-gpt2")
    with pytest.raises(ValueError, match="no token '▁are'"):
        explain(model, tokenizer, TEXT, Token("▁are"))


def test_exact_tokens_everywhere(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    target = Target((Token("Ġare"), "were"), contrast=Token("are"))
    found = explain(model, tokenizer, TEXT, target)
    assert found.target == "sum of the logits of 'Ġare', 'Ġwere' minus logit of 'are'"
    again = Target([Token("Ġare"), "were"], contrast=Token("are"))
    assert len({target, again}) == 1, "targets can be compared and hashed"
    batch = ask_batch(model, tokenizer, [TEXT, f"{TEXT}\n"], Token("Ġare"))
    assert batch.descriptions == ("logit of 'Ġare'",) * 2
    batch = ask_batch(model, tokenizer, [TEXT, f"{TEXT}\n"], "are")
    assert batch.descriptions == ("logit of 'Ġare'", "logit of 'are'")


@pytest.mark.parametrize("name", zoo.names())
def test_a_token_is_named_however_it_was_asked_for(loaded, name):
    model, tokenizer = loaded[name]
    token = f"{BLANK.get(name, '')}are"
    number = tokenizer.convert_tokens_to_ids(token)
    found = {explain(model, tokenizer, TEXT, each).to_json() for each in ("are", number)}
    assert found == {explain(model, tokenizer, TEXT, Token(token)).to_json()}


def test_a_word_at_an_inner_position_stands_there(chat, loaded):
    model, tokenizer = chat
    text = "Is\n7 prime"
    position = encode(model, tokenizer, text).tokens.index("Ċ")
    target = Target("Yes", position=position)
    assert explain(model, tokenizer, text, target).target == "logit of 'Yes'"
    target = Target("Yes", position=-1)
    assert explain(model, tokenizer, text, target).target == "logit of 'ĠYes'"
    found = explain(*loaded["sva-bert"], "the keys [MASK] old", Target("is", position=2))
    assert found.target == "logit of 'is'"


def test_a_masked_word_is_encoded_in_the_place_of_its_mask(loaded):
    model, tokenizer = loaded["sva-bert"]
    for text in (
        "the keys [MASK] old",
        "the keys\n[MASK] old",
        "([MASK])",
        "[MASK]",
        "the [MASK].",
    ):
        assert explain(model, tokenizer, text, "are").target == "logit of 'are'"
    assert explain(model, tokenizer, TEXT, Token("##s")).target == "logit of '##s'"
    assert explain(model, tokenizer, TEXT, "[SEP]").target == "logit of '[SEP]'"


# One convention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "\n", " ", ".", "<|im_start|>assistant\n"])
@pytest.mark.parametrize("word", ["Yes", "7", "Paris", " Yes", "<|im_end|>", "\n"])
def test_explain_and_generated_text_take_a_word_alike(chat, word, ending):
    model, tokenizer = chat
    text = f"Is 7 prime{ending}"
    llm = LLMRelevance(LRPx(model), tokenizer, "logit")
    other = llm.attribute(text, target=word, foil="No")
    if len(other.continuation_ids) > 1:
        with pytest.raises(ValueError, match=rf"is {len(other.continuation_ids)} tokens"):
            explain(model, tokenizer, text, word)
        return
    one = explain(model, tokenizer, text, word, method="lrpx")
    foil = explain(model, tokenizer, text, "No", method="lrpx")
    assert other.continuation_ids.tolist() == [one.standings[0].index]
    assert float(other.values[0]) == pytest.approx(one.value - foil.value, abs=1e-4)


def test_a_continuation_whose_place_does_not_decide_is_refused(chat):
    model, tokenizer = chat
    llm = LLMRelevance(LRPx(model), tokenizer)
    with pytest.raises(ValueError, match="may be 'Yes' or, with a blank"):
        llm.attribute("Is 7 (", target="Yes")
    assert len(llm.attribute("Is 7 (", target=Token("Yes")).continuation_ids) == 1
    assert len(llm.attribute("Is 7 (", target=" Yes prime").continuation_ids) == 2
