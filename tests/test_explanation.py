"""Explanation: a record that survives storage, and its heat maps."""

import io
import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from captum_lrpx import Explanation
from captum_lrpx.files import write_text
from captum_lrpx.visualization import heat_map, relevance_table, summary, to_html


def explanation(labels=("the", "keys"), relevances=(-0.5, 2.0), **changes):
    text = " ".join(labels)
    offsets, start = [], 0
    for label in labels:
        offsets.append((start, start + len(label)))
        start += len(label) + 1
    fields = {
        "text": text,
        "tokens": tuple(labels),
        "ids": tuple(range(len(labels))),
        "offsets": tuple(offsets),
        "special": (False,) * len(labels),
        "relevances": tuple(relevances),
        "value": 1.75,
        "target": "logit of 'are'",
        "position": 1,
        "method": "lrpx",
        "recipe": "lrp",
        "model": "m",
        "dtype": "float32",
        "versions": {"captum_lrpx": "0"},
    }
    return Explanation(**fields | changes)


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


class Page(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_html_shows_any_token_as_text(labels):
    page = Page(to_html(explanation(labels, [1.0] * len(labels))))
    allowed = {"html", "head", "meta", "title", "style", "body", "p", "span", "table", "tr", "th"}
    assert {tag for tag, _ in page.tags} <= allowed | {"td", "footer"}
    assert all(
        set(attrs) <= {"lang", "charset", "class", "style", "title"} for _, attrs in page.tags
    )


def test_html_with_a_script_in_a_token():
    page = to_html(explanation(("<script>alert(1)</script>", "&amp;")))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&amp;amp;" in page


def test_colors_are_relative_to_the_largest_relevance():
    page = Page(to_html(explanation(("a", "b", "c"), (4.0, -2.0, 0.0))))
    colors = [attrs["style"] for tag, attrs in page.tags if tag == "span"]
    assert colors == [
        "background:rgb(214,39,40)",
        "background:rgb(143,187,218)",
        "background:rgb(255,255,255)",
    ]


@pytest.mark.parametrize("relevances", [(0.0, 0.0), (math.inf, 1.0)])
def test_relevances_without_a_scale_are_white(relevances):
    page = to_html(explanation(relevances=relevances))
    assert page.count("background:rgb(255,255,255)") == 2


def printed(renderable):
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, color_system="truecolor", width=80).print(renderable)
    return stream.getvalue()


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
