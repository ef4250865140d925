"""What a reader sees: whole characters, each drawn once, and nothing invisible."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from explanations import Page, assert_harmless, explanation, printed
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from captum_lrpx.characters import character_runs, joined, readable
from captum_lrpx.explanation.page import to_html
from captum_lrpx.explanation.pieces import pieces
from captum_lrpx.explanation.terminal import heat_map, plain, relevance_table

FAMILY = "👩\u200d👩\u200d👧"


def in_bytes(text):
    """An explanation whose tokens are the bytes of a text, with relevances 1, 2, 4, ..."""
    offsets = []
    for place, char in enumerate(text):
        count = len(char.encode())
        offsets += [(place, place + 1)] * count
    relevances = [float(2**index) for index in range(len(offsets))]
    tokens = [f"<0x{byte:02X}>" for byte in text.encode()]
    return explanation(
        ["x"] * len(offsets), relevances, tokens=tuple(tokens), offsets=tuple(offsets), text=text
    )


def spans(page):
    """Text and title of the spans of a heat map."""
    reader = SpanReader(page)
    return reader.spans


class SpanReader(Page):
    def __init__(self, page):
        self.spans, self.open = [], None
        super().__init__(page)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        self.open = dict(attrs).get("title") if tag == "span" else None

    def handle_data(self, data):
        super().handle_data(data)
        if self.open is not None:
            self.spans.append((data, self.open))
            self.open = None


def test_relevances_of_a_character_may_sum_to_infinity():
    shown = in_bytes("日")
    shown = replace(shown, relevances=(1.5e308,) * len(shown.tokens))
    assert [piece.relevance for piece in pieces(shown)] == [float("inf")] == [shown.sum]
    assert "+inf" in str(shown)


@pytest.mark.parametrize(
    "character",
    [
        "日",
        "🍕",
        "é",
        "e\N{COMBINING ACUTE ACCENT}",
        FAMILY,
        "👍🏽",
        "🇫🇷",
        "❤\ufe0f",
        "한",
        "क्ष",
        "हि",
    ],
)
def test_a_character_of_several_tokens_is_drawn_once(character):
    shown = in_bytes(f"a{character}b")
    count = len(character.encode())
    total = sum(shown.relevances[1:-1])
    drawn = pieces(shown)
    assert [piece.label for piece in drawn] == ["a", character, "b"]
    assert [piece.relevance for piece in drawn] == [1.0, total, shown.relevances[-1]]
    assert [piece.place for piece in drawn] == ["0", f"1-{count}", str(count + 1)]
    for page in (shown.to_html(), shown._repr_html_()):
        labels = [label for label, _ in spans(page)]
        assert labels[:3] == ["a", character, "b"]
        title = spans(page)[1][1]
        assert title.startswith(f"{total:+.6g} = ")
        for byte, relevance in zip(character.encode(), shown.relevances[1:-1], strict=True):
            assert f"<0x{byte:02X}> {relevance:+.6g}" in title
    assert heat_map(shown).plain == f"a{character}b"
    assert f" {character} " in plain(shown).replace("\n", " ")
    assert relevance_table(shown).row_count == 3


def test_two_flags_are_two_pieces():
    assert [piece.label for piece in pieces(in_bytes("🇫🇷🇩🇪"))] == ["🇫🇷", "🇩🇪"]


def test_a_token_with_parts_of_two_characters_joins_them():
    shown = explanation(
        ("", "", ""), (1.0, 2.0, 4.0), text="日本", offsets=((0, 1), (0, 2), (1, 2))
    )
    assert [(piece.label, piece.relevance) for piece in pieces(shown)] == [("日本", 7.0)]


def test_special_tokens_stand_alone():
    shown = explanation(
        ("<s>", "ab", "<e>"),
        (1.0, 2.0, 3.0),
        text="<s>ab<e>",
        offsets=((0, 3), (3, 5), (5, 8)),
        special=(True, False, True),
    )
    assert [piece.label for piece in pieces(shown)] == ["<s>", "ab", "<e>"]
    assert heat_map(shown).plain == "<s>ab<e>"


@given(st.text(min_size=1, max_size=12), st.data())
def test_every_token_is_in_one_piece(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    offsets = list(pairwise(bounds))
    runs = character_runs(text, offsets, [False] * len(offsets))
    assert [index for run in runs for index in range(*run)] == list(range(len(offsets)))
    for first, _ in runs[1:]:
        start, end = offsets[first]
        assert (
            start == end
            or offsets[first - 1][0] == offsets[first - 1][1]
            or not joined(text, start)
        )


@given(st.text())
def test_a_readable_text_commands_nothing(text):
    shown = readable(text)
    assert "\n" not in shown
    assert not {"\u202a", "\u202b", "\u202d", "\u202e", "\u2066", "\u2067", "\x1b"} & set(shown)
    assert readable(shown) == shown or not shown.strip(" ")
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("keys", "keys"),
        ("\n", "↵"),
        ("\r\n", "↵"),
        ("\n\n", "↵↵"),
        (" ", "␣"),
        ("  ", "␣␣"),
        ("\t", "⇥"),
        ("a\x1b[2J", r"a\x1b[2J"),
        ("\u202eabc", r"\u202eabc"),
        ("\ud800", r"\ud800"),
        (FAMILY, FAMILY),
        ("می\u200cدید", "می\u200cدید"),
    ],
)
def test_what_is_invisible_gets_a_sign(text, shown):
    assert readable(text) == shown


@pytest.mark.parametrize("blank", [" ", "\n", "\n\n"])
def test_blanks_and_line_breaks_have_one_sign_in_every_table(blank):
    shown = explanation(
        ("", "", ""),
        (1.0, 2.0, 3.0),
        text=f"a{blank}b",
        offsets=((0, 1), (1, 1 + len(blank)), (1 + len(blank), 2 + len(blank))),
    )
    sign = readable(blank)
    assert f" {sign} " in plain(shown)
    assert sign in Page(to_html(shown)).text
    assert heat_map(shown).plain == ("a b" if blank == " " else f"a{sign}\nb")


def test_letters_that_join_are_not_torn_apart():
    """Nothing between or around the spans of a word keeps a browser from shaping across them."""
    text = "مرحبا بالعالم"
    offsets = tuple((place, place + 1) for place in range(len(text)))
    shown = explanation(["x"] * len(text), [1.0] * len(text), text=text, offsets=offsets)
    page = Page(to_html(shown))
    paragraph = next(attrs for tag, attrs in page.tags if tag == "p" and "dir" in attrs)
    assert paragraph["dir"] == "auto"
    for attrs in (attrs for tag, attrs in page.tags if tag == "span" and "title" in attrs):
        rules = dict(rule.split(":") for rule in attrs["style"].split(";"))
        assert rules["padding"].split()[1] == "0"
        assert not {"margin", "border", "display", "unicode-bidi", "letter-spacing"} & set(rules)
    assert text in page.text


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_pages_of_any_text_are_harmless(parts):
    text = "".join(parts)
    shown = in_bytes(text.encode("utf-8", "replace").decode())
    assert_harmless(to_html(shown))


# Colors -----------------------------------------------------------------------------------------


def looks(relevances):
    shown = explanation([f"t{index}" for index in range(len(relevances))], relevances)
    page = Page(to_html(shown))
    return [attrs["style"] for tag, attrs in page.tags if "title" in attrs], page.text


def opacity(style):
    return float(style.split("rgba(")[1].split(")")[0].split(",")[3])


def test_colors_are_relative_to_the_largest_relevance():
    (positive, negative, nothing), text = looks((4.0, -2.0, 0.0))
    assert "rgba(214,39,40,0.8)" in positive
    assert "rgba(31,119,180,0.4)" in negative
    assert opacity(nothing) == 0
    assert "-4" in text
    assert "+4" in text
    assert "outlined" not in text


@pytest.mark.parametrize("relevances", [(0.0, 0.0), (math.inf, 1.0), (math.nan, 1.0)])
def test_relevances_without_a_scale_have_no_color_and_no_legend(relevances):
    styles, text = looks(relevances)
    assert [opacity(style) for style in styles] == [0.0, 0.0]
    assert "for the target" not in text


@pytest.mark.parametrize("length", [6, 40, 400])
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("size", [100.0, -100.0])
def test_one_large_token_does_not_wash_out_the_others(length, place, size):
    relevances = [(-1.0) ** index for index in range(length)]
    relevances[place] = size
    styles, text = looks(relevances)
    assert opacity(styles.pop(place)) == 0.8
    assert all(opacity(style) >= 0.3 for style in styles)
    assert sum("outline" in style for style in looks(relevances)[0]) == 1
    assert "beyond the scale, up to 100" in text


def test_the_sign_shows_without_color():
    styles, text = looks((1.0, -1.0, 0.0))
    assert ["underline" in style for style in styles] == [False, True, False]
    assert "against" in text
    marked = printed(heat_map(explanation(("a", "b", "c"), (1.0, -1.0, 0.0))))
    assert marked.count("\x1b[4;") == 1


def test_a_long_table_is_folded():
    for length, folded in ((5, False), (400, True)):
        page = Page(to_html(explanation(["t"] * length, [1.0] * length)))
        (details,) = [attrs for tag, attrs in page.tags if tag == "details"]
        assert ("open" not in details) == folded


def test_printing_in_a_notebook_displays_nothing_else(monkeypatch):
    """``rich`` takes a notebook's shell for a screen, and would display what is only formatted."""
    import builtins

    import rich.jupyter

    from captum_lrpx import compare

    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    displayed = []
    monkeypatch.setattr(rich.jupyter, "display", lambda *parts: displayed.append(parts))
    assert Console().is_jupyter
    one = explanation()
    assert "keys" in str(one)
    assert "keys" in str(compare([one]))
    assert displayed == []
