"""Samples as tokens: what a model sees, which tokens are evidence, what is dropped and counted."""

import functools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from captum_lrpx import zoo
from captum_lrpx.sva import Sample, generate, tokenize
from captum_lrpx.sva.tokenized import FILTERS
from captum_lrpx.targets import Target, encode, task_of
from captum_lrpx.targets.encoding import context_length

CAUSAL = ["sva-gpt2", "sva-llama"]
ALL = [*CAUSAL, "sva-bert"]

load = functools.cache(zoo.load)


def sample(sentence, verb="are", foil="is", evidence="keys"):
    """A sample; the verb and the evidence are where their text last occurs."""
    start, noun = sentence.rindex(verb), sentence.rindex(evidence)
    return Sample(
        sentence=sentence,
        verb_span=(start, start + len(verb)),
        verb=verb,
        foil=foil,
        evidence=((noun, noun + len(evidence)),),
        number="plural",
        n_attractors=0,
        source="made for the test",
        licence="BSD-3-Clause",
    )


KEYS = sample("the keys to the cabinet are old .")


def words(vocabulary, **options):
    """A tokenizer that cuts at blanks only, and knows these words only."""
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.normalizer = options.pop("normalizer", None) or normalizers.Sequence([])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", **options)


def tokens(tokenizer, tokenized, flags):
    chosen = [each for each, flag in zip(tokenized.ids, flags, strict=True) if flag]
    return tokenizer.convert_ids_to_tokens(chosen)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_see_the_text_before_the_verb(name):
    _, tokenizer = load(name)
    (one,) = tokenize([KEYS], tokenizer, "causal-lm")
    assert tokenizer.decode(one.ids, skip_special_tokens=True).strip() == KEYS.prefix
    assert one.position == len(one.ids) - 1
    assert [word[1:] for word in tokens(tokenizer, one, one.evidence)] == ["keys"]
    assert one.special == (True, *[False] * 5)
    assert tokenizer.decode([*one.ids, one.verb_id]).endswith("the cabinet are")
    assert tokenizer.decode([*one.ids, one.foil_id]).endswith("the cabinet is")


def test_masked_models_see_the_whole_sentence():
    _, tokenizer = load("sva-bert")
    (one,) = tokenize([KEYS], tokenizer, "masked-lm")
    seen = "[CLS] the keys to the cabinet [MASK] old . [SEP]"
    assert tokenizer.convert_ids_to_tokens(one.ids) == seen.split()
    assert one.position == 6
    assert tokens(tokenizer, one, one.evidence) == ["keys"]
    assert tokens(tokenizer, one, one.special) == ["[CLS]", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens([one.verb_id, one.foil_id]) == ["are", "is"]


def test_masked_models_see_evidence_behind_the_verb():
    _, tokenizer = load("sva-bert")
    behind = sample("here are the keys")
    (one,) = tokenize([behind], tokenizer, "masked-lm")
    assert tokens(tokenizer, one, one.evidence) == ["keys"]


@pytest.mark.parametrize("name", ALL)
def test_tokens_are_those_that_explain_uses(name):
    """One machinery: a tokenized sample asks a model what a `Target` for its text asks."""
    model, tokenizer = load(name)
    for one in tokenize(generate(20, "test", 1), tokenizer, task_of(model)):
        masked = task_of(model) == "masked-lm"
        text = one.sample.masked(tokenizer.mask_token) if masked else one.sample.prefix
        encoding = encode(model, tokenizer, text)
        target = Target(one.sample.verb, contrast=one.sample.foil)
        terms = target.terms(model, tokenizer, encoding)
        assert encoding.ids == one.ids
        assert terms.choices == (one.verb_id, one.foil_id)
        assert terms.position == one.position


@pytest.mark.parametrize("name", ALL)
def test_the_grammar_loses_no_sample(name):
    model, tokenizer = load(name)
    samples = generate(200, "test", 0)
    tokenized = tokenize(samples, tokenizer, task_of(model), max_length=context_length(model))
    assert [one.sample for one in tokenized] == samples
    assert tokenized.counts == {"given": 200, **dict.fromkeys(FILTERS, 0), "kept": 200}


WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyzABCé-'", min_size=1, max_size=9).filter(
    lambda word: word[0].isalnum() and word[-1].isalnum()
)


@st.composite
def sentences(draw):
    """Random words, two of them (or one) evidence, and a verb that the embedded models know."""
    drawn = draw(st.lists(WORDS, min_size=2, max_size=8))
    verb = draw(st.integers(1, len(drawn)))
    drawn.insert(verb, "are")
    others = st.integers(0, len(drawn) - 1).filter(lambda at: at != verb)
    evidence = sorted(draw(st.sets(others, min_size=1, max_size=2)))
    spans = [
        (start := sum(len(word) + 1 for word in drawn[:at]), start + len(drawn[at]))
        for at in [verb, *evidence]
    ]
    text = " ".join(drawn)
    return replace(KEYS, sentence=text, verb_span=spans[0], evidence=tuple(spans[1:]))


@pytest.mark.parametrize("name", ALL)
@given(drawn=sentences())
def test_evidence_tokens_cover_the_evidence_and_nothing_else(name, drawn):
    model, tokenizer = load(name)
    tokenized = tokenize([drawn], tokenizer, task_of(model), max_length=1000)
    behind = any(end > drawn.verb_span[0] for _, end in drawn.evidence)
    if tokenized.counts["text of one token"] or tokenized.counts["evidence is the whole text"]:
        start, end = drawn.verb_span
        seen = drawn.sentence[:start] + (drawn.sentence[end:] if name not in CAUSAL else "")
        assert len(seen.split()) <= len(drawn.evidence)
        return
    if not tokenized:
        assert tokenized.counts["evidence after verb"] == 1
        assert name in CAUSAL
        assert behind
        return
    (one,) = tokenized
    marked = [each for each, flag in zip(one.ids, one.evidence, strict=True) if flag]
    # A blank may be a token of its own, which is no evidence.
    found = tokenizer.decode(marked).replace(" ", "")
    wanted = "".join(drawn.sentence[start:end] for start, end in drawn.evidence)
    if name == "sva-bert":
        wanted = wanted.lower().replace("é", "e")  # all that it sees
    assert found == wanted


@pytest.mark.parametrize(
    ("reason", "name", "dropped"),
    [
        ("mask token in text", "sva-bert", sample("the [MASK] keys are old")),
        ("no blank before verb", "sva-gpt2", sample("the keys (are old")),
        ("no blank before verb", "sva-llama", sample("are the keys old")),
        ("evidence after verb", "sva-gpt2", sample("here are the keys")),
        ("too long", "sva-gpt2", sample("the keys " + "to the cabinet " * 30 + "are")),
        ("verb not one token", "sva-gpt2", sample("the keys jingle", "jingle", "is")),
        ("foil not one token", "sva-bert", sample("the keys are", foil="jingles")),
        ("unknown verb", "sva-bert", sample("the keys 狗", "狗", "is")),
        ("same token", "sva-bert", sample("the keys ARE", "ARE", "are")),
        ("unknown evidence", "sva-bert", sample("the 狗 are", evidence="狗")),
    ],
)
def test_each_filter(reason, name, dropped):
    model, tokenizer = load(name)
    tokenized = tokenize([KEYS, dropped, KEYS], tokenizer, task_of(model))
    assert [one.sample for one in tokenized] == [KEYS, KEYS]
    assert {name: n for name, n in tokenized.counts.items() if n} == {
        "given": 3,
        reason: 1,
        "kept": 2,
    }


def test_a_token_that_goes_on_behind_the_evidence():
    tokenizer = words(["[UNK]", "my", "cat's", "keys,", "are", "is"])
    cut = sample("my cat's are", evidence="cat")
    comma = sample("my keys, are")  # a comma is no other word
    tokenized = tokenize([cut, comma], tokenizer, "causal-lm")
    assert [one.sample for one in tokenized] == [comma]
    assert tokenized[0].evidence == (False, True)
    assert tokenized.counts["evidence not whole tokens"] == 1


def test_evidence_that_the_tokenizer_deletes():
    deleting = normalizers.Replace(Regex("x+"), "")
    tokenizer = words(["[UNK]", "the", "are", "is"], normalizer=deleting)
    tokenized = tokenize([sample("the xxx are", evidence="xxx")], tokenizer, "causal-lm")
    assert tokenized.counts["evidence not found"] == 1


def test_length_limit_is_the_tokenizers_if_it_states_one():
    vocabulary = ["[UNK]", "the", "keys", "are", "is"]
    limited, unlimited = words(vocabulary, model_max_length=2), words(vocabulary)
    short, long = sample("the keys are"), sample("the the keys are")
    assert [one.sample for one in tokenize([short, long], limited, "causal-lm")] == [short]
    assert len(tokenize([short, long], unlimited, "causal-lm")) == 2
    assert len(tokenize([short, long], unlimited, "causal-lm", max_length=2)) == 1
    assert len(tokenize([short, long], limited, "causal-lm", max_length=3)) == 2


def test_first_token_stands_in_front_and_counts():
    tokenizer = words(["[UNK]", "the", "keys", "are", "is", "<s>"])
    (one,) = tokenize([sample("the keys are")], tokenizer, "causal-lm", first_token="<s>")
    assert tokenizer.convert_ids_to_tokens(one.ids) == ["<s>", "the", "keys"]
    assert one.special == (True, False, False)
    assert one.evidence == (False, False, True)
    assert one.position == 2
    limited = tokenize(
        [sample("the keys are")], tokenizer, "causal-lm", first_token="<s>", max_length=2
    )
    assert limited.counts["too long"] == 1


def test_report_by_hand():
    tokenizer = words(["[UNK]", "the", "old", "keys", "are", "is"])
    short, long = sample("the keys are"), sample("the old old keys are")
    two = replace(long, evidence=((4, 7), (12, 16)))
    report = tokenize([short, two, sample("are keys")], tokenizer, "causal-lm").report()
    assert report.input_tokens is not None
    assert (report.input_tokens.mean, report.input_tokens.min, report.input_tokens.max) == (3, 2, 4)
    assert str(report).splitlines() == [
        "kept 2 of 3 samples",
        "  dropped 1: no blank before verb",
        "input tokens: mean 3.0, min 2, max 4",
        "evidence tokens: mean 1.5, min 1, max 2",
    ]


def test_report_of_nothing():
    tokenized = tokenize([], words(["[UNK]"]), "causal-lm")
    assert len(tokenized) == 0
    assert str(tokenized.report()) == "kept 0 of 0 samples"


def test_tokenized_samples_are_a_sequence():
    tokenizer = words(["[UNK]", "the", "keys", "are", "is"])
    given = [sample("the keys are"), sample("the the keys are")]
    tokenized = tokenize(given, tokenizer, "causal-lm")
    assert tuple(tokenized) == tokenized.samples == tokenized[:]
    assert tokenized[1].ids == (1, 1, 2)


# The evidence is to be found among other tokens.
@pytest.mark.parametrize("first_token", [None, "[BOS]"])
@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("keys are", "text of one token"),
        ("the keys are", "evidence is the whole text"),
        ("the the keys are", None),
    ],
)
def test_causal_samples_without_a_choice(sentence, reason, first_token):
    tokenizer = words(["[UNK]", "[BOS]", "the", "keys", "are", "is"])
    tokenizer.add_special_tokens({"bos_token": "[BOS]"})
    end = sentence.index(" are")
    given = replace(sample(sentence), evidence=((max(0, end - len("the keys")), end),))
    counts = tokenize([given], tokenizer, "causal-lm", first_token=first_token).counts
    assert {name for name, n in counts.items() if n} - {"given"} == {reason or "kept"}


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [("keys are", "text of one token"), ("keys are old", None), ("are keys", "text of one token")],
)
def test_the_mask_token_is_no_text(sentence, reason):
    tokenizer = words(["[UNK]", "[MASK]", "the", "keys", "are", "is", "old"])
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    counts = tokenize([sample(sentence)], tokenizer, "masked-lm").counts
    assert {name for name, n in counts.items() if n} - {"given"} == {reason or "kept"}


def test_other_tasks_are_refused():
    with pytest.raises(ValueError, match="not 'token-classification'"):
        tokenize([KEYS], words(["[UNK]"]), "token-classification")


def test_a_masked_model_needs_a_mask_token():
    with pytest.raises(ValueError, match="no mask token"):
        tokenize([KEYS], words(["[UNK]"]), "masked-lm")


def test_an_unknown_first_token_is_refused():
    with pytest.raises(ValueError, match="no token '<s>'"):
        tokenize([KEYS], words(["[UNK]"]), "causal-lm", first_token="<s>")


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False
        model_max_length = 10
        unk_token_id = None

    with pytest.raises(ValueError, match="load the fast version"):
        tokenize([KEYS], Slow(), "causal-lm")
