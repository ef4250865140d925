"""The shipped models: that they load, know agreement, and can be trained again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import zoo_accuracy
import zoo_train
from zoo_models import MAX_LENGTH, RECIPES, learn_merges

from captum_lrpx import zoo
from captum_lrpx.loading import load_model
from captum_lrpx.sva import generate, lexicon


@pytest.fixture(scope="module", params=zoo.names())
def loaded(request):
    return request.param, *zoo.load(request.param)


@pytest.fixture
def _torch_settings():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=False)


def token_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_names():
    assert set(zoo.names()) == {"sva-bert", "sva-gpt2", "sva-llama"} == set(RECIPES)
    assert zoo.DEFAULT in zoo.names()


def test_unknown_name():
    for function in (zoo.path, zoo.load):
        with pytest.raises(ValueError, match=r"unknown model 'bert'.*sva-bert, sva-gpt2"):
            function("bert")


def test_models_load(loaded):
    name, model, tokenizer = loaded
    assert not model.training
    assert model.config.model_type == name.removeprefix("sva-")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings == MAX_LENGTH == tokenizer.model_max_length
    assert tokenizer.pad_token is not None
    assert tokenizer.pad_token_id == model.config.pad_token_id
    assert tokenizer.padding_side == "right"


def test_files_are_small(loaded):
    name, *_ = loaded
    sizes = {file.name: file.stat().st_size for file in zoo.path(name).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.json"} <= set(sizes)
    assert sum(sizes.values()) < 1_500_000


def test_llama_groups_its_queries():
    model, _ = zoo.load("sva-llama")
    assert model.config.num_key_value_heads < model.config.num_attention_heads


def test_words_are_single_tokens(loaded):
    _, _, tokenizer = loaded
    ids = {word: token_ids(tokenizer, word) for word in lexicon.words()}
    assert all(len(tokens) == 1 for tokens in ids.values())
    assert len({tokens[0] for tokens in ids.values()}) == len(ids)
    # The same tokens stand for the words within a text.
    for sample in generate(50, "test", 0):
        words = sample.sentence.split()
        assert token_ids(tokenizer, sample.sentence) == [ids[word][0] for word in words]


def test_other_words_fall_apart(loaded):
    _, _, tokenizer = loaded
    for text in ("keyboards", "zebra", "wéird", "日本"):
        ids = token_ids(tokenizer, text)
        assert len(ids) > 1 or tokenizer.unk_token_id in ids
    assert len(token_ids(tokenizer, "keyboards")) > 1
    assert tokenizer.unk_token_id not in token_ids(tokenizer, "zebra 7 keyboards !")


def test_special_tokens_are_those_of_the_training():
    text = "the keys"
    for name, first, last in (
        ("sva-bert", "[CLS]", "[SEP]"),
        ("sva-gpt2", "<|endoftext|>", None),
        ("sva-llama", "<s>", None),
    ):
        _, tokenizer = zoo.load(name)
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert tokens[0] == first
        assert len(tokens) == (3 if last is None else 4)
        assert last is None or tokens[-1] == last


def test_offsets_cover_the_words(loaded):
    _, _, tokenizer = loaded
    sample = generate(1, "test", 0)[0]
    encoded = tokenizer(sample.sentence)
    verb = encoded.char_to_token(sample.verb_span[0])
    assert encoded["input_ids"][verb] == token_ids(tokenizer, sample.verb)[0]


def test_agreement_on_held_out_sentences(loaded):
    _, model, tokenizer = loaded
    samples = generate(300, "test", 42)
    for view in zoo_accuracy.views(tokenizer).values():
        assert zoo_accuracy.accuracy(model, tokenizer, samples, view) >= 0.97


def test_the_keys_to_the_cabinet(loaded):
    _, model, tokenizer = loaded
    mask = f" {tokenizer.mask_token}" if tokenizer.mask_token else ""
    encoded = tokenizer("the keys to the cabinet" + mask, return_tensors="pt")
    # The cabinet, or the mask: the last token but for a closing [SEP].
    position = -2 if mask else -1
    with torch.no_grad():
        logits = model(**encoded).logits[0, position]
    plural, singular = (token_ids(tokenizer, word)[0] for word in ("are", "is"))
    assert logits[plural] > logits[singular]


def test_the_subject_decides(loaded):
    _, model, tokenizer = loaded
    forms = {noun.singular: noun.plural for noun in lexicon.NOUNS}
    forms |= {plural: singular for singular, plural in forms.items()}
    changed = []
    for sample in generate(300, "test", 8):
        (start, end), verb = sample.evidence[0], sample.verb_span[0]
        # The verb of a subject relative clause would contradict the changed subject.
        if set(sample.prefix.split()) & set(lexicon.RELATIVES):
            continue
        subject = forms[sample.sentence[start:end]]
        shift = len(subject) - (end - start)
        changed.append(
            replace(
                sample,
                sentence=sample.sentence[:start] + subject + sample.sentence[end:],
                evidence=((start, end + shift),),
                verb_span=(verb + shift, verb + shift + len(sample.verb)),
            )
        )
    assert len(changed) > 50
    for view in zoo_accuracy.views(tokenizer).values():
        assert zoo_accuracy.accuracy(model, tokenizer, changed, view) <= 0.03


def test_padding_changes_nothing(loaded):
    _, model, tokenizer = loaded
    short = tokenizer("the keys are", return_tensors="pt")
    padded = tokenizer("the keys are", return_tensors="pt", padding="max_length", max_length=20)
    with torch.no_grad():
        expected = model(**short).logits[0]
        actual = model(**padded).logits[0, : len(expected)]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_record_of_the_training(loaded):
    name, model, _ = loaded
    record = json.loads((zoo.path(name) / "training.json").read_text("utf-8"))
    recipe = RECIPES[name]
    for key, value in record["recipe"].items():
        assert getattr(recipe, key) == value
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert set(record["versions"]) == {"torch", "transformers"}
    rows = record["accuracy"]["by_view_and_attractors"].values()
    assert all(value >= 0.97 for row in rows for value in row.values())


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.usefixtures("_torch_settings")
def test_training_is_deterministic(name, tmp_path, capsys):
    for folder in ("a", "b"):
        arguments = [name, "--output", str(tmp_path / folder), "--steps", "3", "-n", "5", "--quiet"]
        assert zoo_train.main(arguments) == 0
        assert "written to" in capsys.readouterr().out
    first, second = (tmp_path / folder for folder in ("a", "b"))
    files = sorted(file.name for file in first.iterdir())
    assert files == sorted(file.name for file in zoo.path(name).iterdir())
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)
    loaded = load_model(str(first))
    model, tokenizer = loaded.model, loaded.tokenizer
    with torch.no_grad():
        logits = model(**tokenizer("the keys", return_tensors="pt")).logits
    assert logits.isfinite().all()


@pytest.mark.usefixtures("_torch_settings")
def test_training_replaces_older_files(tmp_path):
    (tmp_path / "config.json").write_text("old", "utf-8")
    arguments = ["sva-bert", "--output", str(tmp_path), "--steps", "1", "-n", "1", "--quiet"]
    zoo_train.main(arguments)
    assert "old" not in (tmp_path / "config.json").read_text("utf-8")


@pytest.mark.parametrize(
    "arguments",
    [["sva-bert"], ["bert", "--output", "x"], ["sva-bert", "--output", "x", "--steps", "0"]],
)
def test_training_refuses(arguments):
    with pytest.raises(SystemExit):
        zoo_train.main(arguments)


def test_evaluation_prints_a_table(capsys):
    assert zoo_accuracy.main(["sva-gpt2", "-n", "20"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["model", "sees", "1", "2", "3"]
    assert row.split()[0] == "sva-gpt2"
    assert all(value.endswith("%") for value in row.split()[2:])


def test_evaluation_of_a_folder(capsys):
    assert zoo_accuracy.main(["--folder", str(zoo.path("sva-bert")), "-n", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["sva-bert"] * 3


def test_evaluation_refuses():
    with pytest.raises(SystemExit):
        zoo_accuracy.main(["-n", "0"])
    with pytest.raises(ValueError, match="unknown model"):
        zoo_accuracy.main(["bert"])
    model, tokenizer = zoo.load("sva-gpt2")
    with pytest.raises(ValueError, match="at least one sample"):
        zoo_accuracy.accuracy(model, tokenizer, [], zoo_accuracy.CAUSAL_VIEWS["prefix"])


def test_merges_end_in_single_tokens():
    assert learn_merges(["ab", "abc"]) == [("a", "b"), ("ab", "c")]
    assert learn_merges(["aaa"]) == [("a", "a"), ("aa", "a")]
    assert learn_merges([]) == []
