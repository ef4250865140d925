"""JSON form of explanations, with the version of the format."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from captum_lrpx.explanation.certificate import Certificate
from captum_lrpx.extras import imported
from captum_lrpx.files import write_text
from captum_lrpx.segments import Region
from captum_lrpx.targets import Part, Standing

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from captum_lrpx.explanation.record import Explanation


VERSION = 5
"""Version of all formats, as in ``captum_lrpx.explanation/5`` and ``captum_lrpx.comparison/5``.

Version 1 had no revision, options and convergence delta, and no comparisons; version 2 had no
certificate; version 3 had no ranks and probabilities, one text, and no chat template;
version 4 had no turns and documents.
"""

_FORMAT = re.compile(r"captum_lrpx\.(\w+)/(\d+)")

_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("text", "target", "method", "model", "dtype"), (str,)),
    **dict.fromkeys(("recipe", "revision"), (str, _NONE)),
    **dict.fromkeys(("tokens", "ids", "offsets", "special", "relevances"), (list, tuple)),
    **dict.fromkeys(("versions", "options"), (dict,)),
    **dict.fromkeys(("template", "standings", "parts", "regions"), (list, tuple, _NONE)),
    "position": (int, _NONE),
    "convergence_delta": (int, float, _NONE),
}

_BROKEN = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""Errors from reading JSON of another kind, or malformed JSON."""

T = TypeVar("T")


def record_of(explanation: Explanation) -> dict[str, Any]:
    """Convert an explanation to values that JSON can store."""
    return asdict(explanation)


def fields_of(record: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of an explanation, restored from a record.

    Raises:
        KeyError: If something is missing or malformed.
        TypeError: The same.
        ValueError: The same.
    """
    record = dict(record)
    for name, kinds in _KINDS.items():
        if name in record and not isinstance(record[name], kinds):
            raise TypeError(f"its {name} is {type(record[name]).__name__}")
    for name, restore in _ITEMS.items():
        if record.get(name) is not None:
            record[name] = tuple(map(restore, record[name]))
    record["value"] = float(record["value"])
    record["certificate"] = _certificate_of(record.get("certificate"))
    return record


def _certificate_of(record: Any) -> Certificate | None:
    if record is None:
        return None
    if not isinstance(record, dict):
        raise TypeError(f"its certificate is {type(record).__name__}")
    amounts = record.get("ledger_delta")
    if isinstance(amounts, list):
        record = {**record, "ledger_delta": tuple((str(k), float(v)) for k, v in amounts)}
    return _restored(Certificate, record, "its certificate")


def _restored(kind: type[T], record: dict[str, Any], what: str) -> T:
    """Build a dataclass from a record whose values have the declared types."""
    hints = get_type_hints(kind)
    for name, value in record.items():
        hint = hints.get(name)
        options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if type(value) not in [get_origin(each) or each for each in options]:
            raise TypeError(f"{what} has {name!r} as {type(value).__name__}")
    return kind(**record)


def _span_of(item: Any) -> tuple[int, int]:
    start, end = item
    return int(start), int(end)


def _part_of(item: Any) -> Part:
    grid = item["grid"]
    grid = None if grid is None else (int(grid[0]), int(grid[1]))
    return _restored(Part, {**item, "grid": grid}, "a part")


def _region_of(item: Any) -> Region:
    kind, name, start, end = item
    if type(kind) is not str or type(name) is not str:
        raise TypeError("a region has no name")
    return Region(kind, name, int(start), int(end))


_ITEMS: dict[str, Callable[[Any], Any]] = {
    "tokens": str,
    "ids": int,
    "offsets": _span_of,
    "special": bool,
    "relevances": float,
    "template": bool,
    "standings": partial(_restored, Standing, what="a standing"),
    "parts": _part_of,
    "regions": _region_of,
}
"""Conversions of what JSON has in lists."""


def strings_of(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """Read a list of strings from a record.

    Raises:
        KeyError: If it is missing.
        TypeError: If it is something else.
    """
    values = record[name]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"its {name} are no list of strings")
    return tuple(values)


def save(kind: str, content: dict[str, Any], path: str | os.PathLike[str] | None) -> str:
    """Write content as JSON, preceded by its format; floats keep every digit.

    Args:
        kind: ``"explanation"``, ``"comparison"`` or ``"generation"``.
        content: The content.
        path: File to write as well, atomically.

    Returns:
        The JSON text.
    """
    record = {"format": f"captum_lrpx.{kind}/{VERSION}", **content}
    text = json.dumps(record, ensure_ascii=False, indent=1)
    write_text(path, text + "\n")
    return text


def load(kind: str, source: str | os.PathLike[str], build: Callable[[dict[str, Any]], T]) -> T:
    """Read JSON written by :func:`save`, also by an older version of this package.

    Args:
        kind: As for :func:`save`.
        source: JSON text, or the path of a file.
        build: Builds the object from the content.

    Returns:
        The object built.

    Raises:
        ValueError: If it is something else, or of a newer version.
    """
    try:
        content = json.loads(_text_of(source))
        if not isinstance(content, dict):
            raise TypeError(f"it is a {type(content).__name__}, not an object")
        _check(kind, content.pop("format", None))
        return build(content)
    except _BROKEN as error:
        raise ValueError(f"This is not a stored {kind}: {error}.") from error


def _text_of(source: str | os.PathLike[str]) -> str:
    """The given JSON, which starts with a brace or bracket; any other string is a path."""
    if isinstance(source, str) and source.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        return source.removeprefix("\ufeff")
    if isinstance(source, str) and not os.path.isfile(source):  # noqa: PTH113 - Path raises for some
        raise ValueError(f"there is no file {source[:200]!r}, and it is not JSON")
    return Path(source).read_text(encoding="utf-8-sig")


def _check(kind: str, name: object) -> None:
    match = _FORMAT.fullmatch(name) if isinstance(name, str) else None
    if match is None or match[1] != kind:
        raise ValueError(f"its format is {name!r}, not 'captum_lrpx.{kind}/{VERSION}'")
    if int(match[2]) > VERSION:
        raise ValueError(
            f"its format {name!r} is newer than this version of captum_lrpx, which reads up to "
            f"{VERSION}: upgrade the package"
        )


def frame_of(explanation: Explanation) -> pd.DataFrame:
    """An explanation as a data frame; see :meth:`captum_lrpx.Explanation.to_pandas`."""
    columns = {
        "token": explanation.labels,
        "relevance": explanation.relevances,
        "start": [start for start, _ in explanation.offsets],
        "end": [end for _, end in explanation.offsets],
        "special": explanation.special,
        **({"template": explanation.template} if explanation.template else {}),
        **({"id": explanation.ids} if explanation.ids else {}),
    }
    frame: pd.DataFrame = import_pandas().DataFrame(columns)
    frame.index.name = "position"
    record = record_of(explanation)
    in_columns = {"tokens", "ids", "offsets", "special", "relevances"}
    in_columns |= {"template"} if explanation.template else set()
    frame.attrs = {name: record[name] for name in record.keys() - in_columns}
    return frame


def import_pandas() -> Any:
    """Import pandas, only when a data frame is requested.

    Raises:
        ImportError: If it is not installed.
    """
    return imported("pandas", "A data frame needs pandas: pip install 'captum-lrpx[pandas]'.")
