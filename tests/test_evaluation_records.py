"""Logs of a run that were damaged or edited: refused, with what is wrong and where."""

import copy
import json

import pytest

from captum_lrpx import zoo
from captum_lrpx.sva import generate
from captum_lrpx.sva.evaluation import Report, Settings, contenders, evaluate

LOG = "log-00000.jsonl"
USUAL = {
    "samples": generate(4, "test", 3, attractors=(0, 2)),
    "methods": contenders(["lrpx", "random"], {"random": {"seed": 1}}),
    "settings": Settings(token_budget=40, faithfulness=True),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The files of a finished run, by name."""
    folder = tmp_path_factory.mktemp("run")
    evaluate({"m": lambda: zoo.load("sva-gpt2")}, **USUAL, output=folder)
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def records(finished):
    return [json.loads(line) for line in finished[LOG].splitlines()]


def resumed(folder, finished, **changed):
    for name, text in (finished | changed).items():
        (folder / name).write_text(text)

    def refuse():
        raise AssertionError("the model was loaded")

    return evaluate({"m": refuse}, **USUAL, output=folder, resume=True)


def log_of(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def of_kind(records, kind):
    return next(record for record in records if record["key"][0] == kind)


def test_a_finished_run_is_read_without_the_model(finished, records, tmp_path):
    assert {record["key"][0] for record in records} == {"tokens", "values", "relevances"}
    assert list(Report(resumed(tmp_path, finished)).records())


def leaves(value, path=()):
    """Each number, text or empty list of a record, with its path."""
    if isinstance(value, (dict, list)) and value:
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*path, key))
    else:
        yield path, value


def changed(record, path, value):
    record = copy.deepcopy(record)
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return record


def test_any_edited_value_is_noticed(finished, records, tmp_path):
    """Also one that a run could have written, such as another number."""
    for kind in ("tokens", "values", "relevances"):
        record = of_kind(records, kind)
        for path, value in [*leaves(record)][:20]:
            other = f"{value}x" if isinstance(value, str) else 7 if value != 7 else 8
            others = [changed(record, path, other) if each is record else each for each in records]
            with pytest.raises(ValueError, match=r"log-00000\.jsonl, line \d+ is not a record as"):
                resumed(tmp_path, finished, **{LOG: log_of(others)})


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", "3", '{"kept": []}', '{"key": "tokens"}', "[" * 100_000, '{"crc32": 0}'],
)
def test_a_broken_line_is_named(finished, tmp_path, line):
    text = finished[LOG] + line + "\n"
    number = text.count("\n")
    with pytest.raises(ValueError, match=rf"log-00000\.jsonl, line {number} is not a record as"):
        resumed(tmp_path, finished, **{LOG: text})


def test_another_tokenizer_under_the_same_name_is_refused(tmp_path):
    """The logs would have relevances of other tokens for the same samples."""
    names = iter(["sva-gpt2", "sva-bert"])
    load = {"m": lambda: zoo.load(next(names))}
    evaluate(load, **USUAL, output=tmp_path)
    log = tmp_path / LOG
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    before = log.read_bytes()
    with pytest.raises(ValueError, match="its model or tokenizer was exchanged: start over"):
        evaluate(load, **USUAL, output=tmp_path, resume=True)
    assert log.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_manifest_that_cannot_be_read(finished, tmp_path, text):
    with pytest.raises(ValueError, match=r"manifest\.json does not identify the run in the folder"):
        resumed(tmp_path, finished, **{"manifest.json": text})
    assert (tmp_path / "manifest.json").read_text() == text
