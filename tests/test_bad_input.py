"""Whatever is given: a clear error or a correct result, and nothing is changed.

Errors from the depths are those of Python's own mistakes: ``AttributeError``, ``KeyError``,
``struct.error`` and the like. ``ValueError`` and its relatives are raised on purpose.
"""

import json
import os
import shutil
import warnings

import pytest
import torch
from models import tiny, token_ids
from state import snapshot

from captum_lrpx import (
    ALTILogit,
    AttentionRollout,
    AttnLRPx,
    Explanation,
    InformationFlow,
    LayerLRPx,
    LRPx,
    NeuronLRPx,
    RandomAttribution,
    Target,
    cli,
    explain,
    zoo,
)
from captum_lrpx.loading import load_model
from captum_lrpx.sva.samples import read_jsonl

ON_PURPOSE = (
    AssertionError,
    ImportError,
    IndexError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
IDS = token_ids(2, 5)
TARGET = (-1, 7)
TEXT = "the keys to the cabinet"
ESCAPES = "\x1b[31mred\x1b[0m\x07\x9b2J"


def norm_of(model):
    return [each for each in model.modules() if type(each).__name__.endswith("Norm")][-1]


METHODS = {
    "LRPx": lambda model, inputs, target, args: LRPx(model).attribute(inputs, target, args),
    "AttnLRPx": lambda model, inputs, target, args: AttnLRPx(model).attribute(inputs, target, args),
    "ALTILogit": lambda model, inputs, target, args: ALTILogit(model).attribute(
        inputs, target, args
    ),
    "LayerLRPx": lambda model, inputs, target, args: LayerLRPx(model, norm_of(model)).attribute(
        inputs, target, args
    ),
    "NeuronLRPx": lambda model, inputs, target, args: NeuronLRPx(model, norm_of(model)).attribute(
        inputs, (2, 1) if target == TARGET else target, args
    ),
    "AttentionRollout": lambda model, inputs, target, args: AttentionRollout(model).attribute(
        inputs, target, args
    ),
    "InformationFlow": lambda model, inputs, target, args: InformationFlow(model).attribute(
        inputs, target, args
    ),
    "RandomAttribution": lambda model, inputs, _target, _args: RandomAttribution(model).attribute(
        inputs
    ),
}


def bad_inputs(model):
    embeds = model.get_input_embeddings()(IDS).detach()
    return {
        "a string": "abc",
        "None": None,
        "a list": [1, 2],
        "a number": 3,
        "an empty tuple": (),
        "a tuple of None": (None,),
        "a tuple of strings": ("a",),
        "a dictionary": {"input_ids": IDS},
        "numpy": IDS.numpy(),
        "floating ids": IDS.float(),
        "boolean ids": IDS.bool(),
        "ids of a byte": IDS.to(torch.uint8),
        "complex": embeds.to(torch.complex64),
        "sparse": embeds.to_sparse(),
        "quantized ids": IDS.to(torch.int8),
        "one dimension": IDS[0],
        "no dimension": torch.tensor(3),
        "three dimensions of ids": IDS[None],
        "four dimensions": embeds[None],
        "no examples": IDS[:0],
        "no tokens": IDS[:, :0],
        "ids out of the vocabulary": IDS + 100,
        "negative ids": IDS - 100,
        "ids without values": IDS.to("meta"),
        "embeddings without values": embeds.to("meta"),
        "another precision": embeds.double(),
        "too narrow": embeds[..., :3],
        "too long": token_ids(1, 60),
        "not a number": embeds * float("nan"),
        "two ids": (IDS, IDS),
        "two embeddings": (embeds, embeds),
    }


BAD_TARGETS = {
    "none": None,
    "a word": "are",
    "a float": 1.5,
    "out of range": (0, 10**6),
    "too many": (0, 1, 2),
    "too few of them": [(0, 1)],
    "floats": torch.tensor([1.5, 2.0]),
    "a matrix": torch.zeros(2, 2, dtype=torch.long),
    "a dictionary": {"target": 1},
    "a set": {1},
    "words": ["a", "b"],
    "a huge number": 10**30,
}
BAD_ARGUMENTS = {
    "a word": "x",
    "a number": 3,
    "a tuple of words": ("x",),
    "a list": [[1, 1, 1, 1, 1]],
    "too many": tuple(torch.ones(2, 5) for _ in range(30)),
    "without values": torch.ones(2, 5, device="meta"),
    "of other examples": torch.ones(3, 5),
}


def assert_clear(model, call):
    """The call returns something, or raises an error of a kind that is raised on purpose."""
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except ON_PURPOSE as error:
            assert str(error)  # noqa: PT017
    assert snapshot(model) == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_attribute(family, method):
    model = tiny(family, dtype=torch.float32)
    for inputs in bad_inputs(model).values():
        assert_clear(model, lambda inputs=inputs: METHODS[method](model, inputs, TARGET, None))
    for target in BAD_TARGETS.values():
        assert_clear(model, lambda target=target: METHODS[method](model, IDS, target, None))
    for argument in BAD_ARGUMENTS.values():
        given = argument if isinstance(argument, tuple) else (argument,)
        for args in (given, (None, *given)):
            assert_clear(model, lambda args=args: METHODS[method](model, IDS, TARGET, args))


@pytest.mark.parametrize("method", ["LRPx", "ALTILogit", "LayerLRPx", "NeuronLRPx"])
@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ("abc", AssertionError, "must be a torch.Tensor"),
        (None, AssertionError, "must be a torch.Tensor"),
        ((), AssertionError, "must be a torch.Tensor"),
        (("a",), AssertionError, "must be a torch.Tensor"),
        (IDS.to("meta"), ValueError, 'on the device "meta"'),
    ],
)
def test_what_is_no_input_is_refused(method, inputs, error, message):
    with pytest.raises(error, match=message):
        METHODS[method](tiny("bert"), inputs, TARGET, None)


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_a_mask_in_the_place_of_the_cache_is_refused(family):
    model, mask = tiny(family), torch.ones_like(IDS)
    with pytest.raises(ValueError, match=r"Argument 2 of .* is `past_key_values`"):
        LRPx(model).attribute(IDS, TARGET, mask)
    assert LRPx(model).attribute(IDS, TARGET, (None, mask)).shape == IDS.shape


def test_a_mask_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="Argument 2 of BertForMaskedLM is `attention_mask`"):
        LRPx(tiny("bert")).attribute(IDS, TARGET, ("x",))


# Texts and targets --------------------------------------------------------------------------------

TEXTS = ["", " ", "\0", "\ud800", ESCAPES, "<b>", "a" * 5000, "🦄" * 30, "[MASK] [MASK]", None, 3]
TARGETS = ["", " ", "two words", "\ud800", ESCAPES, "🦄", -1, 10**9, 1.5, None, (), ("are", 10**9)]


@pytest.mark.parametrize("name", zoo.names())
def test_explain(name):
    model, tokenizer = zoo.load(name)
    for text in TEXTS:
        assert_clear(model, lambda text=text: explain(model, tokenizer, text, "are"))
    for target in TARGETS:
        assert_clear(model, lambda target=target: explain(model, tokenizer, TEXT, Target(target)))
    for position in (-100, 100, 1.5, "1"):
        call = Target("are", position=position)
        assert_clear(model, lambda call=call: explain(model, tokenizer, TEXT, call))


def test_control_characters_reach_neither_terminal_nor_page(capsys):
    found = explain(*zoo.load("sva-gpt2"), f"the {ESCAPES} keys <script>", " are")
    assert "<script>" not in found.to_html()
    assert not raw_characters(str(found))
    words = ["explain", f"the {ESCAPES} keys", "--target", " are", "--model", "sva-gpt2"]
    for more in ([], ["--words"], ["--compare", "lrpx", "random"]):
        assert cli.main([*words, *more]) == 0
        assert not raw_characters(capsys.readouterr().out)


def raw_characters(text):
    return [character for character in text if not character.isprintable() and character != "\n"]


@pytest.mark.parametrize(
    "words",
    [
        ["explain", TEXT, "--target", ESCAPES],
        ["explain", TEXT, "--target", "are", "--model", ESCAPES],
        ["explain", TEXT, "--target", "are", "--model", f"{ESCAPES}.gguf"],
        ["explain", TEXT, "--target", "are", "--method", ESCAPES],
        ["explain", TEXT, "--target", "are", "--html", f"/no/such\n{ESCAPES}"],
        ["explain", TEXT, "--target", "are", ESCAPES],
        [ESCAPES],
    ],
)
def test_errors_of_the_command_line_are_one_line_without_control_characters(words, capsys):
    try:
        status = cli.main(words)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err
    assert status == 2
    assert said.count("\n") == 1
    assert "error: " in said
    assert not raw_characters(said)


# Files --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A small model, as files."""
    path = tmp_path / "model"
    tiny("gpt2").save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo.path("sva-gpt2") / name, path / name)
    return path


def test_the_folder_is_sound(folder):
    assert load_model(str(folder)).name == str(folder)


def test_a_pickle_is_never_opened(folder, tmp_path):
    marker = tmp_path / "opened"
    payload = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    weights = folder / "model.safetensors"
    (folder / "pytorch_model.bin").write_bytes(payload)
    load_model(str(folder))  # beside sound weights
    weights.write_bytes(payload)  # under their name
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin"):
        (folder / name).write_bytes(payload)
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "pytorch_model.bin"}}
    for broken in (lambda: None, weights.unlink):
        broken()
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_model(str(folder))
    for name in ("pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (folder / name).write_text(json.dumps(index))
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_model(str(folder))
    assert not marker.exists()


def test_a_pickle_in_the_place_of_a_gguf_file_is_never_opened(tmp_path):
    pytest.importorskip("gguf")
    marker, gguf = tmp_path / "opened", tmp_path / "model.gguf"
    gguf.write_bytes(f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(gguf))
    assert not marker.exists()


def test_code_of_a_model_is_never_run(folder, tmp_path):
    marker = tmp_path / "run"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B"}
    (folder / "config.json").write_text(json.dumps(config))
    load_model(str(folder))  # as what its type says
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(folder))
    assert not marker.exists()


def test_weights_that_the_files_lack_are_not_made_up(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(ValueError, match=r"lack 12 of its weights .* would be random numbers"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "not a valid JSON file"),
        ("config.json", b"null", "its configuration cannot be read"),
        ("config.json", b"[" * 100_000, "its configuration cannot be read"),
        ("tokenizer.json", b'{"a": 1}', "its tokenizer cannot be read"),
        ("tokenizer.json", b"null", "its tokenizer cannot be read"),
        ("model.safetensors", b"", "its weights cannot be read"),
        ("model.safetensors", b"\xff" * 100, "its weights cannot be read"),
    ],
)
def test_a_broken_file_is_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        load_model(str(folder))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


NAMES = ["", "\0", "..", "~", "x" * 10_000, "a/b/c", ESCAPES, "sva-bert\n", os.devnull, None, 3]


@pytest.mark.parametrize("load", [load_model, zoo.load, zoo.path])
def test_names_of_models(load):
    for name in NAMES:
        with pytest.raises((ValueError, TypeError, OSError)):
            load(name)


@pytest.mark.parametrize("read", [read_jsonl, Explanation.from_json])
@pytest.mark.parametrize("content", [b"{", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}'])
def test_broken_records(read, content, tmp_path):
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"line 1|not a stored explanation"):
        read(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("field", "value"), [("text", None), ("tokens", "abc"), ("model", 3), ("ids", [float("inf")])]
)
def test_a_field_of_another_kind_is_named(field, value):
    record = json.loads(explain(*zoo.load("sva-gpt2"), TEXT, "are", method="random").to_json())
    with pytest.raises(ValueError, match="not a stored explanation"):
        Explanation.from_json(json.dumps(record | {field: value}))
