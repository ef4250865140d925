"""Logs of a run that were damaged or edited: refused, with what is wrong and where."""

import copy
import json

import pytest

from captum_lrpx import zoo
from captum_lrpx.sva import generate
from captum_lrpx.sva.evaluation import Report, Settings, contenders, evaluate
from captum_lrpx.sva.evaluation.records import check

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


def test_what_a_run_writes_is_sound(finished, records, tmp_path):
    for record in records:
        check(record)
    assert {record["key"][0] for record in records} == {"tokens", "values", "relevances"}
    assert list(Report(resumed(tmp_path, finished)).records())


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("tokens", "task", None),
        ("tokens", "gated", 1),
        ("tokens", "counts", {"given": 4}),
        ("tokens", "counts", {"given": 4, "kept": -1}),
        ("tokens", "kept", None),
        ("tokens", "kept", [{"sample": 0, "length": 3, "evidence": [3], "special": []}]),
        ("tokens", "kept", [{"sample": 0, "length": 3, "evidence": [1]}]),
        ("values", "rows", "0"),
        ("values", "rows", [0, 0]),
        ("values", "rows", [True]),
        ("values", "values", []),
        ("values", "values", ["1.5"]),
        ("relevances", "rows", [-1]),
        ("relevances", "relevances", [[0.5, None]]),
        ("relevances", "relevances", {}),
        ("relevances", "faithfulness", {"LOO-r": [0.5] * 99}),
        ("relevances", "faithfulness", []),
    ],
)
def test_a_field_that_is_not_as_a_run_writes_it(records, kind, field, value):
    record = copy.deepcopy(of_kind(records, kind))
    record[field] = value
    with pytest.raises(ValueError, match=f"the field '{field}' is missing or not as"):
        check(record)


@pytest.mark.parametrize("key", [["tokens"], ["values", "m"], ["nothing", "m"], ["values", 1, 2]])
def test_a_key_that_no_run_writes(key):
    with pytest.raises(ValueError, match="no run writes the key"):
        check({"key": key})


@pytest.mark.parametrize("line", ["nonsense", "[]", "3", '{"kept": []}', '{"key": "tokens"}'])
def test_a_broken_line_is_named(finished, tmp_path, line):
    text = finished[LOG] + line + "\n"
    number = text.count("\n")
    with pytest.raises(ValueError, match=rf"log-00000\.jsonl, line {number} is not a record: "):
        resumed(tmp_path, finished, **{LOG: text})


def _shorter(records):
    of_kind(records, "relevances")["relevances"][0].pop()


def _other_rows(records):
    of_kind(records, "values")["rows"].reverse()


def _unknown_sample(records):
    of_kind(records, "tokens")["kept"][0]["sample"] = 99


def _unknown_row(records):
    of_kind(records, "relevances")["rows"][0] = 99


def _without_faithfulness(records):
    del of_kind(records, "relevances")["faithfulness"]


@pytest.mark.parametrize(
    "change", [_shorter, _other_rows, _unknown_sample, _unknown_row, _without_faithfulness]
)
def test_sound_records_that_do_not_belong_together(finished, records, tmp_path, change):
    change(records)
    for record in records:
        check(record)
    with pytest.raises(ValueError, match="records of 'm' in the logs are of different runs"):
        resumed(tmp_path, finished, **{LOG: log_of(records)})


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_manifest_that_cannot_be_read(finished, tmp_path, text):
    with pytest.raises(ValueError, match=r"manifest\.json does not identify the run in the folder"):
        resumed(tmp_path, finished, **{"manifest.json": text})
    assert (tmp_path / "manifest.json").read_text() == text
