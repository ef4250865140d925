"""Segments: every token in exactly one, sums kept on every level, no character cut."""

import itertools
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from explanations import explanation
from hypothesis import given
from hypothesis import strategies as st

from captum_lrpx import Explanation, Region, Segments, Target, explain, zoo

TEXT = (
    "Dr. Smith paid $3.50 at 5 p.m. on Monday. She left!\n\n"
    "我喜欢猫。你呢\N{FULLWIDTH QUESTION MARK}\nक्षत्रिय 👩🏽‍🚀 é 🇩🇪. Done."
)
KINDS = ["paragraph", "line", "sentence", "word", "token"]


def of_text(text, size=3, **changes):
    """An explanation of a text with a token for each few characters, special ones around it."""
    cuts = [*range(0, len(text), size), len(text)]
    offsets = list(itertools.pairwise(cuts))
    tokens = ["<s>", *(text[a:b] for a, b in offsets), "</s>"]
    count = len(tokens)
    fields = {
        "text": text,
        "offsets": ((0, 0), *offsets, (0, 0)),
        "special": (True, *(False for _ in offsets), True),
        "relevances": tuple((-1) ** i * (i + 0.37) for i in range(count)),
        "ids": tuple(range(count)),
    }
    return explanation(tokens, **fields | changes)


@pytest.fixture(scope="module")
def explained():
    model, tokenizer = zoo.load("sva-llama")
    return explain(model, tokenizer, "the keys to the cabinet", Target("are", contrast="is"))


def assert_whole(segments):
    """A partition on the first level, and each segment the sum of its parts."""
    length = len(segments.explanation.relevances)
    tokens = [index for part in segments.parts for index in part.tokens]
    assert sorted(tokens) == list(range(length))
    for _, segment in segments.walk():
        relevances = [segments.explanation.relevances[index] for index in segment.tokens]
        assert segment.relevance == pytest.approx(sum(relevances))
        if segment.parts:
            inside = [index for part in segment.parts for index in part.tokens]
            assert sorted(inside) == sorted(segment.tokens)
    assert segments.level().sum == pytest.approx(segments.explanation.sum)
    assert segments.residual == pytest.approx(0, abs=1e-9)


levels = st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True)


@given(
    st.text(alphabet="ab. \n!क्ष👩🏽‍🚀é🇩🇪。", min_size=1), st.integers(1, 5), levels, st.booleans()
)
def test_every_token_is_in_one_segment_of_each_level(text, size, by, fold):
    result = of_text(text, size)
    if not text.strip():
        with pytest.raises(ValueError, match="no segment by"):
            result.segments(by)
    else:
        assert_whole(result.segments(by, fold_special=fold))


def test_sentences_paragraphs_and_lines():
    result = of_text(TEXT, 1)
    sentences = [part.text.strip() for part in result.segments("sentence").parts]
    assert sentences[:2] == ["Dr. Smith paid $3.50 at 5 p.m. on Monday.", "She left!"]
    assert "你呢\N{FULLWIDTH QUESTION MARK}" in sentences
    paragraphs = [part.text.strip() for part in result.segments("paragraph").parts]
    assert paragraphs[:2] == TEXT.split("\n\n")
    lines = [part.text.strip() for part in result.segments("line").parts]
    assert lines[:3] == [line for line in TEXT.split("\n") if line]


@pytest.mark.parametrize("size", [1, 2])
def test_no_character_is_cut(size):
    result = of_text(TEXT, size)
    for by in ("token", "word", re.compile("[\U0001f3fd\u0301\u200d\u094d]")):
        texts = [part.text for part in result.segments(by).parts]
        joined = [text for text in texts if "👩" in text or "🚀" in text]
        assert all("👩🏽‍🚀" in text for text in joined)
        assert not [text for text in texts if text.startswith(("\u0301", "\u200d", "\u094d"))]


def test_levels_are_nested():
    result = of_text(TEXT, 1)
    segments = result.segments(["paragraph", "sentence", "word"])
    assert_whole(segments)
    first = segments.parts[0]
    assert [sentence.kind for sentence in first.parts] == ["sentence", "sentence"]
    words = [word.text.strip() for word in first.parts[1].parts]
    assert [word for word in words if word] == ["She", "left", "!"]
    by_sentence = segments.level("sentence")
    assert isinstance(by_sentence, Explanation)
    assert by_sentence.sum == pytest.approx(result.sum)
    assert segments.top(1, "word")[0].kind == "word"
    assert "She left!" in by_sentence.to_html()


def test_documents_and_what_is_in_none():
    text = "Sources: Cats purr. They sleep. Dogs bark. Which animal purrs?"
    first, second = text.index("Cats"), text.index("Dogs")
    regions = (
        Region("document", "cats", first, second - 1),
        Region("document", "dogs", second, text.index("Which") - 1),
    )
    result = of_text(text, 1, regions=regions)
    segments = result.segments(["document", "sentence"])
    assert_whole(segments)
    names = [part.name for part in segments.parts]
    assert names == ["(elsewhere)", "cats", "dogs", "(special tokens)"]
    assert [part.text for part in segments.parts[1].parts] == ["Cats purr. ", "They sleep. "]
    assert [part.text.strip() for part in segments.parts[0].parts] == [
        "Sources:",
        "Which animal purrs?",
    ]


def test_regular_expressions_spans_and_examples():
    prompt = "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA: 4\n\nQ: 3+3?\nA:"
    result = of_text(prompt, 1)
    examples = result.segments("example").parts
    assert [part.text.strip() for part in examples[:3]] == prompt.split("\n\n")
    numbers = result.segments(re.compile(r"(?P<sum>\d\+\d)|(?P<answer>\d)"))
    assert [part.name for part in numbers.of("span")] == ["sum", "answer", "sum", "answer", "sum"]
    spans = result.segments([(0, 12), (14, 26)])
    assert [part.kind for part in spans.parts] == ["span", "span", "elsewhere", "special"]
    assert [part.text for part in spans.of("span")] == ["Q: 1+1?\nA: 2\n\n", "Q: 2+2?\nA: 4\n\n"]
    assert_whole(numbers)
    assert_whole(spans)


def test_the_ledger_has_the_rest(explained):
    segments = explained.segments("word")
    assert dict(segments.rest).keys() == {"softmax"}
    total = segments.sum + sum(amount for _, amount in segments.rest)
    assert total == pytest.approx(explained.value, abs=1e-5)
    assert segments.residual == pytest.approx(0, abs=1e-5)
    unchecked = replace(explained, certificate=None).segments("word")
    assert dict(unchecked.rest) == {"delta": explained.delta}


def test_views(explained):
    segments = explained.segments([re.compile("keys|cabinet"), "word"])
    assert isinstance(segments, Segments)
    shown = str(segments)
    for word in ("keys", "(elsewhere)", "(softmax)", "(residual)", "(value)", explained.target):
        assert word in shown
    frame = segments.to_pandas()
    assert frame[frame.depth == 0].relevance.sum() == pytest.approx(explained.sum)
    assert frame.attrs["value"] == explained.value
    assert "keys" in segments._repr_html_()


def test_regions_are_stored():
    result = of_text("one two", regions=(Region("document", "a", 0, 3),))
    assert Explanation.from_json(result.to_json()) == result
    broken = result.to_json().replace('"document"', "1")
    with pytest.raises(ValueError, match="not a stored explanation"):
        Explanation.from_json(broken)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("sentense", "no segments by 'sentense'.*did you mean 'sentence'"),
        ([], "`by` is empty"),
        ([1], "A level of segments is"),
        ("turn", "explain chat messages"),
        ("document", "explain_chat"),
        ("example", "no segment by 'example'"),
        (re.compile("xyz"), "no segment by 'xyz'"),
        ([(0, 3), (2, 4)], "not overlap"),
        ([(0, 300)], "not overlap"),
    ],
)
def test_what_cannot_be_split_is_refused(by, message):
    with pytest.raises(ValueError, match=message):
        of_text("the keys").segments(by)


def test_no_token_is_lost_where_a_segment_has_none():
    result = of_text("the keys", offsets=((0, 0), (0, 3), (4, 6), (6, 8), (0, 0)))
    between = [(3, 4)]
    with pytest.raises(ValueError, match="No token of the text is in a segment"):
        result.segments(between)
    for by in ([between, "word"], ["line", between], [between, between, "token"]):
        assert_whole(result.segments(by))


def test_spans_of_numpy():
    result = of_text("the keys")
    spans = [(0, 3), (4, 8)]
    assert result.segments([tuple(map(np.int64, each)) for each in spans]) == result.segments(spans)


def test_levels_that_are_not_there():
    segments = of_text("the keys").segments("word")
    with pytest.raises(ValueError, match="no segments of the kind 'sentence'"):
        segments.level("sentence")
    with pytest.raises(ValueError, match="k is a number of segments"):
        segments.top(-1)


def test_sentences_name_the_extra_that_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(ImportError, match=r"pip install 'captum-lrpx\[sentences\]'"):
        of_text("One. Two.").segments("sentence")
