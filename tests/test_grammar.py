"""The grammar: determinism, the split, and annotations that point where they say."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys

import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from captum_lrpx.sva import generate, grammar, lexicon

NOUNS = {form: noun for noun in lexicon.NOUNS for form in (noun.singular, noun.plural)}
VERBS = {form: verb for verb in lexicon.VERBS for form in (verb.singular, verb.plural)}
WORDS = set(lexicon.words())

seeds = st.integers(-(2**70), 2**70)
splits = st.sampled_from(grammar.SPLITS)


def number_of(word):
    return "singular" if NOUNS[word].singular == word else "plural"


def nouns_in(text):
    return [word for word in text.split() if word in NOUNS]


def subject_of(sample):
    ((start, end),) = sample.evidence
    return sample.sentence[start:end]


def between(sample):
    return sample.sentence[sample.evidence[0][1] : sample.verb_span[0]]


def test_lexicon():
    assert len(lexicon.NOUNS) >= 60
    assert len(lexicon.VERBS) >= 12
    assert {"key", "cabinets", "author", "guards", "dog", "car", "tables"} <= set(NOUNS)
    assert {"is", "were", "has", "like"} <= set(VERBS)
    # One form must not be readable as another word, or spans and counts would be ambiguous.
    assert len(NOUNS) == 2 * len(lexicon.NOUNS)
    assert len(VERBS) == 2 * len(lexicon.VERBS)
    assert not set(NOUNS) & set(VERBS)
    others = WORDS - set(NOUNS) - set(VERBS)
    assert len(WORDS) == len(NOUNS) + len(VERBS) + len(others)
    assert all(word == word.lower() and " " not in word for word in WORDS)


def test_the_keys_to_the_cabinet_are():
    wanted = "the keys to the cabinet are"
    assert grammar.held_out("key", "cabinet")
    assert grammar.held_out("key", "are")
    key, are = NOUNS["keys"], VERBS["are"]
    assert NOUNS["cabinet"] in grammar.nouns_for(key, "test")
    assert are in grammar.verbs_for(key, "test")
    assert set(wanted.split()) <= WORDS
    assert "to" in lexicon.PREPOSITIONS


@given(seeds, splits)
@examples(30)
def test_same_seed_same_sentences(seed, split):
    assert generate(20, split, seed) == generate(20, split, seed)
    assert generate(20, split, seed)[:10] == generate(10, split, seed)
    assert generate(20, split, seed) != generate(20, split, seed + 1)


def test_sentences_never_change():
    # The weights were trained on these sentences: a change here means training them anew.
    text = "\n".join(
        sample.sentence for split in grammar.SPLITS for sample in generate(500, split, 7, None)
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "2c23b97743795228b3dd62a4e3eaad756831024de7f294657d2af51c8b6bb8ef"


def test_sentences_do_not_depend_on_the_hash_seed():
    code = (
        "from captum_lrpx.sva import generate\n"
        "for sample in generate(30, 'test', 3): print(sample.sentence)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output == "".join(f"{sample.sentence}\n" for sample in generate(30, "test", 3))


@given(seeds, splits, st.sampled_from([None, (0, 0), (1, 1), (1, 3), (2, 2), (3, 3)]))
@examples(60)
def test_annotations(seed, split, attractors):
    for sample in generate(10, split, seed, attractors):
        words = sample.sentence.split()
        assert set(words) <= WORDS
        subject = subject_of(sample)
        verb = VERBS[sample.verb]
        assert number_of(subject) == sample.number
        assert sample.verb == verb.form(sample.number)
        assert {sample.verb, sample.foil} == {verb.singular, verb.plural}
        assert sample.evidence[0][1] < sample.verb_span[0]
        others = [number_of(word) for word in nouns_in(between(sample))]
        assert sample.n_attractors == sum(number != sample.number for number in others)
        assert len(others) <= grammar.MAX_INTERVENING
        if attractors is not None:
            assert attractors[0] <= sample.n_attractors <= attractors[1]
        lemmas = [NOUNS[word].singular for word in nouns_in(sample.sentence)]
        assert len(set(lemmas)) == len(lemmas)


@given(seeds)
@examples(30)
def test_held_out_pairs_are_for_the_test_alone(seed):
    for split in grammar.SPLITS:
        for sample in generate(10, split, seed, None):
            subject = NOUNS[subject_of(sample)]
            partners = {NOUNS[word].singular for word in nouns_in(sample.sentence)}
            partners -= {subject.singular}
            partners |= {VERBS[sample.verb].plural}
            for partner in partners:
                assert grammar.held_out(subject.singular, partner) == (split == "test")


def test_no_sentence_is_in_both_splits():
    train, test = ({s.sentence for s in generate(5000, k, 1, None)} for k in grammar.SPLITS)
    assert not train & test
    assert len(train) == len(test) == 5000


def test_verbs_of_relative_clauses_keep_to_the_split():
    # "the author that the guards like": guards and like must not be a pair of the test either.
    for sample in generate(2000, "train", 2, None):
        words = between(sample).split()
        for index, word in enumerate(words):
            if word not in VERBS:
                continue
            if words[index - 1] in lexicon.RELATIVES:
                before = [subject_of(sample), *nouns_in(" ".join(words[:index]))]
                agents = before[-1:]
            else:
                start = max(i for i, w in enumerate(words[:index]) if w in lexicon.RELATIVES)
                agents = nouns_in(" ".join(words[start:index]))[:1]
            for agent in agents:
                assert not grammar.held_out(NOUNS[agent].singular, VERBS[word].plural)


def test_pairs_are_symmetric_and_a_quarter_is_held_out():
    pairs = list(itertools.combinations([noun.singular for noun in lexicon.NOUNS], 2))
    assert all(grammar.held_out(a, b) == grammar.held_out(b, a) for a, b in pairs)
    share = sum(grammar.held_out(a, b) for a, b in pairs) / len(pairs)
    assert 0.22 < share < 0.28


def test_coin_tossed_numbers_tell_nothing():
    samples = generate(8000, "train", 5, None)
    assert 0.48 < sum(s.number == "plural" for s in samples) / len(samples) < 0.52
    nouns = sum(len(nouns_in(between(s))) for s in samples)
    assert 0.48 < sum(s.n_attractors for s in samples) / nouns < 0.52


def test_every_construction_occurs():
    texts = [between(sample).split() for sample in generate(3000, "test", 0)]
    assert any(words[0] in lexicon.PREPOSITIONS for words in texts)
    assert any(words[0] in lexicon.RELATIVES and words[1] in VERBS for words in texts)
    assert any(words[0] in lexicon.RELATIVES and words[-1] in VERBS for words in texts)
    endings = [s.sentence[s.verb_span[1] :] for s in generate(3000, "test", 0)]
    assert endings.count("") > 300
    assert endings.count(" .") > 300


def test_number_of_intervening_nouns():
    for sample in generate(200, "train", 0, None, intervening=(2, 2)):
        assert len(nouns_in(between(sample))) == 2
    assert {s.n_attractors for s in generate(200, "train", 0)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, "test", 0), "n must be at least 0"),
        ((1, "dev", 0), "split must be one of"),
        ((1, "test", 0, (2, 1)), "attractors must be"),
        ((1, "test", 0, (1, 4)), "attractors must be"),
        ((1, "test", 0, (-1, 1)), "attractors must be"),
        ((1, "test", 0, None, (0, 4)), "intervening must be"),
        ((1, "test", 0, None, (2, 1)), "intervening must be"),
        ((1, "test", 0, (2, 2), (0, 1)), "attractors must be"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(*arguments)


def test_too_many_sentences_asked_for(monkeypatch):
    monkeypatch.setattr(grammar, "_PATIENCE", 0)
    with pytest.raises(ValueError, match="different sentences, not 100000"):
        generate(100_000, "test", 0, (0, 0), (0, 0))


def test_nothing_asked_for():
    assert generate(0, "test", 0) == []
