"""Results of a run for one model, read from the records of its journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from captum_lrpx.sva.evaluation.journal import Key
    from captum_lrpx.sva.samples import Sample

__all__ = ["ModelResults"]


@dataclass(frozen=True)
class ModelResults:
    """The explained samples of one model, ``N`` of them with at most ``T`` tokens.

    Attributes:
        model: Name of the model.
        counts: Counts of the tokenizer's filters, see :func:`captum_lrpx.sva.tokenize`.
        accuracy: Share of the tokenised samples whose verb the model prefers to the other form.
        indices: Index of each explained sample among all samples.
        samples: The explained samples.
        values: The logit of the correct form minus the other's, ``[N]``. Where it is not positive,
            the model predicts the other form, and its negative is what was explained.
        mask: Whether there is a token, ``[N, T]``.
        evidence: Whether it is evidence, ``[N, T]``.
        special: Whether it is a special token outside of the text, ``[N, T]``.
        relevances: For each contender and draw ``[N, T]``, zero at padding.
        faithfulness: For each contender and draw, by measure, ``[N]``; may be empty.
        task: Task of the model, ``"causal-lm"`` or ``"masked-lm"``.
        gated: Whether it has gated products, whose rule distinguishes LRP from AttnLRP.
    """

    model: str
    counts: dict[str, int]
    accuracy: float
    indices: tuple[int, ...]
    samples: tuple[Sample, ...]
    values: Tensor
    mask: Tensor
    evidence: Tensor
    special: Tensor
    relevances: dict[tuple[str, int], Tensor]
    faithfulness: dict[tuple[str, int], dict[str, Tensor]]
    task: str = "causal-lm"
    gated: bool = False

    @classmethod
    def of(
        cls, model: str, records: Mapping[Key, Mapping[str, Any]], samples: Sequence[Sample]
    ) -> ModelResults:
        """Combine the records of a model.

        Args:
            model: Name of the model.
            records: Records of a journal.
            samples: All samples of the run.
        """
        tokens = records["tokens", model]
        kept = tokens["kept"]
        values: dict[int, float] = {}
        units: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
        for key, record in records.items():
            if key[:2] == ("values", model):
                values.update(zip(record["rows"], record["values"], strict=True))
            elif key[:2] == ("relevances", model):
                units.setdefault((str(key[2]), int(key[3])), []).append(record)
        explained = sorted(
            {row for parts in units.values() for each in parts for row in each["rows"]}
        )
        lengths = [kept[row]["length"] for row in explained]
        right = sum(value > 0 for value in values.values())
        return cls(
            model=model,
            counts=dict(tokens["counts"]),
            accuracy=right / len(values) if values else float("nan"),
            indices=tuple(kept[row]["sample"] for row in explained),
            samples=tuple(samples[kept[row]["sample"]] for row in explained),
            values=torch.tensor(
                [values[row] for row in explained], dtype=torch.float64, device="cpu"
            ),
            mask=_marked([range(length) for length in lengths], lengths),
            evidence=_marked([kept[row]["evidence"] for row in explained], lengths),
            special=_marked([kept[row]["special"] for row in explained], lengths),
            relevances={name: _relevances(parts, explained) for name, parts in units.items()},
            faithfulness={
                name: _faithfulness(parts, explained)
                for name, parts in units.items()
                if all("faithfulness" in each for each in parts)
            },
            task=tokens["task"],
            gated=tokens["gated"],
        )


def _by_row(unit: Mapping[str, Any]) -> Iterator[tuple[int, list[float]]]:
    return zip(unit["rows"], unit["relevances"], strict=True)


def _marked(places: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
    marked = torch.zeros(len(lengths), max(lengths, default=0), dtype=torch.bool, device="cpu")
    for row, chosen in enumerate(places):
        marked[row, list(chosen)] = True
    return marked


def _relevances(parts: Sequence[Mapping[str, Any]], explained: Sequence[int]) -> Tensor:
    found = {
        row: torch.tensor(values, dtype=torch.float64, device="cpu")
        for each in parts
        for row, values in _by_row(each)
    }
    return pad_sequence([found[row] for row in explained], batch_first=True)


def _faithfulness(
    parts: Sequence[Mapping[str, Any]], explained: Sequence[int]
) -> dict[str, Tensor]:
    columns: dict[str, dict[int, float]] = {}
    for each in parts:
        for measure, values in each["faithfulness"].items():
            columns.setdefault(measure, {}).update(zip(each["rows"], values, strict=True))
    return {
        measure: torch.tensor([column[row] for row in explained], dtype=torch.float64, device="cpu")
        for measure, column in columns.items()
    }
