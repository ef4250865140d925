"""Targets of texts, by themselves and in batches: words, spans, quantities, functions."""

import pytest
import torch
from models import tiny

from captum_lrpx import LRPx, Target, ask_batch, explain, zoo
from captum_lrpx.methods import attribute
from captum_lrpx.targets import encode

TEXT = "the keys to the cabinet"


def asked(model, tokenizer, target, text=TEXT):
    """The value of a target."""
    encoding = encode(model, tokenizer, text)
    query = target.ask(model, tokenizer, encoding)
    output = query.forward(torch.tensor([encoding.ids]), *query.additional_forward_args)
    return (output if query.target is None else output[:, query.target]).item()


@pytest.mark.parametrize("quantity", ["logit", "log_prob", "prob"])
@pytest.mark.parametrize("name", zoo.names())
def test_several_tokens_and_quantities(loaded, name, quantity):
    model, tokenizer = loaded[name]
    one = {
        word: asked(model, tokenizer, Target(word, quantity=quantity))
        for word in ("are", "is", "were", "was")
    }
    for token, contrast, expected in [
        ("are", "is", one["are"] - one["is"]),
        (("are", "were"), None, one["are"] + one["were"]),
        (["are", "were"], ["is", "was"], one["are"] + one["were"] - one["is"] - one["was"]),
        (("are", "were"), "is", one["are"] + one["were"] - one["is"]),
    ]:
        target = Target(token, contrast=contrast, quantity=quantity)
        assert asked(model, tokenizer, target) == pytest.approx(expected, abs=1e-4)
        found = explain(model, tokenizer, TEXT, target)
        assert found.value == pytest.approx(expected, abs=1e-4)
    if quantity == "prob":
        assert 0 < sum(one.values()) < 1


def test_words_and_ids_are_the_same_target(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    number = tokenizer.encode("are", add_special_tokens=False)[0]
    mixed = asked(model, tokenizer, Target((number, "is"), contrast=number))
    assert mixed == pytest.approx(asked(model, tokenizer, Target("is")), abs=1e-4)


def test_a_word_of_several_tokens_is_refused_by_name(loaded):
    model, tokenizer = loaded["sva-bert"]
    for target in (Target(("are", "keyboards")), Target("are", contrast="keyboards")):
        with pytest.raises(ValueError, match=r"'keyboards' is \d tokens \('key' \+ '##b'"):
            asked(model, tokenizer, target)


@pytest.mark.parametrize("name", ["sva-gpt2", "sva-llama"])
def test_spans_of_a_text(loaded, name):
    model, tokenizer = loaded[name]
    text = f"{TEXT} are old"
    ids = torch.tensor([encode(model, tokenizer, text).ids])
    steps = model(ids).logits[0, -3:-1].detach()
    for quantity, values in [("logit", steps), ("log_prob", steps.log_softmax(-1))]:
        expected = values.gather(1, ids[0, -2:, None]).sum().item()
        length = ids.shape[1]
        for span in ("are old", " are old", (-2, length), (length - 2, length)):
            target = Target(span=span, quantity=quantity)
            assert asked(model, tokenizer, target, text) == pytest.approx(expected, abs=1e-4)
        found = explain(model, tokenizer, text, target)
        assert found.relevances[-1] == 0, "the last token predicts nothing of the span"
        assert found.target.endswith(f"of {span!r}" if isinstance(span, str) else f"tokens {span}")


def test_the_last_occurrence_of_a_span_counts(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    text = "the keys to the cabinet near the door"
    last = encode(model, tokenizer, text).tokens.index("Ġnear") + 1
    found = asked(model, tokenizer, Target(span="the"), text)
    assert found == asked(model, tokenizer, Target(span=(last, last + 1)), text)


@pytest.mark.parametrize(
    ("span", "error", "message"),
    [
        ("dogs", ValueError, "does not occur"),
        ("", ValueError, "does not occur"),
        ("key", ValueError, "cuts through a token: its tokens cover 'keys'"),
        ((0, 2), ValueError, "no token comes before"),
        ((3, 3), IndexError, "empty or out of range"),
        ((3, 99), IndexError, "empty or out of range"),
    ],
)
def test_spans_that_do_not_fit(loaded, span, error, message):
    with pytest.raises(error, match=message):
        asked(*loaded["sva-gpt2"], Target(span=span))


def test_spans_need_a_causal_model(loaded):
    with pytest.raises(ValueError, match="causal language model only"):
        asked(*loaded["sva-bert"], Target(span="keys"))


def test_a_function_as_target(loaded):
    def odds(logits):
        return logits[:, 5] - logits.logsumexp(-1)

    for name in zoo.names():
        model, tokenizer = loaded[name]
        expected = asked(model, tokenizer, Target(5, quantity="log_prob"))
        assert asked(model, tokenizer, Target(odds)) == pytest.approx(expected, abs=1e-4)
        assert explain(model, tokenizer, TEXT, Target(odds)).target == "odds of the logits"


@pytest.mark.parametrize(
    "arguments",
    [
        {"token": "are", "span": "keys"},
        {"span": "keys", "contrast": "is"},
        {"span": "keys", "position": 2},
        {"token": torch.sum, "contrast": "is"},
        {"token": torch.sum, "quantity": "prob"},
        {"token": ()},
        {"token": "are", "contrast": []},
    ],
    ids=lambda given: ", ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in given.items()),
)
def test_targets_that_contradict_themselves(arguments):
    with pytest.raises(ValueError):  # noqa: PT011 - each has a message of its own
        Target(**arguments)


def test_targets_can_be_compared():
    assert Target(["are", "were"]) == Target(("are", "were"))
    assert len({Target("are"), Target("are"), Target("is")}) == 2


def with_vocabulary(head, tokenizer):
    config = {"max_position_embeddings": 64, "vocab_size": len(tokenizer), "pad_token_id": 0}
    return tiny("bert", head=head, dtype=torch.float32, **config)


@pytest.mark.parametrize("quantity", ["logit", "log_prob", "prob"])
@pytest.mark.parametrize("head", ["sequence", "token", "qa"])
def test_targets_of_other_heads(loaded, head, quantity):
    tokenizer = loaded["sva-bert"][1]
    model = with_vocabulary(head, tokenizer)
    one = [asked(model, tokenizer, Target(choice, quantity=quantity)) for choice in range(2)]
    for target, expected in [
        (Target(1, contrast=0, quantity=quantity), one[1] - one[0]),
        (Target((0, 1), quantity=quantity), one[0] + one[1]),
    ]:
        assert asked(model, tokenizer, target) == pytest.approx(expected, abs=1e-5)
        assert explain(model, tokenizer, TEXT, target).value == pytest.approx(expected, abs=1e-4)


# Batches --------------------------------------------------------------------------------------

TEXTS = [TEXT, "the author that the guards like", "the author"]


def rows_alone(model, tokenizer, texts, targets, method=LRPx):
    """The relevances of each text by itself."""
    for text, target in zip(texts, targets, strict=True):
        encoding = encode(model, tokenizer, text)
        query = target.ask(model, tokenizer, encoding)
        yield method(query.forward).attribute(
            torch.tensor([encoding.ids]), query.target, query.additional_forward_args
        )[0]


def check_batch(model, tokenizer, targets):
    batch = ask_batch(model, tokenizer, TEXTS, targets)
    found = LRPx(batch.forward).attribute(
        batch.inputs, additional_forward_args=batch.additional_forward_args
    )
    several = targets if isinstance(targets, list) else [targets] * len(TEXTS)
    several = [item if isinstance(item, Target) else Target(item) for item in several]
    alone = rows_alone(model, tokenizer, TEXTS, several)
    for row, expected, encoding in zip(found, alone, batch.encodings, strict=True):
        length = len(encoding.ids)
        torch.testing.assert_close(row[:length], expected, rtol=1e-4, atol=1e-4)
        assert row[length:].eq(0).all()
    assert list(batch.descriptions) == [
        target.ask(model, tokenizer, encoding).descriptions[0]
        for target, encoding in zip(several, batch.encodings, strict=True)
    ]


@pytest.mark.parametrize("name", zoo.names())
def test_one_target_per_row(loaded, name):
    model, tokenizer = loaded[name]
    check_batch(model, tokenizer, "are")
    check_batch(model, tokenizer, ["are", Target("is", contrast="are"), Target(("is", "was"))])
    check_batch(
        model,
        tokenizer,
        [
            Target("are", quantity="log_prob"),
            Target(("is", "was"), contrast="are", quantity="log_prob"),
            Target(7, position=2, quantity="log_prob"),
        ],
    )
    check_batch(model, tokenizer, Target(lambda logits: logits[:, 9] - logits[:, 8]))
    if name != "sva-bert":
        check_batch(model, tokenizer, [Target(span="cabinet"), "are", Target(span="author")])


@pytest.mark.parametrize("name", zoo.names())
def test_a_row_of_a_batch_is_what_one_text_asks(loaded, name):
    model, tokenizer = loaded[name]
    targets = [Target("are"), Target("is", contrast="are"), Target(("is", "was"))]
    batch = ask_batch(model, tokenizer, TEXTS, targets)
    assert batch.target is None
    found = attribute("input_x_gradient", batch, None, {})
    for index, (target, encoding) in enumerate(zip(targets, batch.encodings, strict=True)):
        one, row = target.ask(model, tokenizer, encoding), batch.row(index)
        assert one.mask is None
        assert one.additional_forward_args[0] is None
        for field in ("encodings", "terms", "positions", "descriptions"):
            assert getattr(row, field) == getattr(one, field)
        assert torch.equal(row.ids, one.ids)
        expected = attribute("input_x_gradient", one, None, {})
        for values in (found.values[index], row.values[0]):
            torch.testing.assert_close(values, expected.values[0], rtol=1e-5, atol=1e-5)
        length = one.ids.shape[1]
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(
            found.relevances[index, :length], expected.relevances[0], **close
        )
        assert found.relevances[index, length:].eq(0).all()


@pytest.mark.parametrize("head", ["sequence", "token"])
def test_one_class_per_row(loaded, head):
    tokenizer = loaded["sva-bert"][1]
    model = with_vocabulary(head, tokenizer)
    check_batch(model, tokenizer, ["LABEL_1", Target("LABEL_1", contrast=0), Target((0, 2))])
    check_batch(model, tokenizer, Target("LABEL_1", quantity="prob"))


def test_batches_that_do_not_fit(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    for texts, targets, message in [
        ([], "are", "at least one text"),
        (TEXT, "are", "at least one text"),
        (TEXTS, ["are"], "3 texts, but 1 targets"),
        (TEXTS[:2], [Target("are"), Target("are", quantity="prob")], "the same quantity"),
        (TEXTS[:2], [Target(torch.sum), Target("are")], "function"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask_batch(model, tokenizer, texts, targets)
