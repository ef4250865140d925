"""Published values, for comparison with ours."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

__all__ = ["Reference", "paper_reference", "read_reference"]

_TOO_MUCH = (RecursionError, OverflowError)
"""Errors of deeply nested brackets, and of numbers with too many digits."""

_TABLE = "table2.csv"
_SOURCE = "Arras et al. 2025, arXiv 2502.15886, Table 2"
_METHODS = {
    "ALTI-Logit": ("altilogit",),
    "LRP": ("lrpx",),
    "AttnLRP": ("attnlrpx",),
    "Gradient": ("saliency_l1", "saliency_l2_squared"),
    "GradientxInput": ("input_x_gradient",),
    "Random": ("random",),
}
"""The paper's methods, and ours; the paper has the better one of two norms as "Gradient"."""
_MEASURES = {"PG2": "PG-2", "MRR": "MRR", "RMA": "RMA", "PTA": "PTA"}
_MODELS = {
    "bert-base-uncased": "bert",
    "bert-large-uncased": "bert",
    "gpt2": "gpt2",
    "gpt2-xl": "gpt2",
    "llama-3.2-1b": "llama3",
    "llama-3.2-3b": "llama3",
}
"""Names of the hub without their owners, in lower case; random values are of a whole family."""
_NAMES = {"gpt2": "gpt2-small"}
"""The paper's name of a model, if it differs from the name of the hub."""


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
    text = resources.files(__package__).joinpath(_TABLE).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    published = {
        (row["model"], row["method"], row["metric"]): float(row["value"])
        for row in csv.DictReader(lines)
    }
    values: dict[str, dict[str, dict[str, float]]] = {}
    for model, family in _MODELS.items():
        for (name, theirs, metric), value in published.items():
            if name in (_NAMES.get(model, model), family) and theirs in _METHODS:
                for method in _METHODS[theirs]:
                    columns = values.setdefault(model, {}).setdefault(method, {})
                    columns[_MEASURES[metric]] = value
    return Reference(_SOURCE, values)
