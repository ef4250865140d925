"""Results of a run for one model, read from the records of its journal."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from captum_lrpx.sva.evaluation.journal import Key
    from captum_lrpx.sva.samples import Sample


_Draw = tuple[str, int]
"""A contender, and the index of a draw."""


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
        relevances: dict[_Draw, dict[int, list[float]]] = defaultdict(dict)
        faithfulness: dict[_Draw, dict[str, dict[int, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for key, record in records.items():
            if key[:2] == ("values", model):
                values.update(zip(record["rows"], record["values"], strict=True))
            elif key[:2] == ("relevances", model):
                draw = (str(key[2]), int(key[3]))
                relevances[draw].update(zip(record["rows"], record["relevances"], strict=True))
                for measure, column in record.get("faithfulness", {}).items():
                    faithfulness[draw][measure].update(zip(record["rows"], column, strict=True))
        explained = sorted({row for rows in relevances.values() for row in rows})
        lengths = [kept[row]["length"] for row in explained]
        right = sum(value > 0 for value in values.values())
        return cls(
            model=model,
            counts=dict(tokens["counts"]),
            accuracy=right / len(values) if values else float("nan"),
            indices=tuple(kept[row]["sample"] for row in explained),
            samples=tuple(samples[kept[row]["sample"]] for row in explained),
            values=_double([values[row] for row in explained]),
            mask=_marked([range(length) for length in lengths], lengths),
            evidence=_marked([kept[row]["evidence"] for row in explained], lengths),
            special=_marked([kept[row]["special"] for row in explained], lengths),
            relevances={
                draw: pad_sequence([_double(rows[row]) for row in explained], batch_first=True)
                for draw, rows in relevances.items()
            },
            faithfulness={
                draw: {
                    measure: _double([column[row] for row in explained])
                    for measure, column in columns.items()
                }
                for draw, columns in faithfulness.items()
            },
            task=tokens["task"],
            gated=tokens["gated"],
        )


def _marked(places: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
    marked = torch.zeros(len(lengths), max(lengths, default=0), dtype=torch.bool, device="cpu")
    for row, chosen in enumerate(places):
        marked[row, list(chosen)] = True
    return marked


def _double(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")
