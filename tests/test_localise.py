"""Pairs of texts as files and tokens, and the table of estimates against measured effects."""

import json
import re

import pytest
import torch

from captum_lrpx import LRP, LRP_UNIFORM_GATE, ActivationPatching, RelevancePatching, zoo
from captum_lrpx.cli import main
from captum_lrpx.components.localise import KINDS, layers_of, localise
from captum_lrpx.components.pairs import read_pairs, tokenized
from captum_lrpx.metrics import agreement
from captum_lrpx.targets import TokenSum

KEYS = [
    ("the keys to the cabinet", "the key to the cabinet", "are", "is"),
    ("the dog near the trees", "the dogs near the trees", "is", "are"),
    ("the dogs near the tree", "the dog near the tree", ["are", "were"], ["is", "was"]),
]


@pytest.fixture(scope="module")
def loaded():
    return zoo.load("sva-llama")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "agreement.jsonl"
    names = ("clean", "corrupted", "good", "bad")
    lines = [json.dumps(dict(zip(names, _spaced(each), strict=True))) for each in KEYS]
    path.write_text("\n".join(lines) + "\n\n")
    return path


def _spaced(pair):
    def spaced(words):
        return f" {words}" if isinstance(words, str) else [f" {word}" for word in words]

    return (*pair[:2], spaced(pair[2]), spaced(pair[3]))


def pairs_of(file, tokenizer, **options):
    return tokenized(read_pairs(file), tokenizer, **options)


def test_a_pair_is_two_texts_of_one_length_and_the_tokens_between_which_they_decide(file, loaded):
    model, tokenizer = loaded
    pairs = pairs_of(file, tokenizer)
    assert [pair.number for pair in pairs] == [0, 1, 2]
    for pair, (clean, _, good, bad) in zip(pairs, KEYS, strict=True):
        assert pair.clean.equal(tokenizer(clean, return_tensors="pt").input_ids)
        words = [good, bad] if isinstance(good, str) else [*good, *bad]
        assert tokenizer.convert_ids_to_tokens(pair.tokens[0]) == [f"▁{word}" for word in words]
        assert pair.weights.sum() == 0
        assert pair.weights.abs().sum() == 2
        value = TokenSum(model)(pair.clean, None, pair.tokens, None, pair.weights)
        logits = model(pair.clean).logits[0, -1]
        half = len(words) // 2
        expected = logits[pair.tokens[0, :half]].mean() - logits[pair.tokens[0, half:]].mean()
        torch.testing.assert_close(value[0], expected)
        assert pair.clean[0, : pair.first_difference].equal(
            pair.corrupted[0, : pair.first_difference]
        )


def test_public_files_are_read(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [
        {
            "clean_prefix": "The kids near the bikes",
            "patch_prefix": "The kid near the bikes",
            "clean_answer": " do",
            "patch_answer": " does",
            "case": "plural_plural",
        },
        {
            "clean": "Ann and Bob sat down. Ann gave tea to",
            "corrupted": "Ann and Bob sat down. Tom gave tea to",
            "corrupted_hard": "Ann and Bob sat down. Bob gave tea to",
        },
        {
            "clean": "It lasted from the year 1352 to the year 13",
            "corrupted": "It lasted from the year 1301 to the year 13",
            "label": "52",
        },
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    agreement_, person, year = read_pairs(path)
    content = path.read_text(encoding="utf-8")
    path.write_text("\ufeff" + content.replace("\n", "\r\n"), encoding="utf-8")
    assert read_pairs(path) == [agreement_, person, year]
    texts = {"clean": "a\u2028b\x85", "corrupted": "c\u2029d\x85", "good": " e", "bad": " f"}
    path.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    (pair,) = read_pairs(path)
    assert (pair.clean, pair.corrupted) == (texts["clean"], texts["corrupted"])
    assert (agreement_.good, agreement_.bad) == ((" do",), (" does",))
    assert (person.good, person.bad) == ((" Bob",), (" Ann",))
    assert person.corrupted.endswith("Bob gave tea to")
    (pair,) = tokenized([year], Digits())
    assert pair.tokens[0].tolist() == [ord(each) for each in "678901234"]
    assert pair.weights[0, :4].tolist() == [0.25] * 4
    (pair,) = tokenized([year], Digits(together=True))
    assert pair.tokens.shape == (1, 47 + 52)


class Digits:
    """A tokenizer of characters, or one that takes the last two digits together."""

    def __init__(self, *, together=False):
        self.together = together

    def __call__(self, text, **_):
        parts = re.findall(r"\d\d|.", text) if self.together else list(text)
        return type("Encoding", (), {"input_ids": [hash_of(part) for part in parts]})


def hash_of(part):
    return ord(part) if len(part) == 1 else 1000 + int(part)


def test_pairs_that_do_not_fit_are_left_out(file, loaded):
    _, tokenizer = loaded
    names = ("clean", "corrupted", "good", "bad")
    wrong = [
        ("the keys to the cabinet", "the key", " are", " is"),  # other lengths
        ("the keys", "the keys", " are", " is"),  # no difference
        ("the keys", "the key", " are are", " is"),  # no single token
    ]
    with file.open("a") as opened:
        opened.writelines(f"{json.dumps(dict(zip(names, each, strict=True)))}\n" for each in wrong)
    assert len(pairs_of(file, tokenizer)) == len(KEYS)
    assert len(pairs_of(file, tokenizer, number=2)) == 2


def test_the_table_is_the_agreement_of_the_two_kinds_of_patching(file, loaded):
    model, tokenizer = loaded
    pairs = pairs_of(file, tokenizer, number=1)
    recipes = {"lrp": LRP, "uniform": LRP_UNIFORM_GATE}
    found = localise(model, pairs, recipes, {"residual": None, "heads": None})
    blocks = list(model.model.layers)
    asked = {
        "additional_forward_args": (None, pairs[0].tokens, None, pairs[0].weights),
        "by": "token",
    }
    for row, texts in enumerate([(pairs[0].clean, pairs[0].corrupted)] * 2):
        given = texts if row == 0 else texts[::-1]
        forward = TokenSum(model)
        effects = ActivationPatching(forward, blocks).attribute(*given, **asked)
        estimates = RelevancePatching(forward, blocks, recipe=LRP).attribute(*given, **asked)
        start = pairs[0].first_difference
        expected = agreement(
            [each[:, start:] for each in estimates], [each[:, start:] for each in effects]
        )
        close = {"rtol": 0, "atol": 1e-4}
        torch.testing.assert_close(
            found.found["residual", "lrp"].pearson[row], expected.pearson[0], **close
        )
    assert found.found["heads", "uniform"].spearman.shape == (2,)
    assert found.of_task("agreement").tasks["heads"] == ["agreement"] * 2


def test_a_share_of_the_nodes_is_measured(file, loaded):
    model, tokenizer = loaded
    pairs = pairs_of(file, tokenizer, number=1)
    half = localise(model, pairs, {"lrp": LRP}, {"residual": None}, share=0.5)
    whole = localise(model, pairs, {"lrp": LRP}, {"residual": None})
    assert not half.found["residual", "lrp"].pearson.equal(whole.found["residual", "lrp"].pearson)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share of the nodes"):
            localise(model, pairs, {"lrp": LRP}, {"residual": None}, share=share)


def test_a_run_that_was_stopped_goes_on(file, loaded, tmp_path, monkeypatch):
    model, tokenizer = loaded
    pairs = pairs_of(file, tokenizer)
    whole = localise(model, pairs, {"lrp": LRP}, {"mlp": None})
    run = {"recipes": {"lrp": LRP}, "kinds": {"mlp": None}, "output": tmp_path / "run"}
    calls = []
    original = ActivationPatching.attribute

    def stops(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ActivationPatching, "attribute", stops)
    with pytest.raises(KeyboardInterrupt):
        localise(model, pairs, **run)
    with pytest.raises(ValueError, match="resume"):
        localise(model, pairs, **run)
    found = localise(model, pairs, **run, resume=True)
    assert len(calls) == 1 + 2 * len(pairs), "what had been finished is not done again"
    torch.testing.assert_close(
        found.found["mlp", "lrp"].pearson, whole.found["mlp", "lrp"].pearson, rtol=0, atol=1e-4
    )
    assert found.groups["mlp"].tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="holds another run"):
        localise(model, pairs, {"lrp": LRP}, {"heads": None}, output=run["output"], resume=True)


def test_layers_are_found_by_their_usual_names(loaded):
    for name in zoo.names():
        model, _ = zoo.load(name)
        blocks = model.config.num_hidden_layers
        for kind in ("heads", "attention", "residual"):
            assert len(layers_of(model, kind)) == blocks, (name, kind)
    model, _ = loaded
    assert layers_of(model, "mlp", r".*\.down_proj") == [
        block.mlp.down_proj for block in model.model.layers
    ]
    with pytest.raises(ValueError, match="Kinds of nodes are"):
        layers_of(model, "head")
    with pytest.raises(ValueError, match="regular expression of the paths"):
        layers_of(torch.nn.Linear(2, 2), "mlp")


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_the_command(file, capsys, form):
    kinds = [kind for kind in KINDS if kind != "experts"]
    command = ["localise", str(file), "--model", "sva-llama", "--nodes", *kinds]
    assert main([*command, "--neurons", "2", "--number", "1", "--format", form]) == 0
    printed = capsys.readouterr().out
    assert "right both times in 1 of 1 pairs" in printed
    for kind in kinds:
        assert re.search(rf"{kind}\W+lrp-mirrored-gate\W+-?\d\.\d\d \[", printed), kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "head"], "no kind of node 'head' (did you mean 'heads'"),
        (["--recipes", "lpr"], "no recipe 'lpr' (did you mean 'lrp'"),
        (["--nodes", r"mlp=nothing"], "matches 'nothing'"),
    ],
)
def test_wrong_options(file, capsys, options, message):
    assert main(["localise", str(file), "--model", "sva-llama", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_something_else(tmp_path, capsys):
    path = tmp_path / "other.jsonl"
    path.write_text('{"clean": "a"}\n')
    assert main(["localise", str(path), "--model", "sva-llama"]) == 2
    assert "line 1: no pair of texts" in capsys.readouterr().err
