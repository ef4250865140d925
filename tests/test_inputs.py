"""What people have, explained as it is: pairs, start tokens, ids, encodings, long texts."""

from functools import partial

import pytest
import torch
from chat import chat_model
from models import tiny

import captum_lrpx
from captum_lrpx import (
    ALTILogit,
    AttnLRPx,
    LLMRelevance,
    LogitDifference,
    Target,
    TokenLogits,
    TokenSum,
    ask_batch,
    zoo,
)
from captum_lrpx.methods import METHODS
from captum_lrpx.targets import encode

explain = partial(captum_lrpx.explain, certify=False)  # certificates have tests of their own
TEXT = "the keys to the cabinet"
PAIR = ("the keys", "the author is old")
VOCABULARY = {"max_position_embeddings": 64, "pad_token_id": 0, "dtype": torch.float32}


@pytest.fixture(scope="module")
def bert():
    """The tokenizer of a BERT, and its vocabulary for tiny models."""
    tokenizer = zoo.load("sva-bert")[1]
    return tokenizer, {"vocab_size": len(tokenizer), **VOCABULARY}


@pytest.fixture(scope="module")
def chat():
    return chat_model()


# Pairs of texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["lm", "sequence", "token", "qa"])
def test_a_pair_is_what_the_model_gets_from_its_tokenizer(bert, head):
    tokenizer, config = bert
    model = tiny("bert", head, **config)
    pair = PAIR if head != "lm" else ("the keys", "the author [MASK] old")
    encoded = tokenizer(*pair, return_tensors="pt")
    output = model(**encoded)
    logits = output.start_logits if head == "qa" else output.logits
    target = Target(1, position=6 if head == "token" else None)
    found = captum_lrpx.explain(model, tokenizer, pair, target)
    expected = logits[0, found.position, 1] if head in ("lm", "token") else logits[0, 1]
    assert list(found.ids) == encoded.input_ids[0].tolist()
    assert found.value == pytest.approx(float(expected), abs=1e-5)
    assert found.certificate.holds
    other = explain(model, tokenizer, " [SEP] ".join(pair), Target(1, position=found.position))
    assert other.value != pytest.approx(found.value, abs=1e-3), "all token types would be 0"
    assert found.labels == ("[CLS]", *pair[0].split(), "[SEP]", *pair[1].split(), "[SEP]")


@pytest.mark.parametrize("token", [2, (0, 2), None])
@pytest.mark.parametrize("contrast", [1, None])
@pytest.mark.parametrize("quantity", ["logit", "prob"])
@pytest.mark.parametrize("head", ["lm", "qa", "sequence"])
def test_token_types_reach_every_kind_of_target(bert, head, token, contrast, quantity):
    tokenizer, config = bert
    asked = Target(token, contrast=contrast, quantity=quantity)
    model = tiny("bert", head, **config)
    pair = PAIR if head != "lm" else ("the keys", "the author [MASK] old")
    if (head, quantity) == ("qa", "prob"):
        with pytest.raises(ValueError, match="include the padding"):
            ask_batch(model, tokenizer, [pair, TEXT], asked)
    else:
        batch = ask_batch(model, tokenizer, [pair, TEXT], asked)
        values = batch.forward(batch.inputs, *batch.additional_forward_args)
        for text, value in zip((pair, TEXT), values, strict=True):
            found = explain(model, tokenizer, text, asked)
            assert found.value == pytest.approx(float(value), abs=1e-5)


def test_every_method_explains_a_pair(bert):
    tokenizer, config = bert
    model = tiny("bert", "qa", **config)
    expected = float(model(**tokenizer(*PAIR, return_tensors="pt")).start_logits[0, 5])
    for method in METHODS.keys() - {"deep_lift"}:
        found = explain(model, tokenizer, PAIR, 5, method=method)
        assert found.value == pytest.approx(expected, abs=1e-5), method


def test_forward_modules_take_token_types(bert):
    tokenizer, config = bert
    model = tiny("bert", **config)
    encoded = tokenizer("the keys", "the [MASK] old", return_tensors="pt")
    ids, types = encoded.input_ids, encoded.token_type_ids
    where = int((ids[0] == tokenizer.mask_token_id).nonzero())
    logits = model(**encoded).logits[0, where]
    for forward, arguments, expected in [
        (TokenLogits(model), (None, where, types), logits),
        (LogitDifference(model), (None, 5, 6, where, types), logits[5] - logits[6]),
        (TokenSum(model), (None, [5, 6], where, None, types), logits[5] + logits[6]),
    ]:
        torch.testing.assert_close(forward(ids, *arguments)[0], expected)
        embeds = model.get_input_embeddings()(ids)
        torch.testing.assert_close(forward(embeds, *arguments)[0], expected)
        target = 5 if expected.ndim else None
        for method in (AttnLRPx, ALTILogit):
            method(forward).attribute(ids, target, additional_forward_args=arguments)


def test_models_without_token_types_take_pairs(bert):
    tokenizer, config = bert
    model = tiny("distilbert", "qa", **config)
    ids = tokenizer(*PAIR, return_tensors="pt").input_ids
    found = explain(model, tokenizer, PAIR, "author")
    assert found.value == pytest.approx(float(model(ids).start_logits[0, 5]), abs=1e-5)


def test_an_answer_is_a_part_of_the_context(bert):
    tokenizer, config = bert
    model = tiny("bert", "qa", **config)
    for given in (PAIR, tokenizer(*PAIR), tokenizer(*PAIR, return_tensors="pt")):
        found = explain(model, tokenizer, given, "the")
        assert found.target == "start logit at 4 ('the')", "the other one is in the question"
    target = Target("the author", end="end", contrast="is")
    assert (
        explain(model, tokenizer, PAIR, target).target
        == "end logit at 5 ('author') minus end logit at 6 ('is')"
    )
    twice = ("the keys", "the author , the old author")
    with pytest.raises(ValueError, match=r"'author' occurs 2 times .* positions 5, 9: give one"):
        explain(model, tokenizer, twice, "author")
    for missing in ("keys", "auth", "", "or is"):
        with pytest.raises(ValueError, match="does not occur in the context"):
            explain(model, tokenizer, PAIR, missing)
    assert explain(model, tokenizer, TEXT, "keys").target.endswith("2 ('keys')")


# Start tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.names())
def test_no_start_token_is_doubled(loaded, name):
    model, tokenizer = loaded[name]
    plain = explain(model, tokenizer, TEXT, "are")
    start = plain.tokens[0]
    end = " [SEP]" if name == "sva-bert" else ""
    text = plain.text
    for given in (f"{start}{text}{end}", f"{start} {text}{end}", list(plain.ids)):
        for first_token in (None, start):
            found = explain(model, tokenizer, given, "are", first_token=first_token)
            assert found.ids == plain.ids
            assert found.relevances == plain.relevances
            assert found.special == plain.special
            assert found.labels == plain.labels
    if name != "sva-bert":
        llm = LLMRelevance(AttnLRPx(model), tokenizer)
        expected = llm.attribute(TEXT, target="are")
        for given in (f"{start}{TEXT}", list(plain.ids), tokenizer(TEXT)):
            found = llm.attribute(given, target="are", first_token=start)
            assert found.input_tokens == expected.input_tokens
            assert torch.equal(found.context_attr, expected.context_attr)


def test_a_template_that_writes_the_start_token():
    model, tokenizer = zoo.load("sva-llama")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}\n{% endif %}"
    )
    messages = [{"role": "user", "content": TEXT}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for given in (messages, rendered):
        tokens = explain(model, tokenizer, given).tokens
        assert tokens.count("<s>") == 1, tokens
        assert LLMRelevance(AttnLRPx(model), tokenizer).attribute(given, "are").input_tokens == (
            list(tokens)
        )


def test_generated_text_takes_a_first_token(chat):
    model, tokenizer = chat
    llm = LLMRelevance(AttnLRPx(model), tokenizer)
    plain = llm.attribute("Is 7 prime", target="Yes")
    longer = llm.attribute("Is 7 prime", target="Yes", first_token="<s>")
    assert longer.input_tokens == ["<s>", *plain.input_tokens]
    assert longer.continuation_ids.tolist() == plain.continuation_ids.tolist()


# Ids and encodings ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.names())
def test_ids_in_every_form_are_the_same(loaded, name):
    model, tokenizer = loaded[name]
    text = "the keys to the cabinet [MASK]" if name == "sva-bert" else TEXT
    plain = explain(model, tokenizer, text, Target("are", contrast="is"))
    padded = tokenizer(text, return_tensors="pt", padding="max_length", max_length=20)
    ids = tokenizer(text).input_ids
    for given in (
        ids,
        tuple(ids),
        torch.tensor(ids),
        torch.tensor([ids]),
        torch.tensor(ids).numpy(),
        tokenizer(text),
        tokenizer(text, return_tensors="pt", return_offsets_mapping=True),
        padded,
        dict(padded),
        {"input_ids": [ids]},
    ):
        found = explain(model, tokenizer, given, Target("are", contrast="is"))
        assert found.ids == plain.ids
        assert found.relevances == plain.relevances
        assert found.target == plain.target
        assert found.labels == plain.labels
        assert found.words().relevances == plain.words().relevances


@pytest.mark.parametrize(
    "text", ["the ☃ 日本 keys", "🍕👩‍👩‍👧 the", "don't\n\nun-lock  it", "é e\u0301"]
)
@pytest.mark.parametrize("name", ["sva-gpt2", "sva-llama"])
def test_the_text_of_ids_is_the_one_that_they_came_from(loaded, name, text):
    model, tokenizer = loaded[name]
    plain = encode(model, tokenizer, text)
    found = encode(model, tokenizer, list(plain.ids))
    assert found.text.removeprefix(plain.tokens[0]).strip() == text
    labels = [[each.text[a:b].strip() for a, b in each.offsets[1:]] for each in (found, plain)]
    for ours, theirs in zip(*labels, strict=True):
        assert ours in ("", theirs), "a blank that is a token of its own has its own place here"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["the keys", "the author"], TypeError, "a pair as a tuple of two.*ask_batch"),
        (3, TypeError, "chat messages, token ids"),
        (None, TypeError, "chat messages, token ids"),
        ([], ValueError, "empty"),
        (("the keys", " "), ValueError, "empty"),
        ([[3, 4], [5, 6]], ValueError, "one text is explained at a time"),
        ([3.5], ValueError, "must be integers"),
        ([3, 10**6], ValueError, "tokenizer that belongs to the model"),
        ([-1], ValueError, "tokenizer that belongs to the model"),
        ({"text": "the keys"}, TypeError, "must have `input_ids`"),
        ({"input_ids": [3, 4], "position_ids": [0, 1]}, ValueError, "position_ids cannot be"),
        ({"input_ids": [3, 4], "attention_mask": [1]}, ValueError, "2 token ids, but 1 entries"),
    ],
)
def test_what_cannot_be_read_is_refused(loaded, given, error, message):
    for name in ("sva-gpt2", "sva-bert"):
        with pytest.raises(error, match=message):
            explain(*loaded[name], given, "are")


def test_ids_of_a_masked_model_need_one_mask(loaded):
    model, tokenizer = loaded["sva-bert"]
    for text, count in (("the keys", 0), ("the [MASK] [MASK]", 2)):
        ids = tokenizer(text).input_ids
        with pytest.raises(ValueError, match=f"have {count} mask tokens"):
            explain(model, tokenizer, ids, "are")
        assert explain(model, tokenizer, ids, Target("are", position=2)).position == 2


# Long texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sva-gpt2", "sva-llama"])
def test_a_causal_model_keeps_start_token_and_end(loaded, name):
    model, tokenizer = loaded[name]
    text = f"{'the keys ' * 100}to the cabinet"
    for given in (text, tokenizer(text, verbose=False).input_ids):
        with pytest.raises(ValueError, match=r"takes at most 64: .*`truncate=True`"):
            explain(model, tokenizer, given, "are")
        found = explain(model, tokenizer, given, "are", truncate=True)
        assert len(found.ids) == 64
        assert found.tokens[0] == tokenizer.bos_token
        assert found.labels[-3:] == ("to", "the", "cabinet")
        short = explain(model, tokenizer, given, "are", truncate=5)
        expected = explain(model, tokenizer, "keys to the cabinet", "are")
        assert (short.ids, short.relevances) == (expected.ids, expected.relevances)
        assert short.text.strip() == "keys to the cabinet", "the record has what the model saw"


def test_others_keep_beginning_special_tokens_and_mask(bert, loaded):
    tokenizer, config = bert
    model = tiny("bert", "sequence", **config)
    text = "the keys to the cabinet"
    found = explain(model, tokenizer, text, 1, truncate=5)
    assert found.tokens == ("[CLS]", "the", "keys", "to", "[SEP]")
    masked = loaded["sva-bert"][0]
    for text, tokens in [
        ("the keys [MASK] old and red", "[CLS] the keys [MASK] old [SEP]"),
        ("the red keys of the man [MASK] old", "[CLS] of the man [MASK] [SEP]"),
        ("the red keys of the man", "[CLS] of the man [MASK] [SEP]"),
    ]:
        found = explain(masked, tokenizer, text, "are", truncate=len(tokens.split()))
        assert " ".join(found.tokens) == tokens
        assert found.tokens[found.position] == "[MASK]"
    qa = tiny("bert", "qa", **config)
    found = explain(qa, tokenizer, PAIR, "author", truncate=7)
    assert found.tokens == ("[CLS]", "the", "keys", "[SEP]", "the", "author", "[SEP]")
    with pytest.raises(ValueError, match="cannot be cut to 4"):
        explain(qa, tokenizer, PAIR, 1, truncate=4)


def test_a_text_that_fits_is_not_cut(loaded):
    for name in zoo.names():
        plain = explain(*loaded[name], TEXT, "are")
        assert explain(*loaded[name], TEXT, "are", truncate=True) == plain
        assert explain(*loaded[name], TEXT, "are", truncate=64) == plain
