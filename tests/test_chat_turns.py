"""Turns of a chat: found exactly in the templates of six families, or refused."""

import pytest
from chat import byte_level, chat_model
from chat_templates import FAMILIES, QWEN_3

from captum_lrpx import explain
from captum_lrpx.targets.inputs import render

CHAT = [
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": " assistant\n"},
    {"role": "user", "content": "What did the user say?\n\nuser"},
]
SYSTEM = {"role": "system", "content": "system: the user is the user."}
family = pytest.mark.parametrize("template", FAMILIES.values(), ids=FAMILIES)


def turns(template, messages):
    found = render(byte_level(template), messages, predict=True)
    return [(turn.name, found.text[turn.start : turn.end]) for turn in found.turns]


@family
def test_turns_are_found_also_where_they_say_what_the_template_says(template):
    expected = [("user", "user"), ("assistant", "assistant"), ("user", CHAT[2]["content"])]
    found = turns(template, CHAT)
    assert [(role, text.strip()) for role, text in found] == expected
    with_system = turns(template, [SYSTEM, *CHAT])
    assert [(role, text.strip()) for role, text in with_system] == [
        ("system", SYSTEM["content"]),
        *expected,
    ]


@family
def test_every_turn_stands_at_its_own_place(template):
    """Each message in turn says something that no other says, in any order of the template."""
    tokenizer = byte_level(template)
    for place in range(4):
        messages = [dict(message) for message in (SYSTEM, *CHAT)]
        messages[place]["content"] = "Nothing else says xyzzy."
        found = render(tokenizer, messages, predict=True)
        turn = found.turns[place]
        assert found.text[turn.start : turn.end] == "Nothing else says xyzzy."
        assert found.text.count("xyzzy") == 1


@family
def test_an_answer_that_has_begun_is_a_turn(template):
    found = turns(template, [*CHAT[:1], {"role": "assistant", "content": "The user said"}])
    assert found[-1] == ("assistant", "The user said")


def test_reasoning_that_the_template_leaves_out_is_in_no_turn():
    answer = {"role": "assistant", "content": "<think>\nuser\n</think>\n\nIt is user."}
    assert turns(QWEN_3, [CHAT[0], answer, CHAT[0]])[1] == ("assistant", "It is user.")


def test_relevances_of_turns_sum_to_those_of_their_tokens():
    model, tokenizer = chat_model()
    found = explain(model, tokenizer, CHAT, "Yes")
    segments = found.segments("turn")
    assert [segment.name for segment in segments.parts[:-1]] == ["user", "assistant", "user"]
    assert segments.parts[-1].name == "(special tokens)"
    assert segments.parts[1].text == "assistant"
    total = segments.sum + sum(amount for _, amount in segments.rest)
    assert total == pytest.approx(segments.value, abs=1e-5)
    shown = found.segments("turn", fold_special=False)
    assert shown.parts[0].kind == "special"
    assert shown.parts[1].name == "user"
    assert shown.sum == pytest.approx(segments.sum)


def test_turns_that_a_template_changes_are_refused():
    model, _ = chat_model()
    shouting = FAMILIES["ChatML"].replace("message.content | trim", "message.content | upper")
    found = explain(model, byte_level(shouting), CHAT, "Yes", certify=False)
    with pytest.raises(ValueError, match="no segment by 'turn': explain chat messages"):
        found.segments("turn")
