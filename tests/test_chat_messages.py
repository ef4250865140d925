"""Chat messages: written by the template, and the template told apart from the contents."""

from functools import partial

import pytest
import torch
from chat import QUESTION, TEMPLATE, byte_level, chat_model
from models import tiny

import captum_lrpx
from captum_lrpx import AttnLRPx, LLMRelevance

explain = partial(captum_lrpx.explain, certify=False)  # certificates have tests of their own


@pytest.fixture(scope="module")
def chat():
    return chat_model()


CHAT = (
    {"role": "system", "content": "user"},
    {"role": "user", "content": " Is 7 prime?"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "assistant"},
)


def test_messages_are_what_the_template_makes_of_them(chat):
    model, tokenizer = chat
    for messages in (QUESTION, CHAT, CHAT[:2]):
        expected = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)
        found = explain(model, tokenizer, messages, "Yes")
        assert list(found.ids) == list(expected["input_ids"])
        assert found.target == "logit of 'Yes'"
        result = LLMRelevance(AttnLRPx(model), tokenizer).attribute(list(messages), target="Yes")
        assert result.input_tokens == list(found.tokens)


def test_an_answer_that_has_begun_goes_on(chat):
    model, tokenizer = chat
    found = explain(model, tokenizer, CHAT[:3], "Ġis".replace("Ġ", " "))
    assert found.text.endswith("<|im_start|>assistant\nYes")


def test_what_the_template_wrote_can_be_folded(chat):
    model, tokenizer = chat
    found = explain(model, tokenizer, CHAT, "Yes")
    contents = ["user", "Is", "7", "prime", "?", "Yes", "assistant"]
    words = found.words()
    inside = [label for label, frame in zip(words.labels, words.template, strict=True) if not frame]
    assert inside == contents, "also where a content is a word of the template"
    assert list(words.fold_special().labels) == [*contents, "(special tokens)"]
    assert words.fold_special().sum == pytest.approx(found.sum)
    assert [*found.fold_special().words().labels] == [*contents, "(special tokens)"]
    marks = {"<|im_start|>", "<|im_end|>"}
    assert {
        token for token, special in zip(found.tokens, found.special, strict=True) if special
    } == (marks)


def test_special_tokens_of_a_written_template_stand_alone(chat):
    model, tokenizer = chat
    text = tokenizer.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=True)
    found = explain(model, tokenizer, text, "Yes")
    assert found.template is None
    labels = found.words().labels
    assert labels.count("<|im_end|>") == len(CHAT)
    assert "?" in labels
    assert not {"<|im_end|>", "<|im_start|>"} & set(found.fold_special().labels)


def test_contents_that_a_template_changes_are_found(chat):
    model, _ = chat
    checks = "{% if messages[0].content[0] == 'c' %}{{ raise_exception('no') }}{% endif %}"
    for template in (checks + TEMPLATE, TEMPLATE.replace("| trim", "| replace('mark', '')")):
        tokenizer = byte_level(template)
        words = explain(model, tokenizer, QUESTION, "Yes").words().fold_special()
        assert words.labels == ("Is", "7", "prime", "?", "(special tokens)")


def test_contents_in_parts(chat):
    model, tokenizer = chat
    parts = [{"type": "text", "text": "Is 7 prime?"}]
    template = TEMPLATE.replace("message.content", "message.content[0].text")
    found = explain(model, byte_level(template), [{"role": "user", "content": parts}], "Yes")
    assert found.relevances == explain(model, tokenizer, QUESTION, "Yes").relevances
    assert found.fold_special().words().labels[:-1] == ("Is", "7", "prime", "?")


def test_messages_that_cannot_be_written(chat):
    model, tokenizer = chat
    with pytest.raises(ValueError, match="has no chat template"):
        explain(model, byte_level(None), QUESTION, "Yes")
    with pytest.raises(ValueError, match="cannot write these messages"):
        explain(model, byte_level("{{ raise_exception('no') }}"), QUESTION, "Yes")
    with pytest.raises(TypeError, match="A chat message must be in a list"):
        explain(model, tokenizer, QUESTION[0], "Yes")


def test_a_classifier_of_chats_gets_no_prompt_for_an_answer(chat):
    _, tokenizer = chat
    model = tiny("gpt2", "sequence", dtype=torch.float32, vocab_size=len(tokenizer))
    model.config.pad_token_id = None
    found = explain(model, tokenizer, QUESTION)
    assert found.text.endswith("<|im_end|>\n")
