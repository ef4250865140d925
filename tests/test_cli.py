"""The command line, run as a user runs it."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from captum_lrpx import Comparison, Explanation, __version__, cli, explain, zoo
from captum_lrpx.explanation.terminal import summary
from captum_lrpx.methods import METHODS, options_of
from captum_lrpx.targets import Target

TEXT = "the keys to the cabinet"
WORDS = ["explain", TEXT, "--target", "are", "--contrast", "is"]


def run(*words):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "captum_lrpx", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def refused(capsys, *words):
    """The message of a command that fails with exit status 2."""
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as stop:  # argparse's own errors
        status = stop.code
    assert status == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def test_the_main_job():
    result = run(*WORDS)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for word in TEXT.split():
        assert word in result.stdout
    assert "logit of 'are' minus logit of 'is' = +" in result.stdout
    assert "'are' has rank " in result.stdout
    assert "sum of relevances" in result.stdout
    assert "delta" in result.stdout


@pytest.mark.parametrize(("word", "expected"), [("--version", __version__), ("--help", "explain")])
def test_help_and_version(word, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([word])
    assert stop.value.code == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("method", ["lrpx", "attnlrpx"])
@pytest.mark.parametrize("name", zoo.names())
def test_files(tmp_path, capsys, name, method):
    page, record = tmp_path / "map.html", tmp_path / "map.json"
    words = [*WORDS, "--model", name, "--method", method, "--html", page, "--json", record]
    assert cli.main([str(word) for word in words]) == 0
    shown = capsys.readouterr().out
    stored = Explanation.from_json(record)
    expected = explain(
        *zoo.load(name), TEXT, Target("are", contrast="is"), method=method, model_name=name
    )
    assert stored == expected
    assert json.loads(record.read_text())["model"] == name
    assert "</html>" in page.read_text()
    assert f"{method} on {name}" in shown


@pytest.mark.parametrize("command", ["explain", "generate"])
def test_files_are_written_before_a_pipe_can_close(tmp_path, monkeypatch, command):
    def closed(*_):
        raise SystemExit(1)  # what rich does about a BrokenPipeError

    monkeypatch.setattr(f"captum_lrpx.cli.{command}_command.print_all", closed)
    words = {
        "explain": [*WORDS, "--no-certificate"],
        "generate": ["generate", TEXT, "--target", " are"],
    }[command]
    files = [tmp_path / "page.html", tmp_path / "record.json"]
    with pytest.raises(SystemExit):
        cli.main([*words, "--html", str(files[0]), "--json", str(files[1])])
    assert all(each.stat().st_size > 100 for each in files)


def test_a_model_in_a_directory(capsys):
    words = [*WORDS, "--model", str(zoo.path("sva-gpt2"))]
    assert cli.main(words) == 0
    assert "keys" in capsys.readouterr().out


def test_words_instead_of_tokens(capsys):
    text = "the Keys, un-locked"
    words = ["explain", text, "--target", "are", "--words", "--fold-special"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    for row in ("0  the ", "1  Keys ", "2  , ", "3  un-locked ", "5  (special tokens) "):
        assert f"       {row}" in shown
    expected = explain(*zoo.load(zoo.DEFAULT), text, "are", model_name=zoo.DEFAULT)
    assert summary(expected.words().fold_special()) in shown


def shown_by(capsys, *words):
    assert cli.main(["explain", *words]) == 0
    return capsys.readouterr().out


def test_a_token_by_number_or_exactly(capsys):
    tokenizer = zoo.load("sva-gpt2")[1]
    words = [TEXT, "--model", "sva-gpt2", "--no-certificate"]
    by_word = shown_by(capsys, *words, "--target", "are", "--contrast", "is")
    assert "logit of 'Ġare' minus logit of 'Ġis' = " in by_word
    are, is_ = (str(tokenizer.convert_tokens_to_ids(token)) for token in ("Ġare", "Ġis"))
    assert shown_by(capsys, *words, "--target-id", are, "--contrast-id", is_) == by_word
    exact = ["--target-token", "Ġare", "--contrast-token", "Ġis"]
    assert shown_by(capsys, *words, *exact) == by_word


def test_a_pipe_that_lacks_a_character_gets_its_code(monkeypatch):
    """Windows gives pipes an encoding of its own, which has no sign for a space before a word."""
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", pipe)
    words = ["--model", "sva-gpt2", "--target", "are", "--no-certificate"]
    assert cli.main(["explain", TEXT, *words]) == 0
    pipe.flush()
    assert "logit of '\\u0120are' = " in pipe.buffer.getvalue().decode("cp1252")


def test_without_a_target_the_prediction_is_explained(capsys):
    assert "logit of the predicted token '" in shown_by(capsys, TEXT, "--no-certificate")


def test_pairs_chats_and_long_texts(capsys, tmp_path):
    pair = shown_by(capsys, "the keys", "--pair", "the author [MASK] old", "--target", "is")
    expected = explain(
        *zoo.load(zoo.DEFAULT), ("the keys", "the author [MASK] old"), "is", model_name=zoo.DEFAULT
    )
    assert summary(expected) in pair
    long = [" ".join(["the keys"] * 100), "--model", "sva-gpt2", "--truncate", "--no-certificate"]
    assert "63  keys " in shown_by(capsys, *long)
    model, tokenizer = zoo.load("sva-gpt2")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    chat = [TEXT, "--chat", "--model", str(tmp_path), "--words", "--fold-special"]
    shown = shown_by(capsys, *chat, "--target", "are", "--no-certificate")
    assert "logit of 'are' = " in shown, "after a line break"
    assert re.search(r"\n +0  the .*\n +1  keys ", shown)


METHODS_COMPARED = ["lrpx", "altilogit", "integrated_gradients", "random"]


def test_methods_side_by_side(tmp_path, capsys):
    page, record = tmp_path / "map.html", tmp_path / "map.json"
    files = ["--html", str(page), "--json", str(record)]
    options = ["--option", "n_steps=5", "--option", "seed=2", "--option", "value_bias=apart"]
    assert cli.main([*WORDS, *files, *options, "--compare", *METHODS_COMPARED]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("logit of 'are' minus logit of 'is'\n")
    assert re.search(r"position +token +lrpx +altilogit +integrated_gradients +random *\n", shown)
    assert re.search(r"rank correlation +lrpx +altilogit +integrated_gradients +random *\n", shown)
    stored = Comparison.from_json(record)
    assert stored.names == tuple(METHODS_COMPARED)
    assert stored.explanations[2].options["n_steps"] == 5
    assert stored.explanations[3].options == {"seed": 2}
    assert page.read_text() == stored.to_html()


def test_the_methods_are_listed(capsys):
    assert cli.main(["methods"]) == 0
    shown = capsys.readouterr().out
    for method in METHODS:
        line = next(line for line in shown.splitlines() if line.startswith(f"{method} "))
        assert all(name in line for name in options_of(method))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", TEXT, "--target", "antidisestablishment"], "tokens"),
        (["explain", "", "--target", "are"], "empty"),
        (["explain", "the \udcff keys", "--target", "are"], "half of a surrogate pair"),
        (["explain", TEXT, "--target", "\udcff"], "half of a surrogate pair"),
        (["explain", "the keys " * 100, "--target", "are"], "takes at most"),
        ([*WORDS, "--method", "magic"], "known are lrpx, attnlrpx"),
        ([*WORDS, "--compare", "lrpx", "magic"], "known are lrpx, attnlrpx"),
        ([*WORDS, "--compare", "lrpx", "--method", "lrpx"], "not allowed with"),
        ([*WORDS, "--method", "deep_lift"], "no rule for"),
        ([*WORDS, "--method", "random", "--option", "seed"], "NAME=VALUE"),
        ([*WORDS, "--method", "random", "--option", "sead=3"], "no option 'sead' of random"),
        ([*WORDS, "--method", "random", "--option", "seed=x"], "takes int, not 'x'"),
        ([*WORDS, "--model", "no such model!"], "There is no model"),
        ([*WORDS, "--model", "missing.gguf"], "no file"),
        ([*WORDS, "--model", "/"], "cannot be loaded"),
        ([*WORDS, "--first-token", "<nope>"], "no token"),
        (
            [*WORDS, "--html", "/no/such/folder/map.html"],
            f"no folder {str(Path('/no/such/folder'))!r}",
        ),
        ([*WORDS, "--target-id", "3"], "not allowed with"),
        ([*WORDS, "--contrast-token", "is"], "not allowed with"),
        (["explain", TEXT, "--target-id", "are"], "invalid int"),
        (["explain", TEXT, "--target-id", "7042"], "out of range for a vocabulary"),
        (["explain", TEXT, "--target-token", "Ġare"], "no token 'Ġare'"),
        (["explain", TEXT, "--chat"], "no chat template"),
        (["explain", TEXT, "--chat", "--pair", TEXT], "not allowed with"),
        ([], "COMMAND"),
        (["explane"], "invalid choice"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, words, message):
    if "--html" in words:
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err
    else:
        assert message in refused(capsys, *words)


def test_a_hub_name_offline_is_a_clear_error(monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = refused(capsys, *WORDS, "--model", "some-user/some-model")
    assert said.startswith("captum-lrpx: error: The model 'some-user/some-model'")


def test_an_unsupported_model_is_a_clear_error(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    said = refused(capsys, *WORDS, "--method", "altilogit", "--model", tmp_path)
    assert "cannot be loaded" in said
    assert "no-such-type" in said


def test_pickled_weights_are_never_read(tmp_path, capsys):
    """A folder whose only weights are a pickle is refused, and the pickle is not opened."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(zoo.path("sva-gpt2"), folder)
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "opened"
    payload = f"cposix\nsystem\n(S'touch {marker}'\ntR."
    (folder / "pytorch_model.bin").write_bytes(payload.encode())
    assert "cannot be loaded" in refused(capsys, *WORDS, "--model", folder)
    assert not marker.exists()


def test_truncated_weights_are_a_clear_error(tmp_path, capsys):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(zoo.path("sva-gpt2"), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in refused(capsys, *WORDS, "--model", folder)
