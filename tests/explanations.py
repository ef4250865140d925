"""Explanations made by hand, and a reader of HTML pages."""

from __future__ import annotations

import io
from html.parser import HTMLParser

from rich.console import Console

from captum_lrpx import Explanation

TAGS = {"html", "head", "meta", "title", "style", "body", "p", "br", "div", "span", "footer"}
TAGS |= {"table", "tr", "th", "td", "details", "summary", "h3"}


def explanation(labels=("the", "keys"), relevances=(-0.5, 2.0), **changes):
    """An explanation of a text whose tokens are these labels, with a blank between them."""
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


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def assert_harmless(page):
    """No tag or attribute that we do not write ourselves."""
    tags = Page(page).tags
    assert {tag for tag, _ in tags} <= TAGS
    assert all(
        set(attrs) <= {"lang", "charset", "style", "title", "dir", "open"} for _, attrs in tags
    )


def printed(renderable, width=80):
    """What a color terminal gets."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="truecolor", width=width)
    console.print(renderable)
    return stream.getvalue()
