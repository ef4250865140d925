"""Format of the records of a run, checked when they are read from a log.

A log outlives the process that wrote it, on a disk that may be edited or fail: records are
checked once, so that all later code can rely on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["check", "several_runs"]


def several_runs(model: str) -> ValueError:
    """Error for valid records that do not belong together."""
    return ValueError(
        f"The records of {model!r} in the logs are of different runs: start over in another folder."
    )


def check(record: Mapping[str, Any]) -> None:
    """Check a record read from a log.

    There are three kinds, told apart by their keys: the tokenised samples of a model
    (``"tokens", model``), the explained values of a batch (``"values", model, batch``), and its
    relevances (``"relevances", model, contender, draw, batch``), with or without the measures of
    their faithfulness.

    Args:
        record: A record with its key, as JSON has it.

    Raises:
        ValueError: If it is malformed; the message names the fault.
    """
    match record["key"]:
        case ["tokens", str()]:
            _require(isinstance(record.get("task"), str), "task")
            _require(isinstance(record.get("gated"), bool), "gated")
            _require(_counted(record.get("counts"), ("given", "kept")), "counts")
            kept = record.get("kept")
            _require(isinstance(kept, list) and all(map(_is_sample, kept)), "kept")
        case ["values", str(), int()]:
            rows = _rows(record)
            _require(_are_floats(record.get("values"), rows), "values")
        case ["relevances", str(), str(), int(), int()]:
            rows = _rows(record)
            relevances = record.get("relevances")
            _require(
                isinstance(relevances, list)
                and len(relevances) == rows
                and all(_are_floats(row, None) for row in relevances),
                "relevances",
            )
            measures = record.get("faithfulness", {})
            _require(
                isinstance(measures, dict)
                and all(_are_floats(column, rows) for column in measures.values()),
                "faithfulness",
            )
        case key:
            raise ValueError(f"no run writes the key {key!r}")


def _require(sound: bool, field: str) -> None:
    if not sound:
        raise ValueError(f"the field {field!r} is missing or not as a run writes it")


def _rows(record: Mapping[str, Any]) -> int:
    """Number of rows of a record."""
    rows = record.get("rows")
    _require(_are_places(rows, None), "rows")
    distinct: set[int] = set(rows or ())
    _require(len(distinct) == len(rows or ()), "rows")
    return len(distinct)


def _is_sample(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    length = value.get("length")
    return (
        _is_place(value.get("sample"))
        and _is_place(length)
        and _are_places(value.get("evidence"), length)
        and _are_places(value.get("special"), length)
    )


def _counted(value: object, names: Iterable[str]) -> bool:
    return (
        isinstance(value, dict)
        and all(map(_is_place, value.values()))
        and all(name in value for name in names)
    )


def _are_places(value: object, below: int | None) -> bool:
    return isinstance(value, list) and all(
        _is_place(each) and (below is None or each < below) for each in value
    )


def _is_place(value: object) -> bool:
    return type(value) is int and value >= 0


def _are_floats(value: object, count: int | None) -> bool:
    return (
        isinstance(value, list)
        and count in (None, len(value))
        and all(type(each) is float for each in value)
    )
