"""Models by name, and files to write: what is wrong is said before anything is loaded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from captum_lrpx import Explanation, cli, compare, explain, loading, zoo
from captum_lrpx.files import check_folder, check_writable, write_text
from captum_lrpx.loading import load_model

EMBEDDED = "sva-bert, sva-gpt2, sva-llama"
TEXT = "the keys to the cabinet"


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers with an error, and counts how often it is asked."""
    asked = []

    def answers(error):
        def model_info(_self, name, **_options):
            asked.append(name)
            raise error

        monkeypatch.setattr(HfApi, "model_info", model_info)
        return asked

    return answers


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sva-lama", "sva_gpt2", "sva-bertt", "SVA-gpt2"])
def test_a_misspelt_embedded_model_is_not_asked_for_on_the_hub(hub, name):
    asked = hub(AssertionError("asked"))
    with pytest.raises(ValueError, match=rf"did you mean 'sva-.*\({EMBEDDED}\)"):
        load_model(name)
    assert not asked


@pytest.mark.parametrize("name", ["gpt2", "some-user/some-model", "llama"])
def test_the_hub_is_asked_once_and_names_what_there_is(hub, name):
    asked = hub(ConnectionError("no route"))
    with pytest.raises(ValueError, match=rf"'{name}' cannot be loaded: .* hub .*{EMBEDDED}"):
        load_model(name)
    assert asked == [name]


def test_a_cached_model_needs_no_hub(hub, monkeypatch):
    hub(ConnectionError("no route"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "config.json")
    assert loading.source_of("gpt2") == ("gpt2", {"local_files_only": True})
    assert loading.source_of("sva-lama") == ("sva-lama", {"local_files_only": True})


@pytest.mark.parametrize("name", ["./folder", "no such model!", "a--b", "-x", ".", "x/"])
def test_what_is_no_name_of_the_hub_is_a_path_that_is_not_there(hub, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = hub(AssertionError("asked"))
    with pytest.raises(ValueError, match=r"There is no model|cannot be loaded"):
        load_model(name)
    assert not asked


def test_without_a_network_there_are_no_retries():
    code = f"""
import time
from captum_lrpx.loading import load_model
start = time.perf_counter()
try:
    load_model("some-user/some-model")
except ValueError as error:
    assert "{EMBEDDED}" in str(error), error
    print(time.perf_counter() - start)
"""
    offline = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout) < 10  # the import of the hub's client; its retries take 30


# Broken files -----------------------------------------------------------------------------------


@pytest.fixture
def write_gguf(tmp_path):
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    import numpy as np

    def write(architecture):
        path = tmp_path / f"{architecture}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_block_count(1)
        writer.add_feed_forward_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(4)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(4)
        writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.mark.parametrize("length", [0, 3, 100, -100])
def test_a_gguf_file_that_was_cut_off_is_named(write_gguf, length):
    path = write_gguf("llama")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"llama.gguf' cannot be loaded: .*is the file complete"):
        load_model(str(path))


# Files to write -----------------------------------------------------------------------------------

FILES = {
    "nowhere/x.out": f"There is no folder 'nowhere' for {str(Path('nowhere/x.out'))!r}",
    "folder": "'folder' is a folder",
    "file/x.out": f"There is no folder 'file' for {str(Path('file/x.out'))!r}",
}
if sys.platform == "linux":
    FILES["/proc/x.out"] = "'/proc/x.out' cannot be written"
COMMANDS = {
    "--html": ["explain", TEXT, "--target", "are"],
    "--json": ["explain", TEXT, "--target", "are"],
    "--plot": ["evaluate"],
    "--parquet": ["evaluate"],
    "--output": ["samples", "--source", "ud", "--input", "file"],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a file and a folder in it, where nothing can be loaded or explained."""

    def never(*_args, **_keywords):
        raise AssertionError("loaded")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    for name in ("captum_lrpx.loading.load_model", "captum_lrpx.explainer.explain"):
        monkeypatch.setattr(name, never)
    return tmp_path


@pytest.mark.parametrize("option", COMMANDS)
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_cannot_be_written_is_said_first(here, capsys, option, file):
    for package in {"--plot": ["matplotlib"], "--parquet": ["pandas", "pyarrow"]}.get(option, []):
        pytest.importorskip(package)
    assert cli.main([*COMMANDS[option], option, file]) == 2
    said = capsys.readouterr().err
    assert FILES[file] in said
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder"]


def test_an_output_folder_that_is_a_file_is_said_first(here, capsys):
    assert cli.main(["evaluate", "--output", "file"]) == 2
    assert "'file' is a file" in capsys.readouterr().err
    assert (here / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plot", "x.nosuch"], "'x.nosuch' must end in one of"),
        (["--reference", "nowhere.json"], "nowhere.json"),
        (["--samples", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--models", "sva-gpt2", "sva-lama"], "did you mean 'sva-llama'"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_an_evaluation_cannot_use_is_said_first(capsys, words, message):
    if "--plot" in words:
        pytest.importorskip("matplotlib")
    assert cli.main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err


def test_existing_and_special_files(tmp_path):
    path = tmp_path / "x.html"
    path.write_text("before")
    check_writable(path, None)
    assert path.read_text() == "before"
    write_text(path, "after")
    assert path.read_text() == "after"
    check_writable(os.devnull)
    write_text(os.devnull, "gone")
    assert not Path(os.devnull).is_file()
    check_folder(tmp_path / "a" / "b")
    assert [each.name for each in tmp_path.iterdir()] == ["x.html"]


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root writes anywhere")
def test_what_may_not_be_written(tmp_path):
    path = tmp_path / "x.html"
    path.write_text("kept")
    path.chmod(0o400)
    with pytest.raises(PermissionError, match="is read-only"):
        check_writable(path)
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        check_writable(tmp_path / "other")
    tmp_path.chmod(0o700)


def test_a_picture_that_cannot_be_written_names_its_path():
    one = explain(*zoo.load("sva-gpt2"), TEXT, "are", method="random")
    for write in (one.to_html, one.to_json, compare([one, one], names=["a", "b"]).to_html):
        with pytest.raises(FileNotFoundError, match=re.escape(repr(str(Path("/no/such/x.html"))))):
            write("/no/such/x.html")


def test_a_stored_explanation_is_read_from_a_path_of_any_kind(tmp_path):
    one = explain(*zoo.load("sva-gpt2"), TEXT, "are", method="random")
    both = compare([one, one], names=["a", "b"])
    path = tmp_path / "e.json"
    for stored in (one, both):
        text = stored.to_json(path)
        for source in (path, str(path), text, f"\n {text}"):
            assert type(stored).from_json(source) == stored
    for source in ("nowhere.json", "", "x" * 10_000, "null"):
        with pytest.raises(ValueError, match=r"not a stored explanation: there is no file"):
            Explanation.from_json(source)
