"""Words from tokens: every token in exactly one, nothing gained and nothing lost."""

import math
from itertools import pairwise

import pytest
from explanations import explanation
from hypothesis import given
from hypothesis import strategies as st

from captum_lrpx import Target, explain, zoo
from captum_lrpx.explanation.arithmetic import total
from captum_lrpx.words import token_runs, word_spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the keys", ["the", "keys"]),
        ("  the\n\tkeys ", ["the", "keys"]),
        ("don't (stop), well-known.", ["don't", "(", "stop", "),", "well-known", "."]),
        ("3.14 U.S.", ["3.14", "U.S", "."]),
        ("हिन्दी café e\u0301t\u0301", ["हिन्दी", "café", "e\u0301t\u0301"]),
        ("[MASK]", ["[", "MASK", "]"]),
        ("鍵は", ["鍵は"]),
        ("🍕👩\u200d👩\u200d👧", ["🍕", "👩\u200d👩\u200d👧"]),
        ("🍕 🍕!!🍕a🍕", ["🍕", "🍕", "!!", "🍕", "a", "🍕"]),
        ("👍🏽👍 ❤\ufe0f❤", ["👍🏽", "👍", "❤\ufe0f", "❤"]),
        ("🇩🇪🇫🇷🇩", ["🇩🇪", "🇫🇷", "🇩"]),
        ("1\ufe0f\u20e3 ☃\u0301x", ["1\ufe0f\u20e3", "☃\u0301", "x"]),
        ("🏴\U000e0067\U000e0062\U000e007f🏳\ufe0f\u200d🌈", None),
        ("", []),
        ("  ", []),
    ],
)
def test_the_words_of_a_text(text, words):
    if words is None:  # two flags, of eight code points
        words = [text[:4], text[4:]]
    assert [text[start:end] for start, end in word_spans(text)] == words


@given(st.text())
def test_words_and_blanks_are_the_whole_text(text):
    last = 0
    for start, end in word_spans(text):
        assert not text[last:start].strip()
        assert text[start:end].split() == [text[start:end]]
        last = end
    assert not text[last:].strip()


@st.composite
def tokenized(draw):
    """A text cut into tokens in any way: with gaps, empty and overlapping ones, special ones."""
    text = draw(st.text("ab .'-", max_size=30))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    offsets = list(pairwise(cuts))
    overlap = draw(st.booleans())
    if overlap:  # as the bytes of one character
        offsets = [each for each in offsets for _ in range(2)]
    offsets = [*offsets, (0, 0)]
    special = [draw(st.booleans()) and start == end for start, end in offsets]
    relevances = draw(st.lists(st.floats(-1e9, 1e9), min_size=len(offsets), max_size=len(offsets)))
    return explanation(
        ["t"] * len(offsets),
        relevances,
        text=text,
        offsets=tuple(offsets),
        special=tuple(special),
        position=draw(st.none() | st.integers(0, len(offsets) - 1)),
    )


def close(left, right, scale):
    return math.isclose(left, right, rel_tol=0, abs_tol=1e-14 * scale)


@given(tokenized())
def test_sums_are_preserved(tokens):
    scale = total(map(abs, tokens.relevances))
    for view in (tokens.words(), tokens.fold_special(), tokens.words().fold_special()):
        assert close(view.sum, tokens.sum, scale)
        assert close(view.delta, tokens.delta, scale)
        assert view.value == tokens.value
        assert (view.position is None) == (tokens.position is None)


@given(tokenized())
def test_every_token_is_in_one_word(tokens):
    spans = word_spans(tokens.text)
    runs = token_runs(tokens.text, tokens.offsets, tokens.special, spans)
    assert [index for run in runs for index in range(*run)] == list(range(len(tokens.tokens)))
    for start, end in runs:
        if any(tokens.special[start:end]):
            assert end == start + 1, "special tokens stand alone"


@given(tokenized())
def test_tokens_that_overlap_one_word_are_in_one(tokens):
    spans = word_spans(tokens.text)
    runs = token_runs(tokens.text, tokens.offsets, tokens.special, spans)
    home = {index: number for number, run in enumerate(runs) for index in range(*run)}
    ordered = tokens.offsets[:-1]  # the last one is out of order by construction
    for start, end in spans:
        inside = [
            index
            for index, (first, last) in enumerate(ordered)
            if first < end and start < last and not tokens.special[index]
        ]
        consecutive = inside == list(range(inside[0], inside[-1] + 1)) if inside else True
        assert not consecutive or len({home[index] for index in inside}) <= 1


@pytest.mark.parametrize("name", zoo.names())
@pytest.mark.parametrize("text", ["the Keys, un-locked, don't", "the author that\nguards  like"])
def test_words_of_the_embedded_tokenizers(name, text):
    tokens = explain(*zoo.load(name), text, Target("are", contrast="is"))
    words = tokens.words()
    found = [label for label, special in zip(words.labels, words.special, strict=True)]
    found = [each for each in found if each not in (*tokens.tokens[:1], "[SEP]", "[MASK]", "\n")]
    expected = [text[start:end] for start, end in word_spans(text)]
    assert [each for each in found if each.strip()] == expected
    assert close(words.sum, tokens.sum, total(map(abs, tokens.relevances)))
    assert words.ids == ()


def test_a_word_of_several_tokens():
    tokens = explanation(
        ("<s>", "un", "##lock", "it"),
        (1.0, 2.0, 3.0, 4.0),
        text="unlock it",
        offsets=((0, 0), (0, 2), (2, 6), (7, 9)),
        special=(True, False, False, False),
        position=2,
    )
    words = tokens.words()
    assert words.labels == ("<s>", "unlock", "it")
    assert words.relevances == (1.0, 5.0, 4.0)
    assert words.offsets == ((0, 0), (0, 6), (7, 9))
    assert words.special == (True, False, False)
    assert words.position == 1
    assert words.words() == words


def test_the_blank_before_a_word_is_a_part_of_it():
    tokens = explanation(
        ("a", "▁", "b", "\n", "c"),
        (1.0, 2.0, 4.0, 8.0, 16.0),
        text="a b\nc",
        offsets=((0, 1), (1, 2), (2, 3), (3, 4), (4, 5)),
    )
    assert tokens.words().relevances == (1.0, 6.0, 8.0, 16.0), "a line break stays apart"
    assert tokens.words().labels == ("a", "b", "\n", "c")


def test_special_tokens_join_nothing():
    labels = ("old", "?", "<|im_end|>", "!", "\n", "user")
    offsets = ((0, 3), (3, 4), (4, 14), (14, 15), (15, 16), (16, 20))
    special = tuple(label.startswith("<|") for label in labels)
    tokens = explanation(
        labels, (1.0,) * 6, text="old?<|im_end|>!\nuser", offsets=offsets, special=special
    )
    assert tokens.words().labels == labels
    assert tokens.fold_special().labels == ("old", "?", "!", "\n", "user", "(special tokens)")


def test_a_template_joins_nothing_with_the_contents():
    tokens = explanation(
        ("[", "INST", "]", "un", "lock", "!", "[", "/"),
        (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
        text="[INST]unlock![/",
        offsets=((0, 1), (1, 5), (5, 6), (6, 8), (8, 12), (12, 13), (13, 14), (14, 15)),
        template=(True, True, True, False, False, False, True, True),
    )
    words = tokens.words()
    assert words.labels == ("[", "INST", "]", "unlock", "!", "[/")
    assert words.template == (True, True, True, False, False, True)
    assert words.fold_special().labels == ("unlock", "!", "(special tokens)")
    assert words.fold_special().relevances == (24.0, 32.0, 199.0)
    assert tokens.fold_special().words().relevances == words.fold_special().relevances


@pytest.mark.parametrize("name", ["sva-gpt2", "sva-llama"])
def test_no_pictograph_is_cut(name):
    text = "the 🍕👩\u200d👩\u200d👧 👍🏽 🇩🇪🇫🇷 e\u0301"
    tokens = explain(*zoo.load(name), text, certify=False)
    assert len(tokens.tokens) > 40, "bytes"
    labels = tokens.words().labels[1:]
    assert [each for each in labels if each.strip()] == [
        text[start:end] for start, end in word_spans(text)
    ]


def test_a_token_across_words_joins_them():
    tokens = explanation(
        ("New", " York c", "ity"),
        (1.0, 2.0, 4.0),
        text="New York city",
        offsets=((0, 3), (3, 10), (10, 13)),
    )
    assert tokens.words().labels == ("New", "York city")
    assert tokens.words().relevances == (1.0, 6.0)


def test_spans_of_your_own():
    text = "the keys . they open"
    tokens = explanation(text.split(), (1.0, 2.0, 4.0, 8.0, 16.0))
    sentences = tokens.words([(0, 10), (11, 20)])
    assert sentences.labels == ("the keys .", "they open")
    assert sentences.relevances == (7.0, 24.0)
    one = tokens.words([(4, 8)])
    assert one.relevances == tokens.relevances, "what is in no span stays as it is"


@pytest.mark.parametrize("spans", [[(0, 0)], [(4, 8), (0, 3)], [(0, 5), (4, 8)], [(0, 99)]])
def test_spans_that_are_none(spans):
    with pytest.raises(ValueError, match="give spans"):
        explanation().words(spans)


def test_folding_keeps_all_relevance_in_one_entry():
    tokens = explanation(
        ("[CLS]", "keys", "[SEP]"),
        (1.0, 2.0, 4.0),
        text="keys",
        offsets=((0, 0), (0, 4), (0, 0)),
        special=(True, False, True),
        position=2,
    )
    folded = tokens.fold_special()
    assert folded.labels == ("keys", "(special tokens)")
    assert folded.relevances == (2.0, 5.0)
    assert folded.special == (False, True)
    assert folded.position == 1
    assert folded.sum == tokens.sum
    assert explanation().fold_special() == explanation()
