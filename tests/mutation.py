"""Variants of valid files: bytes changed, values of JSON replaced, and bytes without any sense."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

VALUES = [
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "are",
    "\x1b[31mred\x07",
    "<script>alert(1)</script>",
    "\ud800",
    "\0",
    [],
    [[]],
    [0, 1],
    {},
    {"format": "captum_lrpx.explanation/99"},
]


# Mutations ----------------------------------------------------------------------------------------


def mutated(seed: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """A variant of one seed, by one to four changes."""
    data = bytearray(seed)
    for _ in range(draw.randint(1, 4)):
        draw.choice(BYTE_CHANGES)(data, others, draw)
    return bytes(data)


def _flip(data: bytearray, _others: list[bytes], draw: random.Random) -> None:
    if data:
        data[draw.randrange(len(data))] = draw.randrange(256)


def _cut(data: bytearray, _others: list[bytes], draw: random.Random) -> None:
    del data[draw.randint(0, len(data)) :]


def _remove(data: bytearray, _others: list[bytes], draw: random.Random) -> None:
    start = draw.randint(0, len(data))
    del data[start : start + draw.randint(1, 20)]


def _insert(data: bytearray, _others: list[bytes], draw: random.Random) -> None:
    start = draw.randint(0, len(data))
    data[start:start] = draw.randbytes(draw.randint(1, 8))


def _repeat(data: bytearray, _others: list[bytes], draw: random.Random) -> None:
    start = draw.randint(0, len(data))
    data[start:start] = data[start : start + draw.randint(1, 40)] * draw.randint(1, 3)


def _splice(data: bytearray, others: list[bytes], draw: random.Random) -> None:
    other = draw.choice(others)
    data[draw.randint(0, len(data)) :] = other[draw.randint(0, len(other)) :]


BYTE_CHANGES = [_flip, _cut, _remove, _insert, _repeat, _splice]


def mutated_json(seed: bytes, draw: random.Random) -> bytes:
    """JSON with a value replaced, removed, renamed or doubled, in one line of it or more."""
    lines = [json.loads(line) for line in seed.decode().splitlines() if line.strip()]
    whole = len(lines) == 1
    chosen = draw.randrange(len(lines))
    lines = [
        _changed(line, draw) if index == chosen or draw.random() < 0.2 else line
        for index, line in enumerate(lines)
    ]
    text = "\n".join(json.dumps(line) for line in (lines[:1] if whole else lines))
    return text.encode("utf-8", "surrogatepass")


def _changed(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        kind = draw.random()
        if kind < 0.15:
            return {name: item for name, item in value.items() if name != key}
        if kind < 0.25:
            return value | {f"{key}x": value[key]}
        return value | {key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        if draw.random() < 0.2:
            return value[:place] + value[place + 1 :]
        return [*value[:place], _changed(value[place], draw), *value[place + 1 :]]
    return draw.choice(VALUES)


def nonsense(draw: random.Random) -> bytes:
    """Bytes without sense, or nested deeper than any stack."""
    if draw.random() < 0.02:
        return draw.choice([b"[", b'{"a":']) * draw.choice([100, 100_000])
    return draw.randbytes(draw.randint(0, 200))


def inputs(seeds: list[bytes], draw: random.Random, *, of_json: bool) -> bytes:
    """One input."""
    kind = draw.random()
    if kind < 0.05:
        return nonsense(draw)
    seed = draw.choice(seeds)
    if of_json and kind < 0.5:
        return mutated_json(seed, draw)
    return mutated(seed, seeds, draw)
