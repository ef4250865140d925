"""Annotated sentences: what is refused, and files of them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_lrpx.sva import Sample, generate, read_jsonl, write_jsonl

SAMPLE = Sample(
    sentence="the keys to the cabinet are old .",
    verb_span=(24, 27),
    verb="are",
    foil="is",
    evidence=((4, 8),),
    number="plural",
    n_attractors=1,
    source="made for the test",
    licence="BSD-3-Clause",
)


def test_views_of_a_sample():
    assert SAMPLE.prefix == "the keys to the cabinet"
    assert SAMPLE.masked("[MASK]") == "the keys to the cabinet [MASK] old ."


def test_verb_may_be_first_and_evidence_behind_it():
    sample = replace(SAMPLE, sentence="are the keys here", verb_span=(0, 3), evidence=((8, 12),))
    assert sample.prefix == ""
    assert sample.masked("_") == "_ the keys here"


def test_verb_may_be_followed_by_punctuation():
    sample = replace(SAMPLE, sentence="the keys are.", verb_span=(9, 12))
    assert sample.masked("_") == "the keys _."


def test_samples_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SAMPLE.verb = "is"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence": ""}, "sentence must be a non-empty string"),
        ({"sentence": 3}, "sentence must be a non-empty string"),
        ({"sentence": "the  keys to the cabinet are"}, "single blanks"),
        ({"sentence": "the keys to the cabinet are "}, "single blanks"),
        ({"verb_span": (24, 99)}, "outside the sentence"),
        ({"verb_span": (-3, 0)}, "outside the sentence"),
        ({"verb_span": (24, 24)}, "outside the sentence"),
        ({"verb_span": (24,)}, "two ints"),
        ({"verb_span": (24.0, 27.0)}, "two ints"),
        ({"verb_span": (24, 26), "verb": "ar"}, "whole words"),
        ({"verb_span": (23, 27), "verb": " are"}, "whole words"),
        ({"verb": "is"}, "covers 'are', not the verb 'is'"),
        ({"foil": "are"}, "must differ"),
        ({"foil": "is not"}, "one word"),
        ({"foil": " is"}, "one word"),
        ({"evidence": ()}, "non-empty tuple"),
        ({"evidence": [(4, 8)]}, "non-empty tuple"),
        ({"evidence": ((4, 7),)}, "whole words"),
        ({"evidence": ((4, 8), (90, 95))}, "outside the sentence"),
        ({"evidence": ((16, 27),)}, "overlaps the verb"),
        ({"number": "dual"}, "number must be one of"),
        ({"n_attractors": -1}, "n_attractors must be"),
        ({"n_attractors": True}, "n_attractors must be"),
        ({"source": " "}, "source must be"),
        ({"licence": ""}, "licence must be"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SAMPLE, **changes)


@given(st.integers(0, 50), st.integers(0, 2**40))
def test_round_trip(tmp_path_factory, n, seed):
    file = tmp_path_factory.getbasetemp() / "samples.jsonl"
    samples = generate(n, "test", seed)
    write_jsonl(file, samples)
    assert read_jsonl(file) == samples


def test_files_are_readable_text(tmp_path):
    sample = replace(SAMPLE, sentence="the kéys to the cabinet are old .")
    write_jsonl(tmp_path / "a.jsonl", [sample])
    text = (tmp_path / "a.jsonl").read_text("utf-8")
    assert "kéys" in text
    assert text.endswith("}\n")


def test_blank_lines_are_skipped(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n" + json.dumps(asdict(SAMPLE)) + "\n  \n", "utf-8")
    assert read_jsonl(file) == [SAMPLE]


GOOD = asdict(SAMPLE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: "),
        (b"[1, 2]", "line 2: expected a JSON object, got list"),
        (b"\xff\xfe", "line 2: .*decode"),
        (b"[" * 100_000, "line 2: "),
        (json.dumps({**GOOD, "verb": "is"}).encode(), "line 2: verb_span"),
        (json.dumps({**GOOD, "verb_span": 3}).encode(), "line 2: verb_span"),
        (json.dumps({**GOOD, "evidence": 3}).encode(), "line 2: evidence"),
        (json.dumps({**GOOD, "evidence": [3]}).encode(), "line 2: evidence"),
        (json.dumps({**GOOD, "more": 1}).encode(), r"line 2: .*unknown: \['more'\]"),
        (json.dumps({"verb": "is"}).encode(), r"line 2: fields missing: \['sentence'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    file = tmp_path / "broken.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"broken\.jsonl, " + message):
        read_jsonl(file)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    def interrupted():
        yield SAMPLE
        raise KeyboardInterrupt

    file = tmp_path / "a.jsonl"
    write_jsonl(file, [SAMPLE])
    with pytest.raises(KeyboardInterrupt):
        write_jsonl(file, interrupted())
    assert read_jsonl(file) == [SAMPLE]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
