"""Explanation: a record that survives storage, and its heat maps."""

import json
import sys
from dataclasses import asdict, fields, replace

import pytest
import torch
from explanations import Page, assert_harmless, explanation, printed
from hypothesis import given
from hypothesis import strategies as st

from captum_lrpx import Explanation
from captum_lrpx.explanation.page import to_html
from captum_lrpx.explanation.terminal import heat_map, relevance_table, summary
from captum_lrpx.files import write_text

SCRIPT = "<script>alert(1)</script>"


def test_sum_and_delta():
    result = explanation()
    assert result.sum == 1.5
    assert result.delta == 0.25


def test_labels_are_the_text_or_the_name_of_a_special_token():
    result = explanation(
        ("the", "keys"), tokens=("<s>", "▁keys"), offsets=((0, 0), (4, 8)), special=(True, False)
    )
    assert result.labels == ("<s>", "keys")


def test_parts_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        explanation(relevances=(1.0,))


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(st.text(min_size=1), finite), min_size=1), finite)
def test_json_keeps_every_digit(pairs, value):
    labels, relevances = zip(*pairs, strict=True)
    result = explanation(labels, relevances, value=value)
    assert Explanation.from_json(result.to_json()) == result


def test_json_files(tmp_path):
    path = tmp_path / "explanation.json"
    result = explanation()
    result.to_json(path)
    assert Explanation.from_json(path) == result
    assert [each.name for each in tmp_path.iterdir()] == ["explanation.json"]


def test_json_keeps_everything():
    result = explanation(
        revision="abc", options={"n_steps": 5, "baseline": "zero"}, convergence_delta=0.1
    )
    assert Explanation.from_json(result.to_json()) == result
    words = result.words().fold_special() - 2 * result.words()
    assert Explanation.from_json(words.to_json()) == words


def test_json_of_the_first_version_is_read():
    record = asdict(explanation())
    for name in ("revision", "options", "convergence_delta"):
        del record[name]
    text = json.dumps({"format": "captum_lrpx.explanation/1", **record})
    assert Explanation.from_json(text) == explanation()


def test_json_of_a_newer_version_is_refused():
    text = explanation().to_json().replace("explanation/5", "explanation/6")
    with pytest.raises(ValueError, match="upgrade the package"):
        Explanation.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        {"relevances": ["much", 1.0]},
        {"relevances": [1.0]},
        {"offsets": [[0], [1]]},
        {"value": None},
        {"extra": 1},
        {"ids": 3},
    ],
)
def test_a_damaged_record_is_refused(change):
    record = json.loads(explanation().to_json()) | change
    with pytest.raises(ValueError, match="not a stored explanation"):
        Explanation.from_json(json.dumps(record))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"format": "other"}', '{"format": "captum_lrpx.explanation/1"}']
)
def test_what_is_not_an_explanation_is_refused(text):
    with pytest.raises(ValueError, match="not a stored explanation"):
        Explanation.from_json(text)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_html_shows_any_token_as_text(labels):
    shown = explanation(labels, [1.0] * len(labels))
    assert_harmless(shown.to_html())
    assert_harmless(shown._repr_html_())


@pytest.mark.parametrize("form", [to_html, Explanation._repr_html_])
def test_html_with_a_script_in_a_token(form):
    page = form(explanation((SCRIPT, "&amp;"), target=SCRIPT, model=SCRIPT))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&amp;amp;" in page


def test_a_fragment_leaves_the_page_around_it_alone():
    tags = {tag for tag, _ in Page(explanation()._repr_html_()).tags}
    assert tags == {"div", "p", "span", "br"}


def test_the_terminal_gets_no_control_characters_from_a_token():
    shown = printed(heat_map(explanation(("a\x1b[31mb", "c\r")))) + printed(
        relevance_table(explanation(("a\x1b[31mb", "c\r")))
    )
    assert "\x1b[31m" not in shown
    assert "\r" not in shown
    assert r"a\x1b[31mb" in shown


def test_markup_in_a_token_is_shown():
    assert "[bold]" in printed(heat_map(explanation(("[bold]", "x"))))
    assert "[bold]" in printed(relevance_table(explanation(("[bold]", "x"))))


def test_blanks_are_those_of_the_text():
    joined = explanation(("un", "known"), offsets=((0, 2), (2, 7)), text="unknown")
    assert heat_map(joined).plain == "unknown"
    assert heat_map(explanation()).plain == "the keys"
    special = explanation(
        ("<s>", "keys"), offsets=((0, 0), (0, 4)), text="keys", special=(True, False)
    )
    assert heat_map(special).plain == "<s> keys"


def test_the_summary_in_one_line():
    line = summary(replace(explanation(), value=2.0))
    assert line == ("logit of 'are' = +2.0000   sum of relevances +1.5000   delta +0.5000")


def test_printing_gives_the_table_and_the_source():
    text = str(explanation(options={"seed": 1}))
    assert text.splitlines() == [
        "position  token  relevance",
        "       0  the      -0.5000",
        "       1  keys     +2.0000",
        "",
        "logit of 'are' = +1.7500   sum of relevances +1.5000   delta +0.2500",
        "lrpx on m",
    ]
    assert "keys" in printed(explanation())
    assert "\x1b[" in printed(explanation())


def test_everything_that_is_printed_is_printable():
    hostile = explanation(("a\x1b[2J", "b"), target="t\x1b[2J", model="m\x1b[2J")
    for text in (str(hostile), printed(hostile)):
        assert "\x1b[2J" not in text
        assert text.count(r"\x1b[2J") == 3


# Arithmetic -------------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(numbers, numbers), min_size=1), numbers, numbers, numbers)
def test_arithmetic_is_that_of_the_numbers(pairs, left_value, right_value, factor):
    ours, theirs = zip(*pairs, strict=True)
    labels = ["x"] * len(pairs)
    left = explanation(labels, ours, value=left_value)
    right = explanation(labels, theirs, value=right_value)
    assert (left - right).relevances == tuple(a - b for a, b in pairs)
    assert (left - right).value == left_value - right_value
    assert (left + right).relevances == tuple(a + b for a, b in pairs)
    assert (factor * left).relevances == (left * factor).relevances
    assert (left * factor).value == factor * left_value
    assert (-left).relevances == tuple(-a for a in ours)
    assert (left / 4).relevances == tuple(a / 4 for a in ours)


def test_a_difference_says_what_it_is_of():
    left = explanation(target="logit of 'are'", method="lrpx", convergence_delta=1.0)
    right = replace(left, target="logit of 'is'", method="attnlrpx", options={"seed": 1})
    difference = left - right
    assert difference.target == "logit of 'are' minus logit of 'is'"
    assert difference.method == "lrpx minus attnlrpx"
    assert difference.model == "m"
    assert difference.options == {"seed": [None, 1]}
    assert difference.convergence_delta == 0
    assert (left - difference).target == (
        "logit of 'are' minus (logit of 'are' minus logit of 'is')"
    )
    assert (2 * difference / 3).target == ("(2 times (logit of 'are' minus logit of 'is')) over 3")
    assert (left - replace(left, convergence_delta=None)).convergence_delta is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (explanation(("a", "keys")), "different texts"),
        (replace(explanation(), tokens=("the", "##keys")), "different tokens"),
        (explanation(("the", "keys"), offsets=((0, 3), (3, 8))), "different tokens"),
    ],
)
def test_explanations_of_other_tokens_cannot_be_subtracted(other, message):
    for combine in (Explanation.__sub__, Explanation.__add__):
        with pytest.raises(ValueError, match=message):
            combine(explanation(), other)


def test_what_is_no_explanation_cannot_be_subtracted():
    with pytest.raises(TypeError):
        explanation() - 1
    with pytest.raises(TypeError):
        explanation() * explanation()


# Views and other forms --------------------------------------------------------------------------


def test_top():
    result = explanation(("a", "b", "c", "d"), (1.0, -3.0, 2.0, -3.0))
    assert [tuple(each) for each in result.top(2)] == [(1, "b", -3.0), (3, "d", -3.0)]
    assert [each.label for each in result.top(2, by="positive")] == ["c", "a"]
    assert [each.label for each in result.top(9, by="negative")] == ["b", "d", "a", "c"]
    assert result.top(0) == ()
    with pytest.raises(ValueError, match="number of tokens"):
        result.top(-1)
    with pytest.raises(ValueError, match="absolute, positive, negative"):
        result.top(1, by="size")


def test_pandas():
    result = explanation(("the", "the"), (-0.5, 2.0))
    frame = result.to_pandas()
    assert list(frame.columns) == ["token", "relevance", "start", "end", "special", "id"]
    assert tuple(frame.relevance) == result.relevances
    assert list(frame.token) == ["the", "the"]
    described = {each.name for each in fields(result)} - set(frame.attrs)
    assert described == {"tokens", "ids", "offsets", "special", "relevances"}
    assert "id" not in result.words().to_pandas()


def test_without_pandas_there_is_a_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'captum-lrpx\[pandas\]'"):
        explanation().to_pandas()


def test_html_files(tmp_path):
    page = explanation().to_html(tmp_path / "map.html")
    assert (tmp_path / "map.html").read_text() == page == to_html(explanation())


def visualize(monkeypatch, *records):
    """Captum's page for some records; it needs IPython only to show it."""
    from captum.attr import visualization

    monkeypatch.setattr(visualization, "HAS_IPYTHON", True)
    monkeypatch.setattr(visualization, "HTML", str, raising=False)
    monkeypatch.setattr(visualization, "display", lambda _: None, raising=False)
    return visualization.visualize_text(records)


def test_captum_shows_it(monkeypatch):
    result = explanation(("<s>", SCRIPT, "keys"), (0.0, -4.0, 1.0), target=f"logit of {SCRIPT}")
    record = result.to_captum(predicted_class=SCRIPT, predicted_probability=0.5, true_class=SCRIPT)
    torch.testing.assert_close(
        record.word_attributions, torch.tensor([0.0, -1.0, 0.25], dtype=torch.float64)
    )
    assert record.attr_score == result.sum
    assert record.convergence_score == result.delta
    page = visualize(monkeypatch, record, explanation(relevances=(0.0, 0.0)).to_captum())
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 4
    assert "&lt;s&gt;" in page
    assert "(0.50)" in page


def test_a_byte_order_mark_is_no_damage(tmp_path):
    result = explanation(["<s>", "a"])
    marked = "\ufeff" + result.to_json()
    assert Explanation.from_json(marked) == result
    (tmp_path / "e.json").write_text(marked, encoding="utf-8")
    assert Explanation.from_json(tmp_path / "e.json") == result
    with pytest.raises(ValueError, match="it is a list, not an object"):
        Explanation.from_json("[]")
