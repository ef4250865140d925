"""Measures and intervals of what ``benchmarks/why.py`` has found, sentence by sentence."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx.metrics import pearson, spearman
from captum_lrpx.sva.evaluation import scores
from captum_lrpx.sva.evaluation.statistics import Estimate, estimates, resampling

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    ByRow = dict[int, float]

__all__ = ["MEASURES", "SHORT", "Scores", "difference", "mean"]

MEASURES = {name: measure for name, measure in scores.MEASURES.items() if name != "PTA-K"}
_CORRELATIONS = {"LOO-r": pearson, "LOO-rho": spearman}
_MAGNITUDES = ("Gradient, L1", "Gradient, L2 squared", "IFR")
_APART = ("samples", "ledger", "area", "leave one out")
RIGHT = "right"
SHORT = (
    "LRP",
    "LRP, uniform gate",
    "AttnLRP",
    "ALTI-Logit",
    "Gradient, L1",
    "Gradient x Input",
)
"""The methods of tables and figures that show no variants."""


class Scores:
    """What is known of one model.

    Args:
        path: Its journal.
    """

    def __init__(self, path: Path) -> None:
        found: dict[tuple[str, str], dict[str, dict[int, Any]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        with path.open(encoding="utf-8") as file:
            for text in file:
                line = json.loads(text)
                key = line["setting"], line["group"]
                self.seconds[key] += line.get("seconds", 0)
                for name, values in line["found"].items():
                    found[key][name].update(zip(line["rows"], values, strict=True))
        self._found = {key: dict(of_key) for key, of_key in found.items()}
        self.relevance = cache(self._relevance)
        self.measure = cache(self._measure)

    def _of(self, setting: str, group: str, name: str) -> dict[int, Any]:
        """What a line of the journal calls by a name, for each row; empty where there is none."""
        return self._found.get((setting, group), {}).get(name, {})

    def values(self, setting: str = RIGHT) -> ByRow:
        """Logit of the right verb form minus the other's, of all sentences of the draw."""
        return self._of(setting, "samples", "value")

    def accuracy(self, setting: str = RIGHT) -> ByRow:
        """1 for a sentence that the model gets right, 0 for another."""
        return {row: float(value > 0) for row, value in self.values(setting).items()}

    def settings(self, group: str = "LRP") -> list[str]:
        """The settings of which relevances are known, or with ``"samples"`` explained values."""
        return list(dict.fromkeys(setting for setting, known in self._found if known == group))

    def methods(self, setting: str = RIGHT) -> list[str]:
        """The methods of which relevances are known."""
        return [
            name
            for (of, group), found in self._found.items()
            if of == setting and group not in _APART
            for name in found
        ]

    def _relevance(self, setting: str, method: str) -> dict[int, list[float]]:
        for (of, group), found in self._found.items():
            if of == setting and group not in ("samples", "ledger", "area") and method in found:
                return found[method]
        return {}

    def _measure(
        self, method: str, measure: str, *, first: bool = False, setting: str = RIGHT
    ) -> ByRow:
        """A measure of a method, for each sentence.

        Args:
            method: The method.
            measure: A name in :data:`MEASURES`, ``"first"`` (share of the first position in the
                absolute relevance), ``"LOO-r"``, ``"LOO-rho"`` or ``"ABPC"``.
            first: Whether the first token counts. Without a special one, all tokens do.
            setting: The setting.
        """
        if measure == "ABPC":
            return self._of(setting, "area", method)
        found = self.relevance(setting, method)
        effects = self.relevance(setting, "leave one out") if measure in _CORRELATIONS else found
        rows = [row for row in found if row in effects]
        if not rows:
            return {}
        relevances, there = _padded([found[row] for row in rows])
        if measure == "first":
            values = relevances[:, 0].abs() / relevances.abs().sum(1)
        else:
            special, _ = _padded([self._of(setting, "samples", "special")[row] for row in rows])
            mask = there if first else there & (special == 0)
            if measure in MEASURES:
                evidence, _ = _padded(
                    [self._of(setting, "samples", "evidence")[row] for row in rows]
                )
                values = MEASURES[measure](relevances, evidence > 0, mask=mask)
            else:
                effect, _ = _padded([effects[row] for row in rows])
                effect = effect.abs() if method in _MAGNITUDES else effect
                values = _CORRELATIONS[measure](relevances, effect, mask=mask)
        return dict(zip(rows, values.tolist(), strict=True))

    def account(self, method: str) -> dict[str, ByRow]:
        """Shares of the explained value by kind."""
        found = self._found.get((RIGHT, "ledger"), {})
        return {
            name.removeprefix(f"{method}: "): shares
            for name, shares in found.items()
            if name.startswith(f"{method}: ")
        }


def _padded(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Rows of numbers as one tensor, and which of its numbers there are."""
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=torch.nan)
    there = ~padded.isnan()
    return padded.nan_to_num(), there


def mean(values: ByRow) -> Estimate:
    """A mean over sentences with its 95 % bootstrap interval."""
    tensor = torch.tensor([values[row] for row in sorted(values)], dtype=torch.float64)
    (found,) = estimates(tensor.view(1, 1, -1), resampling(len(tensor)))
    return found


def difference(one: ByRow, other: ByRow) -> Estimate:
    """A paired difference, over the sentences that both have."""
    return mean({row: one[row] - other[row] for row in one if row in other})
