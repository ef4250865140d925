"""Published values, for comparison with ours."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

_TOO_MUCH = (RecursionError, OverflowError)
"""Errors of deeply nested brackets, and of numbers with too many digits."""

_TABLE_2 = Path(__file__).with_name("table2.json")
"""Table 2 of Arras et al. (2025), under our names and the names of the hub without their owners."""


@dataclass(frozen=True)
class Reference:
    """Published values.

    Attributes:
        source: Their source.
        values: By model, method and measure, from 0 to 1.
    """

    source: str
    values: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def get(self, model: str, method: str, measure: str) -> float | None:
        """Return the published value, if there is one.

        Args:
            model: Name of the model; the values may omit the owner of a name of the hub.
            method: Name of the method.
            measure: Name of the measure.
        """
        short = model.rpartition("/")[2].lower()
        found = self.values.get(model) or self.values.get(short) or {}
        return found.get(method, {}).get(measure)


def read_reference(path: str | os.PathLike[str]) -> Reference:
    """Read published values.

    Args:
        path: A JSON file: ``{"source": "...", "values": {model: {method: {measure: number}}}}``,
            with the names used in our tables.

    Returns:
        The values.

    Raises:
        ValueError: If it is not such a file.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        values = {
            model: {
                method: {measure: float(value) for measure, value in columns.items()}
                for method, columns in rows.items()
            }
            for model, rows in content["values"].items()
        }
        return Reference(str(content["source"]), values)
    except (ValueError, LookupError, TypeError, AttributeError, *_TOO_MUCH) as error:
        raise ValueError(
            f"{os.fspath(path)} has no published values: it must be a JSON object with a `source` "
            "and `values` by model, method and measure."
        ) from error


def paper_reference() -> Reference:
    """The paper's Table 2, for the models that it has, under the names of the hub."""
    return read_reference(_TABLE_2)
