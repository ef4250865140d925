"""Models x methods x samples, a batch of one method at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from tqdm import tqdm

from captum_lrpx.attr import LRPx
from captum_lrpx.batching import buckets
from captum_lrpx.models import device_of
from captum_lrpx.rules import SignalTakeAll
from captum_lrpx.sva.evaluation.erasure import Effects
from captum_lrpx.sva.evaluation.processes import Processes
from captum_lrpx.sva.evaluation.results import ModelResults
from captum_lrpx.sva.tokenized import tokenize
from captum_lrpx.targets import LogitDifference, Query
from captum_lrpx.targets.encoding import context_length
from captum_lrpx.targets.query import table
from captum_lrpx.targets.task import task_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from captum_lrpx.sva.evaluation.contenders import Contender
    from captum_lrpx.sva.evaluation.journal import Journal
    from captum_lrpx.sva.samples import Sample
    from captum_lrpx.sva.tokenized import (
        LanguageModelling,
        TokenizedSample,
        TokenizedSamples,
    )

__all__ = ["Runner", "Settings"]


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
        first_token: A special token to put in front of each text.
        token_budget: Tokens per batch.
        include_wrong: Whether to also explain samples that a model gets wrong: the logit of its
            predicted form minus the other's.
        faithfulness: Whether to measure the model's output without the tokens of high relevance.
        dtype: Name of the precision that the models must have (``"float64"``), so that a run is
            never resumed in another one. Default: not recorded.
    """

    first_token: str | None = None
    token_budget: int = 2048
    include_wrong: bool = False
    faithfulness: bool = False
    dtype: str | None = None


class _Ready(NamedTuple):
    """A loaded model, and the samples as it sees them."""

    model: nn.Module
    tokenizer: Any
    tokenized: TokenizedSamples


class Runner:
    """The remaining work for one model, divided among processes.

    Batches are made of all samples, whatever remains to do, so that results do not
    depend on interruptions or on the number of processes.

    Args:
        name: Name of the model.
        load: Returns the model and its tokenizer.
        samples: The samples.
        contenders: The contenders.
        settings: The settings.
        journal: The finished work.
        processes: The processes of the run; batches are dealt out in turn.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], tuple[nn.Module, Any]],
        samples: Sequence[Sample],
        contenders: Sequence[Contender],
        settings: Settings,
        journal: Journal,
        processes: Processes = Processes(),  # noqa: B008 - frozen
    ) -> None:
        self.name, self.samples, self.settings = name, samples, settings
        self.contenders, self.journal, self.processes = contenders, journal, processes
        self._load = load
        self._queries: dict[tuple[tuple[int, ...], tuple[bool, ...]], Query] = {}
        self._effects: dict[tuple[int, ...], Effects] = {}
        self._loaded: _Ready | None = None

    def run(self) -> None:
        """Do the remaining work of this process's share."""
        if ("tokens", self.name) not in self.journal.records:
            self._ready()
        shares = self._batches()[self.processes.share :: self.processes.shares]
        draws = [
            (contender, draw) for contender in self.contenders for draw in range(contender.draws)
        ]
        with tqdm(
            total=len(shares) * len(draws), desc=self.name, disable=not self.processes.is_main
        ) as bar:
            wanted = [(index, *self._wanted(index, rows)) for index, rows in shares]
            for contender, draw in draws:
                bar.set_postfix_str(contender.name)
                for index, rows, wrong in wanted:
                    self._do(index, rows, wrong, contender, draw)
                    bar.update()
        self._queries.clear()
        self._effects.clear()
        self._loaded = None

    def results(self) -> ModelResults:
        """Results of all processes, whose records the journal must have."""
        return ModelResults.of(self.name, self.journal.records, self.samples)

    # Steps --------------------------------------------------------------------------------------

    def _note(self, model: nn.Module, tokenized: TokenizedSamples) -> None:
        """Keep how the model sees the samples, or check that it is as before."""
        kept = [
            {
                "sample": index,
                "length": len(each.ids),
                "evidence": [place for place, is_it in enumerate(each.evidence) if is_it],
                "special": [place for place, is_it in enumerate(each.special) if is_it],
            }
            for index, each in self._indexed(tokenized)
        ]
        key = ("tokens", self.name)
        if key not in self.journal.records:
            content = {
                "task": task_of(model),
                "gated": _is_gated(model, tokenized),
                "counts": tokenized.counts,
                "kept": kept,
            }
            self.journal.append(key, content)
        elif self.journal.records[key]["kept"] != kept:
            raise ValueError(
                f"{self.name!r} has other tokens than before, so its model or tokenizer was "
                "exchanged: start over in another folder."
            )

    def _indexed(self, tokenized: TokenizedSamples) -> Iterator[tuple[int, TokenizedSample]]:
        """Tokenised samples with their index among all samples."""
        place = -1
        for each in tokenized:  # in the order of the samples
            place = next(
                index
                for index in range(place + 1, len(self.samples))
                if self.samples[index] is each.sample
            )
            yield place, each

    def _batches(self) -> list[tuple[int, tuple[int, ...]]]:
        kept = self.journal.records["tokens", self.name]["kept"]
        found = buckets([each["length"] for each in kept], self.settings.token_budget)
        return list(enumerate(found))

    def _wanted(
        self, index: int, rows: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Rows of a batch to explain, and whether the model gets each of them wrong."""
        found = [
            (row, value <= 0)
            for row, value in zip(rows, self._values(index, rows), strict=True)
            if value > 0 or self.settings.include_wrong
        ]
        return tuple(row for row, _ in found), tuple(wrong for _, wrong in found)

    def _do(
        self,
        index: int,
        rows: tuple[int, ...],
        wrong: tuple[bool, ...],
        contender: Contender,
        draw: int,
    ) -> None:
        """Explain a batch by one method, unless it is finished."""
        key = ("relevances", self.name, contender.name, draw, index)
        if rows and key not in self.journal.records:
            self.journal.append(key, self._unit(rows, wrong, contender, draw))

    def _values(self, index: int, rows: tuple[int, ...]) -> list[float]:
        """Logit of the correct form minus the other's; positive where the model is right."""
        key = ("values", self.name, index)
        if key not in self.journal.records:
            values = self._query(rows, (False,) * len(rows)).values.double().tolist()
            self.journal.append(key, {"rows": list(rows), "values": values})
        found: list[float] = self.journal.records[key]["values"]
        return found

    def _unit(
        self, rows: tuple[int, ...], wrong: tuple[bool, ...], contender: Contender, draw: int
    ) -> dict[str, Any]:
        query = self._query(rows, wrong)
        found = contender.attribute(query, draw, self.settings.token_budget)
        lengths = query.mask.sum(-1).tolist() if query.mask is not None else []
        relevances = [
            row[:length]
            for row, length in zip(found.relevances.double().tolist(), lengths, strict=True)
        ]
        content: dict[str, Any] = {"rows": list(rows), "relevances": relevances}
        if self.settings.faithfulness:
            if rows not in self._effects:
                self._effects[rows] = Effects(query, self._replaceable(rows))
            content["faithfulness"] = self._effects[rows].measure(found.relevances, contender)
        return content

    def _replaceable(self, rows: Sequence[int]) -> list[list[bool]]:
        """Whether each token can be removed: tokens of the text, except the mask."""
        model, _, tokenized = self._ready()
        masked = task_of(model) == "masked-lm"
        return [
            [
                not special and not (masked and place == tokenized[row].position)
                for place, special in enumerate(tokenized[row].special)
            ]
            for row in rows
        ]

    # The model ----------------------------------------------------------------------------------

    def _query(self, rows: tuple[int, ...], wrong: tuple[bool, ...]) -> Query:
        """Make a batch; it is cached, as it keeps the values that methods report.

        Args:
            rows: The samples.
            wrong: Whether the model prefers the other form, which is then explained.
        """
        if (rows, wrong) not in self._queries:
            model, tokenizer, tokenized = self._ready()
            chosen = [
                tokenized[row].with_forms_exchanged() if other else tokenized[row]
                for row, other in zip(rows, wrong, strict=True)
            ]
            self._queries[rows, wrong] = _asked(model, tokenizer, chosen)
        return self._queries[rows, wrong]

    def _ready(self) -> _Ready:
        if self._loaded is None:
            model, tokenizer = self._load()
            _require_dtype(self.name, model, self.settings.dtype)
            if self.processes.device is not None:
                model = model.to(self.processes.device)
            tokenized = tokenize(
                self.samples,
                tokenizer,
                # Other tasks are refused there.
                cast("LanguageModelling", task_of(model)),
                first_token=self.settings.first_token,
                max_length=context_length(model),
            )
            self._note(model, tokenized)
            self._loaded = _Ready(model, tokenizer, tokenized)
        return self._loaded


def _asked(model: nn.Module, tokenizer: Any, samples: Sequence[TokenizedSample]) -> Query:
    """The logit of each sample's verb minus the logit of the other number's form, as one batch."""
    device = device_of(model)
    mask = table([(1,) * len(each.ids) for each in samples], device=device)
    ids = table([each.ids for each in samples], tokenizer.pad_token_id or 0, device=device)
    asked = [(each.verb_id, each.foil_id, each.position) for each in samples]
    arguments = (mask, *table(asked, device=device).unbind(1))
    return Query(LogitDifference(model), ids, arguments, mask=mask, tokenizer=tokenizer)


def _is_gated(model: nn.Module, tokenized: TokenizedSamples) -> bool:
    """Whether a model has gated products, tested on the first sample."""
    first = next(iter(tokenized), None)
    if first is None:
        return False
    ids = torch.tensor([first.ids], device=device_of(model))
    found = LRPx(model, strict=False).coverage(ids)
    return any(each.rule == repr(SignalTakeAll()) for each in found.operations)


def _require_dtype(name: str, model: nn.Module, wanted: str | None) -> None:
    """Check the precision of a model."""
    found = str(next(model.parameters()).dtype).removeprefix("torch.")
    if wanted not in (None, found):
        raise ValueError(
            f"The model {name!r} is in {found}, but the run is in {wanted}: let its loader "
            f"return `model.to(torch.{wanted})`."
        )
