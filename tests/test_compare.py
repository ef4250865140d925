"""compare(): explanations side by side, and the rank correlations of their relevances."""

import math
from dataclasses import replace

import pytest
from explanations import Page, assert_harmless, explanation, printed
from hypothesis import assume, given
from hypothesis import strategies as st

from captum_lrpx import Comparison, Explanation, compare, explain, zoo
from captum_lrpx.compare import spearman

SCRIPT = "<script>alert(1)</script>"


def three():
    return [
        explanation(("a", "b", "c"), (1.0, 2.0, 3.0), method="first"),
        explanation(("a", "b", "c"), (3.0, 2.0, 1.0), method="second"),
        explanation(("a", "b", "c"), (1.0, 3.0, 2.0), method="third"),
    ]


def test_rank_correlations():
    result = compare(three())
    assert result.names == ("first", "second", "third")
    assert result.correlations == ((1.0, -1.0, 0.5), (-1.0, 1.0, -0.5), (0.5, -0.5, 1.0))


columns = st.lists(
    st.tuples(st.integers(-3, 3).map(float), st.floats(-10, 10)), min_size=2, max_size=12
)


@given(columns)
def test_spearman_is_that_of_pandas(pairs):
    import pandas as pd

    left, right = zip(*pairs, strict=True)
    assume(len(set(left)) > 1)
    assume(len(set(right)) > 1)
    expected = pd.DataFrame({"left": left, "right": right}).rank().corr().iloc[0, 1]
    assert spearman(left, right) == pytest.approx(expected, abs=1e-12)


@given(columns)
def test_spearman_knows_only_ranks(pairs):
    left, right = zip(*pairs, strict=True)
    value = spearman(left, right)
    assert value == spearman([math.exp(each) for each in left], right) or math.isnan(value)
    assert value == pytest.approx(-spearman(left, [-each for each in right]), nan_ok=True)
    assert value == pytest.approx(spearman(right, left), nan_ok=True)


def test_spearman_without_an_order_is_no_number():
    assert math.isnan(spearman((1.0, 1.0), (1.0, 2.0)))
    assert math.isnan(spearman((1.0, math.nan), (1.0, 2.0)))
    assert math.isnan(spearman((), ()))
    assert spearman((1.0, math.inf), (1.0, 2.0)) == 1.0
    with pytest.raises(ValueError, match="1 numbers cannot be correlated with 2"):
        spearman((1.0,), (1.0, 2.0))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{"method": "x"}, {"method": "y"}], ("x", "y")),
        ([{"model": "x"}, {"model": "y"}], ("lrpx, x", "lrpx, y")),
        ([{"recipe": "x"}, {"recipe": None}], ("lrpx, x", "lrpx")),
        ([{"target": "x"}, {"target": "y"}], ("lrpx, x", "lrpx, y")),
        ([{"options": {"seed": 1}}, {"options": {"seed": 2}}], ("lrpx, seed 1", "lrpx, seed 2")),
        ([{}, {}], ("lrpx 1", "lrpx 2")),
    ],
)
def test_names_are_what_tells_them_apart(changes, names):
    assert compare([explanation(**each) for each in changes]).names == names


def test_names_of_your_own():
    assert compare(three(), names="abc").names == ("a", "b", "c")
    for names in ("ab", "aab"):
        with pytest.raises(ValueError, match="as many different names"):
            compare(three(), names=names)


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="at least one"):
        compare([])
    with pytest.raises(ValueError, match="different texts"):
        compare([explanation(), explanation(("a", "b"))])
    with pytest.raises(ValueError, match="different tokens"):
        compare([explanation(), replace(explanation(), tokens=("x", "y"))])


def test_printing():
    text = str(compare(three()))
    assert text.splitlines()[2:8] == [
        "position  token    first   second    third",
        "       0  a      +1.0000  +3.0000  +1.0000",
        "       1  b      +2.0000  +2.0000  +3.0000",
        "       2  c      +3.0000  +1.0000  +2.0000",
        "          sum    +6.0000  +6.0000  +6.0000",
        "          delta  -4.2500  -4.2500  -4.2500",
    ]
    assert text.startswith("logit of 'are'\n")
    assert "rank correlation  first  second  third" in text
    assert "\x1b[" in printed(compare(three()))
    hostile = compare([explanation(("\x1b[2J", "b"), method="\x1b[2J", target="\x1b[2J")])
    assert "\x1b[2J" not in str(hostile) + printed(hostile)


def test_html():
    result = compare(
        [
            explanation((SCRIPT, "x"), method=SCRIPT, target=SCRIPT),
            explanation((SCRIPT, "x"), model=SCRIPT, target=SCRIPT),
        ]
    )
    for page in (result.to_html(), result._repr_html_()):
        assert_harmless(page)
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "style" not in {tag for tag, _ in Page(result._repr_html_()).tags}


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.text(), st.text())
def test_html_shows_anything_as_text(labels, method, model):
    shown = explanation(labels, [1.0] * len(labels), method=method, model=model, recipe=model)
    assert_harmless(compare([shown]).to_html())
    assert_harmless(compare([shown])._repr_html_())


def test_pandas():
    result = compare(three())
    frame = result.to_pandas()
    assert list(frame.columns) == ["token", "first", "second", "third"]
    assert list(frame.second) == [3.0, 2.0, 1.0]
    correlations = result.correlations_to_pandas()
    assert correlations.loc["first", "third"] == 0.5
    named = compare(three(), names=["token", "b", "c"])
    assert list(named.to_pandas().columns) == ["token", "token", "b", "c"]


def test_json(tmp_path):
    result = compare(three())
    result.to_json(tmp_path / "comparison.json")
    assert Comparison.from_json(tmp_path / "comparison.json") == result
    assert Comparison.from_json(result.to_json()) == result
    with pytest.raises(ValueError, match="not a stored explanation"):
        Explanation.from_json(result.to_json())
    with pytest.raises(ValueError, match="not a stored comparison"):
        Comparison.from_json(explanation().to_json())


def test_html_files(tmp_path):
    page = compare(three()).to_html(tmp_path / "comparison.html")
    assert (tmp_path / "comparison.html").read_text() == page


def test_words_and_special_tokens():
    model, tokenizer = zoo.load("sva-bert")
    both = compare(
        explain(model, tokenizer, "the Keys", "are", method=method) for method in ("lrpx", "random")
    )
    words = both.words()
    assert words.labels == ("[CLS]", "the", "Keys", "[MASK]", "[SEP]")
    assert words.fold_special().labels == ("the", "Keys", "[MASK]", "(special tokens)")
    assert words.names == both.names
