"""Draws the operations of a transformer block with their roles and rules.

python docs/images/block.py > docs/images/block.svg
"""

from __future__ import annotations

from typing import NamedTuple

WIDTH, HEIGHT = 860, 880
BOX, TALL = 148, 40
STREAM = 70

COLORS = {
    "linear": "#e6e8eb",
    "norm": "#c9e7cf",
    "scores, attention": "#c5dbff",
    "softmax": "#e0d0fb",
    "activation": "#ffe2ad",
    "gated product": "#ffcccb",
}
LRP, ATTN_LRP = "#0b4f9e", "#9a3b00"


class Box(NamedTuple):
    """An operation: its middle, its words, and its role."""

    x: int
    y: int
    words: str
    role: str


class Edge(NamedTuple):
    """From one operation to the next, with what each recipe multiplies the gradient by."""

    start: str
    end: str
    lrp: str = ""
    attn_lrp: str = ""
    dead: bool = False
    """Whether LRP lets nothing through here."""


BOXES = {
    "norm 1": Box(198, 62, "norm: x / [scale]", "norm"),
    "q": Box(330, 150, "query", "linear"),
    "k": Box(510, 150, "key", "linear"),
    "v": Box(720, 150, "value", "linear"),
    "scores": Box(420, 232, "Q · K", "scores, attention"),
    "softmax": Box(420, 306, "softmax", "softmax"),
    "mix": Box(570, 380, "A · V", "scores, attention"),
    "output": Box(570, 446, "output projection", "linear"),
    "add 1": Box(STREAM, 446, "+", "linear"),
    "norm 2": Box(198, 508, "norm: x / [scale]", "norm"),
    "gate": Box(420, 584, "gate", "linear"),
    "up": Box(720, 584, "up", "linear"),
    "activation": Box(420, 652, "activation: f(x) / x", "activation"),
    "product": Box(570, 726, "product", "gated product"),
    "down": Box(570, 792, "down", "linear"),
    "add 2": Box(STREAM, 792, "+", "linear"),
}
EDGES = [
    Edge("norm 1", "q", dead=True),
    Edge("norm 1", "k", dead=True),
    Edge("norm 1", "v"),
    Edge("q", "scores", "0", "½", dead=True),
    Edge("k", "scores", "0", "½", dead=True),
    Edge("scores", "softmax", dead=True),
    Edge("softmax", "mix", "0", "½", dead=True),
    Edge("v", "mix", "1", "½"),
    Edge("mix", "output"),
    Edge("output", "add 1"),
    Edge("norm 2", "gate", dead=True),
    Edge("norm 2", "up"),
    Edge("gate", "activation", dead=True),
    Edge("activation", "product", "0", "½", dead=True),
    Edge("up", "product", "1", "½"),
    Edge("product", "down"),
    Edge("down", "add 2"),
]


def line(points: list[tuple[int, int]], *, dead: bool = False) -> str:
    """An arrow along some points."""
    path = " ".join(f"{x},{y}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dead else ""
    return f'<polyline points="{path}"{dashes} marker-end="url(#head)"/>'


def way(edge: Edge) -> list[tuple[int, int]]:
    """The points of an edge: down, across, and down again."""
    start, end = BOXES[edge.start], BOXES[edge.end]
    if edge.start.startswith("norm"):
        turn = start.y
        return [(start.x + BOX // 2, turn), (end.x, turn), (end.x, end.y - TALL // 2)]
    if edge.end.startswith("add"):
        return [(start.x - BOX // 2, start.y), (end.x + 18, end.y)]
    if start.x == end.x:
        return [(start.x, start.y + TALL // 2), (end.x, end.y - TALL // 2)]
    side = BOX // 2 if start.x > end.x else -BOX // 2
    return [(start.x, start.y + TALL // 2), (start.x, end.y), (end.x + side, end.y)]


def factors(edge: Edge) -> str:
    """What the two recipes multiply the gradient of an edge by."""
    if not edge.lrp:
        return ""
    points = way(edge)
    x, y = points[0][0], (points[0][1] + points[1][1]) // 2
    half = 26
    return (
        f'<rect x="{x - half}" y="{y - 11}" width="{2 * half}" height="22" rx="11" '
        'fill="#fff" stroke="#8a9099"/>'
        f'<text x="{x}" y="{y + 5}" font-size="14" font-weight="600">'
        f'<tspan fill="{LRP}">{edge.lrp}</tspan><tspan fill="#8a9099"> | </tspan>'
        f'<tspan fill="{ATTN_LRP}">{edge.attn_lrp}</tspan></text>'
    )


def drawn(box: Box) -> str:
    """An operation."""
    color = COLORS[box.role]
    words = f'<text x="{box.x}" y="{box.y + 5}">{box.words}</text>'
    if box.words == "+":
        return f'<circle cx="{box.x}" cy="{box.y}" r="17" fill="{color}" stroke="#555"/>{words}'
    return (
        f'<rect x="{box.x - BOX // 2}" y="{box.y - TALL // 2}" width="{BOX}" height="{TALL}" '
        f'rx="6" fill="{color}" stroke="#555"/>{words}'
    )


def stream() -> list[str]:
    """The residual stream, and where the two branches leave it."""
    first, second = BOXES["add 1"].y, BOXES["add 2"].y
    parts = [
        line([(STREAM, 30), (STREAM, first - 18)]),
        line([(STREAM, first + 18), (STREAM, second - 18)]),
        line([(STREAM, second + 18), (STREAM, second + 62)]),
    ]
    norms = (BOXES[name] for name in ("norm 1", "norm 2"))
    return parts + [line([(STREAM, each.y), (each.x - BOX // 2, each.y)]) for each in norms]


def legend() -> str:
    """What colors, numbers and dashes mean."""
    x, y, parts = 120, HEIGHT - 34, []
    for role, color in COLORS.items():
        parts.append(
            f'<rect x="{x}" y="{y - 12}" width="15" height="15" rx="3" fill="{color}" '
            f'stroke="#555"/><text x="{x + 21}" y="{y}" text-anchor="start" font-size="13">'
            f"{role}</text>"
        )
        x += 40 + round(7.2 * len(role))
    parts.append(
        f'<text x="120" y="{HEIGHT - 10}" text-anchor="start" font-size="13">the gradient times '
        f'<tspan fill="{LRP}" font-weight="600">LRP</tspan> | '
        f'<tspan fill="{ATTN_LRP}" font-weight="600">AttnLRP</tspan>; no number: as it is; '
        "dashed: nothing passes under LRP; [ ]: held constant</text>"
    )
    return "".join(parts)


def main() -> None:
    """Print the picture."""
    labels = f'<text x="{STREAM}" y="20" font-size="13">residual stream</text>'
    shapes = [*stream(), *(line(way(edge), dead=edge.dead) for edge in EDGES)]
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="15" '
        'text-anchor="middle"><title>The operations of a transformer block, by role, with the '
        "factors of LRP and AttnLRP</title>"
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="#444"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#fff"/>'
        f'<g fill="none" stroke="#444" stroke-width="1.6">{"".join(shapes)}</g>'
        f'<g fill="#1c1e21">{labels}{"".join(map(drawn, BOXES.values()))}'
        f"{''.join(map(factors, EDGES))}{legend()}</g></svg>"
    )


if __name__ == "__main__":
    main()
