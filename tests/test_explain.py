"""``explain()`` and Target on the embedded models: from a text to relevances of its tokens."""

import pytest
import torch
from models import tiny

from captum_lrpx import AttnLRPx, LogitDifference, Target, TokenLogits, explain, zoo
from captum_lrpx.explanation import Explanation
from captum_lrpx.targets import encode

TEXT = "the keys to the cabinet"
MODELS = zoo.names()
CAUSAL = [name for name in MODELS if "bert" not in name]


@pytest.fixture(scope="module")
def loaded():
    return {name: zoo.load(name) for name in MODELS}


@pytest.mark.parametrize("method", ["lrpx", "attnlrpx"])
@pytest.mark.parametrize("name", MODELS)
def test_an_explanation_adds_up(loaded, name, method):
    model, tokenizer = loaded[name]
    result = explain(model, tokenizer, TEXT, Target("are", contrast="is"), method=method)
    assert len(result.tokens) == len(result.relevances) == len(result.ids)
    assert result.value == pytest.approx(result.sum + result.delta)
    assert result.value > 0, "the model prefers the plural verb"
    assert result.method == method
    assert [result.text[a:b] for a, b in result.offsets if b > a][:5] == TEXT.split()
    assert set(result.versions) == {"captum_lrpx", "torch", "transformers", "captum"}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_attribution_of_the_forward_module(loaded, name):
    model, tokenizer = loaded[name]
    encoding = encode(model, tokenizer, TEXT)
    ids = torch.tensor([encoding.ids])
    good, bad = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(f"{TEXT} are is"))[-2:]
    position = ids[0].tolist().index(tokenizer.mask_token_id) if name == "sva-bert" else -1
    expected = AttnLRPx(LogitDifference(model)).attribute(
        ids, additional_forward_args=(None, good, bad, position)
    )
    result = explain(model, tokenizer, TEXT, Target("are", contrast="is"))
    torch.testing.assert_close(torch.tensor(result.relevances), expected[0], check_dtype=False)
    single = explain(model, tokenizer, TEXT, "are")
    logit = TokenLogits(model)(ids, None, position)[0, good]
    assert single.value == pytest.approx(logit.item(), rel=1e-5)


def test_a_masked_model_is_explained_at_its_mask(loaded):
    model, tokenizer = loaded["sva-bert"]
    appended = explain(model, tokenizer, TEXT, "are")
    assert appended.text == f"{TEXT} [MASK]"
    assert appended.tokens[appended.position] == "[MASK]"
    inside = explain(model, tokenizer, f"{TEXT} [MASK] red .", "are")
    assert inside.tokens[inside.position] == "[MASK]"
    assert inside.position == appended.position
    with pytest.raises(ValueError, match="2 mask tokens"):
        explain(model, tokenizer, "the [MASK] [MASK]", "are")


def test_a_position_can_be_chosen(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    encoding = encode(model, tokenizer, TEXT)
    result = explain(model, tokenizer, TEXT, Target("to", position=-4))
    assert result.position == len(encoding.ids) - 4
    with pytest.raises(IndexError, match="out of range"):
        explain(model, tokenizer, TEXT, Target("to", position=99))


def test_token_ids_as_targets(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    word = explain(model, tokenizer, TEXT, "are")
    number = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(f"{TEXT} are"))[-1]
    assert explain(model, tokenizer, TEXT, number).relevances == word.relevances
    with pytest.raises(IndexError, match="out of range for a vocabulary"):
        explain(model, tokenizer, TEXT, 10**6)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_first_token_can_be_put_in_front(loaded, name):
    model, tokenizer = loaded[name]
    plain = explain(model, tokenizer, TEXT, "are", certify=False)
    longer = explain(model, tokenizer, TEXT, "are", first_token=plain.tokens[2])
    assert longer.ids[1:] == plain.ids
    assert longer.special[0]
    same = explain(model, tokenizer, TEXT, "are", first_token=plain.tokens[0], certify=False)
    assert same == plain, "it is there already"
    with pytest.raises(ValueError, match="no token 'nope'"):
        explain(model, tokenizer, TEXT, "are", first_token="nope")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", "are", "empty"),
        ("  \n", "are", "empty"),
        (TEXT, "", "target word is empty"),
        (TEXT, "antidisestablishment", "tokens"),
        (" ".join(["the keys"] * 100), "are", "takes at most"),
    ],
)
def test_texts_and_targets_that_cannot_be_used(loaded, name, text, target, message):
    model, tokenizer = loaded[name]
    with pytest.raises(ValueError, match=message):
        explain(model, tokenizer, text, target)


def test_an_unknown_method(loaded):
    with pytest.raises(ValueError, match=r"Unknown method 'magic'; known are lrpx, attnlrpx"):
        explain(*loaded["sva-gpt2"], TEXT, "are", method="magic")


def test_a_tokenizer_without_offsets(loaded):
    model, tokenizer = loaded["sva-gpt2"]

    class Slow:
        is_fast = False
        convert_ids_to_tokens = tokenizer.convert_ids_to_tokens

    with pytest.raises(ValueError, match="fast"):
        explain(model, Slow(), TEXT, "are")


def test_a_model_without_a_head(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    with pytest.raises(ValueError, match="no prediction head"):
        explain(model.transformer, tokenizer, TEXT, "are")


def with_vocabulary(head, tokenizer):
    model = tiny("bert", head=head, dtype=torch.float32, max_position_embeddings=64)
    model.resize_token_embeddings(len(tokenizer))
    return model


def test_classes(loaded):
    _, tokenizer = loaded["sva-bert"]
    model = with_vocabulary("sequence", tokenizer)
    result = explain(model, tokenizer, TEXT, "LABEL_1")
    assert result.relevances == explain(model, tokenizer, TEXT, 1).relevances
    assert result.position is None
    with pytest.raises(ValueError, match="LABEL_0, LABEL_1, LABEL_2"):
        explain(model, tokenizer, TEXT, "POSITIVE")
    with pytest.raises(IndexError, match="3 classes"):
        explain(model, tokenizer, TEXT, 3)
    other = explain(model, tokenizer, TEXT, "LABEL_0")
    contrast = explain(model, tokenizer, TEXT, Target("LABEL_1", contrast="LABEL_0"))
    assert contrast.value == pytest.approx(result.value - other.value, abs=1e-5)
    assert contrast.relevances == pytest.approx(
        [one - two for one, two in zip(result.relevances, other.relevances, strict=True)], abs=1e-4
    )


def test_classes_of_tokens(loaded):
    _, tokenizer = loaded["sva-bert"]
    model = with_vocabulary("token", tokenizer)
    assert explain(model, tokenizer, TEXT, Target("LABEL_1", position=2)).position == 2


def test_answers(loaded):
    _, tokenizer = loaded["sva-bert"]
    model = with_vocabulary("qa", tokenizer)
    start = explain(model, tokenizer, TEXT, Target(2))
    end = explain(model, tokenizer, TEXT, Target(2, end="end"))
    assert start.value != end.value
    with pytest.raises(IndexError):
        explain(model, tokenizer, TEXT, 99)


def test_explanations_are_records(loaded):
    result = explain(*loaded["sva-llama"], TEXT, "are", model_name="mine")
    assert isinstance(result, Explanation)
    assert result.model == "mine"
    assert result.dtype == "float32"
    assert result.options == {}
    assert result.convergence_delta == pytest.approx(result.delta, abs=1e-5)
    assert result.revision is None


def test_the_revision_of_a_model_from_the_hub(loaded, monkeypatch):
    model, tokenizer = loaded["sva-gpt2"]
    monkeypatch.setattr(model.config, "_commit_hash", "abc", raising=False)
    assert explain(model, tokenizer, TEXT, "are").revision == "abc"
