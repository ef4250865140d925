"""BLiMP: where the templates have the subject, and what is dropped."""

import json

import pytest

from captum_lrpx.sva.sources import read_blimp
from captum_lrpx.sva.sources.blimp import REASONS

REGULAR = "regular_plural_subject_verb_agreement_1"
IRREGULAR = "irregular_plural_subject_verb_agreement_1"
RELATIONAL = "distractor_agreement_relational_noun"
RELATIVE = "distractor_agreement_relative_clause"


def pair(uid, prefix, good, bad, rest="."):
    return {
        "sentence_good": f"{prefix} {good}{rest}",
        "sentence_bad": f"{prefix} {bad}{rest}",
        "one_prefix_prefix": prefix,
        "one_prefix_word_good": good,
        "one_prefix_word_bad": bad,
        "UID": uid,
        "pairID": "0",
    }


def read(tmp_path, *records, **options):
    path = tmp_path / "set.jsonl"
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_blimp(path, **options)


def evidence(sample):
    return [sample.sentence[start:end] for start, end in sample.evidence]


@pytest.mark.parametrize(
    ("uid", "prefix", "good", "bad", "subject", "determiner", "attractors"),
    [
        (REGULAR, "Paula", "borrows", "borrow", "Paula", None, 0),
        (REGULAR, "Most city parks", "close", "closes", "parks", "Most", 0),
        (REGULAR, "The parks", "close", "closes", "parks", None, 0),
        (IRREGULAR, "A lot of geese", "sleep", "sleeps", "geese", "A lot of", 0),
        (IRREGULAR, "This goose", "isn't", "weren't", "goose", "This", 0),
        (RELATIONAL, "A niece of most pilots", "hasn't", "haven't", "niece", "A", 1),
        (RELATIONAL, "The city maps about Ohio", "were", "was", "maps", None, 1),
        (RELATIVE, "That pilot that knows nurses", "is", "are", "pilot", "That", 1),
        (RELATIVE, "A lot of pilots who met Ann", "sing", "sings", "pilots", "A lot of", 1),
        (RELATIVE, "Pilots which Ann met", "sing", "sings", "Pilots", None, 1),
    ],
)  # fmt: skip
def test_subjects(tmp_path, uid, prefix, good, bad, subject, determiner, attractors):
    (sample,) = read(tmp_path, pair(uid, prefix, good, bad, " now.")).samples
    assert sample.sentence == f"{prefix} {good} now."
    assert (sample.prefix, sample.verb, sample.foil) == (prefix, good, bad)
    assert evidence(sample) == [subject]
    assert sample.n_attractors == attractors
    assert (sample.source, sample.licence) == ("set.jsonl, line 1", "CC BY 4.0")
    (both,) = read(tmp_path, pair(uid, prefix, good, bad), determiners=True).samples
    assert evidence(both) == ([subject] if determiner is None else [determiner, subject])


def test_the_number_is_that_of_the_verb(tmp_path):
    one, other = read(
        tmp_path, pair(REGULAR, "Ann", "was", "are"), pair(REGULAR, "Parks", "don't", "doesn't")
    ).samples
    assert (one.number, other.number) == ("singular", "plural")


def test_phrases_that_differ_in_the_verb(tmp_path):
    (sample,) = read(tmp_path, pair(REGULAR, "Parks", "close down", "closes down")).samples
    assert (sample.verb, sample.foil, sample.sentence) == ("close", "closes", "Parks close down.")


@pytest.mark.parametrize(
    ("reason", "dropped"),
    [
        ("several words differ", pair(REGULAR, "Parks", "close down", "closes up")),
        ("invalid pair", pair(REGULAR, "Parks", "close", "closing")),
        ("no subject", pair(RELATIONAL, "The parks", "close", "closes")),
        ("no subject", pair(RELATIVE, "That pilot", "is", "are")),
        ("subject has no number", pair(REGULAR, "Many fish", "sleep", "sleeps")),
        ("subject disagrees", pair(REGULAR, "Those parks", "closes", "close")),
        ("subject disagrees", pair(REGULAR, "A lot of nurses", "sleeps", "sleep")),
    ],
)
def test_each_reason(tmp_path, reason, dropped):
    collected = read(tmp_path, dropped, pair(REGULAR, "The pilot", "was", "were"))
    assert {name: n for name, n in collected.counts.items() if n} == {
        "given": 2,
        reason: 1,
        "kept": 1,
    }
    assert set(collected.counts) == {"given", *REASONS, "kept"}


def test_a_noun_with_the_number_of_few_of_its_sentences(tmp_path):
    """BLiMP itself errs at times ("Some men irritates the girl" is "good")."""
    right = [pair(REGULAR, f"{word} men", "sleep", "sleeps") for word in ("The", "Some")]
    wrong = pair(REGULAR, "Some men", "irritates", "irritate")
    collected = read(tmp_path, *right, wrong)
    assert len(collected.samples) == 2
    assert collected.counts["subject disagrees"] == 1
    # Without a majority there is no telling which of the two is wrong.
    assert read(tmp_path, right[0], wrong).counts["subject disagrees"] == 2


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "Expecting"),
        ("[]", "expected a JSON object, got list"),
        ({"UID": REGULAR}, "no text in the fields .*'sentence_good'"),
        ({**pair(REGULAR, "Ann", "is", "are"), "one_prefix_prefix": 3}, "'one_prefix_prefix'"),
        (pair(REGULAR, "Ann", " ", "are"), "no text in the fields .*'one_prefix_word_good'"),
        ({**pair(REGULAR, "Ann", "is", "are"), "sentence_good": "Ann isn"}, "does not begin with"),
        ({**pair(REGULAR, "Ann", "is", "are"), "sentence_bad": "Ann is."}, "does not begin with"),
        (pair("regular_plural_subject_verb_agreement_2", "Ann", "is", "are"), "is not supported"),
    ],
)
def test_broken_lines(tmp_path, broken, message):
    with pytest.raises(ValueError, match=f"set.jsonl, line 3: .*{message}"):
        read(tmp_path, pair(REGULAR, "Ann", "is", "are"), "", broken)
