"""Interactive page: the sources of each generated token, by method and segment."""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_lrpx.visualization.markup import escaped

if TYPE_CHECKING:
    from collections.abc import Sequence


_CSP = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_BODY = """<header>
<p id="value" aria-live="polite"></p>
<div id="controls">
<label>method <select id="method"></select></label>
<label>sums over <select id="level"></select></label>
<label><input type="checkbox" id="special" checked> special tokens</label>
<span><span class="sign">against</span> <span id="low"></span><span id="scale"></span
><span id="high"></span> for the target</span>
<span id="largest"></span><span id="status" role="status"></span>
</div>
<div id="ledger" role="img" aria-label="where the explained value is"></div>
</header>
<p id="text" dir="auto"></p>
<p class="help">Point at a <b>bold</b> token to see where it comes from; click, Enter or Space
holds it, arrows go on, Escape lets go.</p>
<details id="numbers"><summary>relevances in numbers (the 50 largest)</summary>
<table><tbody id="rows"></tbody></table></details>
<noscript>This page needs JavaScript; <code>to_html()</code> writes one that does not.</noscript>"""


def view_page(title: str, data: dict[str, Any], footer: Sequence[str]) -> str:
    """Build the page: one file with its script, which loads nothing.

    Args:
        title: Its title.
        data: The values that the script reads.
        footer: Lines about its origin.
    """
    here = files("captum_lrpx.visualization")
    style, script = (here.joinpath(f"view.{kind}").read_text("utf-8") for kind in ("css", "js"))
    lines = "<br>".join(map(escaped, footer))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{_BODY}\n"
        f"<footer>{lines}</footer>\n"
        f'<script type="application/json" id="data">{_json(data)}</script>\n'
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def packed(relevances: Sequence[Sequence[float]]) -> str:
    """Relevances ``[R, T]`` for the script: as float32, little-endian, in base64."""
    return base64.b64encode(np.asarray(relevances, dtype="<f4").tobytes()).decode("ascii")


def _json(data: Any) -> str:
    """JSON that no text in it can terminate; infinite and undefined numbers as null."""
    finite = json.loads(json.dumps(data), parse_constant=lambda _: None)
    text = json.dumps(finite, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
