"""Pictures for papers: every token, its color, the sign without color, the same file each time."""

import re
import sys
import xml.etree.ElementTree as ET

import pytest
import torch
from explanations import explanation

from captum_lrpx import AttnLRPx, LayerLRPx, LLMRelevance, TokenLogits, draw, explain, zoo
from captum_lrpx.explanation.pieces import colored
from captum_lrpx.visualization.colors import opaque

PROMPT = "the keys to the cabinet"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def loaded():
    return zoo.load("sva-gpt2")


def svg(path, *args, **options):
    draw(*args, path, **options)
    root = ET.fromstring(path.read_text("utf-8"))  # noqa: S314 - our own file
    texts = ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]
    return root, texts


def fills(root):
    styles = (each.get("style", "") for each in root.iter(f"{SVG}path"))
    return [found[1] for style in styles if (found := re.search(r"fill: (#\w{6})", style))]


def test_a_text_has_every_token_in_its_color(tmp_path):
    shown = explanation(("the", "k$e_y{s}", "<b>&", "我喜欢"), (0.0, 1.0, -1.0, 0.5))
    root, texts = svg(tmp_path / "map.svg", shown)
    assert texts[:-1] == ["the", "k$e_y{s}", "<b>&", "我喜欢"]
    assert "full color at 1" in texts[-1]
    expected = [
        "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", color))
        for color in (opaque(strength) for _, strength in colored(shown))
    ]
    assert [fill for fill in fills(root) if fill != "#000000"][-4:] == expected


def test_a_long_text_is_broken_into_lines(tmp_path):
    shown = explanation([f"word{i}" for i in range(80)], [float(i % 5 - 2) for i in range(80)])
    root, texts = svg(tmp_path / "map.svg", shown)
    width = float(root.get("width").removesuffix("pt"))
    places = [float(each.get("x")) for each in root.iter(f"{SVG}text")]
    assert len(texts) == 81
    assert max(places) < width


def test_the_legend_fits_a_column(tmp_path, loaded):
    found = explain(*loaded, PROMPT, "are", certify=False)
    count = len(found.tokens)
    root, texts = svg(tmp_path / "narrow.svg", found, width=2.1)
    wide, whole = svg(tmp_path / "wide.svg", found, width=12)
    legend = texts[count:]
    assert len(legend) > 1
    assert sorted(" ".join(legend).split()) == sorted(" ".join(whole[count:]).split())
    assert max(map(len, legend)) * 0.602 * 0.75 * 9 <= 2.1 * 72  # a character is 0.602 of the size
    heights = [float(each.get("y")) for each in root.iter(f"{SVG}text")]
    assert len({*heights[count:]}) == len(legend)
    assert float(wide.get("height").removesuffix("pt")) < float(
        root.get("height").removesuffix("pt")
    )


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_the_same_picture_is_the_same_file(ending, tmp_path, loaded):
    found = explain(*loaded, PROMPT, "are", certify=False)
    first, second = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    draw(found, first)
    draw(found, second)
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_bytes()) > 1000


def test_latex(tmp_path):
    labels = ("50%", "a_b{c}$d#", "\\n~^", "x", "big")
    shown = explanation(labels, (1.0, -1.0, 0.0, 0.01, 50.0))
    draw(shown, tmp_path / "map.tex")
    text = (tmp_path / "map.tex").read_text("utf-8")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    plain = re.sub(r"\\[\\{}$&#%_]", "", body)
    assert plain.count("{") == plain.count("}")
    assert not re.search(r"[%#&~^$_]", plain)
    assert body.count("colorbox") == 5
    assert body.count("\\underline") == 1
    assert "\\fcolorbox[RGB]{0,0,0}{214,39,40}{\\strut big}" in body
    assert "\\colorbox[RGB]{255,255,255}{\\strut \\textbackslash{}n" in body


def test_layers_and_tokens(tmp_path, loaded):
    model, tokenizer = loaded
    found = explain(model, tokenizer, PROMPT, "are", certify=False)
    blocks = list(model.transformer.h)
    ids = torch.tensor([found.ids])
    target = tokenizer.convert_tokens_to_ids("Ġare")
    values = LayerLRPx(TokenLogits(model), blocks).attribute(ids, target=target)
    layers = torch.stack([each[0].sum(-1) for each in values])
    _, texts = svg(tmp_path / "layers.svg", found, layers=layers)
    assert [text for text in texts if text.startswith("layer")] == [
        f"layer {index}" for index in range(len(blocks))
    ]
    assert "keys" in texts
    with pytest.raises(ValueError, match="a relevance for each token"):
        draw(found, tmp_path / "layers.svg", layers=layers[:, 1:])


def test_generated_tokens_and_all_tokens(tmp_path):
    model, tokenizer = zoo.load("sva-llama")
    result = LLMRelevance(AttnLRPx(model), tokenizer).attribute(PROMPT, target="are old .")
    root, texts = svg(tmp_path / "matrix.svg", result)
    named = [text for text in texts if text in ("are", "old", ".")]
    assert named == [".", "old", "are", "are", "old", "."], "rows from the bottom, then columns"
    assert len(fills(root)) >= 3 * len(result.labels)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("map.gif", {}, "A picture is .svg, .pdf, .png, .tex"),
        ("map.tex", {"layers": torch.ones(2, 2)}, "A matrix is no text"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(explanation(), tmp_path / name, **options)


def test_what_it_needs_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'captum-lrpx\[plot\]'"):
        draw(explanation(), tmp_path / "map.pdf")
    draw(explanation(), tmp_path / "map.tex")
