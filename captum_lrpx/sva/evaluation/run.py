"""Models x methods x samples: the benchmark of Arras et al. (2025), resumable and in parallel."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import torch
from tqdm import tqdm

from captum_lrpx._version import versions
from captum_lrpx.attr import LRPx
from captum_lrpx.batching import buckets
from captum_lrpx.models import device_of
from captum_lrpx.rules import SignalTakeAll
from captum_lrpx.sva.evaluation.contenders import Contender, contenders
from captum_lrpx.sva.evaluation.erasure import Effects
from captum_lrpx.sva.evaluation.journal import Journal
from captum_lrpx.sva.evaluation.processes import Processes
from captum_lrpx.sva.evaluation.results import ModelResults
from captum_lrpx.sva.tokenized import tokenize
from captum_lrpx.targets import LogitDifference, Query
from captum_lrpx.targets.encoding import context_length
from captum_lrpx.targets.query import table
from captum_lrpx.targets.task import task_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from captum_lrpx.sva.samples import Sample
    from captum_lrpx.sva.tokenized import (
        LanguageModelling,
        TokenizedSample,
        TokenizedSamples,
    )


_FORMAT = 4
"""Version of the records of a journal; raised when their meaning changes."""


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


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation.

    Attributes:
        models: Results of each model.
        contenders: The contenders.
        settings: The settings.
    """

    models: tuple[ModelResults, ...]
    contenders: tuple[Contender, ...]
    settings: Settings


def evaluate(
    models: Mapping[str, Callable[[], tuple[nn.Module, Any]]],
    samples: Sequence[Sample],
    methods: Sequence[Contender] | None = None,
    settings: Settings = Settings(),
    *,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    processes: Processes = Processes(),  # noqa: B008 - frozen
) -> Evaluation:
    """Explain agreement samples by several methods, batch by batch.

    The explained value is the logit of the verb form that the model predicts minus the logit of the
    other number's form (Arras et al. 2025, section 4.1): the correct form, for samples that it gets
    right; with ``Settings(include_wrong=True)`` the others are explained, too.

    Args:
        models: For each name, a function that returns the model and its tokenizer; called if there
            is work left for the model.
        samples: The samples.
        methods: The contenders. Default: :func:`contenders` of the default methods.
        settings: Settings of the run.
        output: Folder in which finished work is kept.
        resume: Whether to continue the run in the folder.
        processes: The processes of the run. Several need an ``output`` that all of them see.

    Returns:
        The results; each process returns all of them.

    Raises:
        ValueError: If there are no models or samples, names are not different, several processes
            have no ``output``, a model has another precision than the settings say, or the folder
            has another run, one that cannot be read, or one of other tokens for the same samples.

    Examples:
        >>> from captum_lrpx import zoo
        >>> from captum_lrpx.sva import generate
        >>> models = {"sva-gpt2": lambda: zoo.load("sva-gpt2")}
        >>> found = evaluate(models, generate(50, "test", seed=0))
    """
    methods = contenders() if methods is None else tuple(methods)
    if not models or not samples or not methods:
        raise ValueError("There is nothing to evaluate: give models, samples and methods.")
    if len({contender.name for contender in methods}) < len(methods):
        raise ValueError("Contenders must have different names.")
    if processes.count > 1 and output is None:
        raise ValueError("Several processes need a common folder for their work: give an output.")
    manifest = _manifest(tuple(models), samples, methods, settings)
    with Journal(output, manifest, resume=resume, processes=processes) as journal:
        for name, load in models.items():
            _Runner(name, load, samples, methods, settings, journal, processes).run()
        processes.wait()
        journal.refresh()
        found = tuple(ModelResults.of(name, journal.records, samples) for name in models)
    return Evaluation(found, tuple(methods), settings)


def _manifest(
    models: Sequence[str],
    samples: Sequence[Sample],
    methods: Sequence[Contender],
    settings: Settings,
) -> dict[str, Any]:
    """Description that identifies this run."""
    text = "\n".join(json.dumps(asdict(sample), ensure_ascii=False) for sample in samples)
    return {
        "format": _FORMAT,
        "models": list(models),
        "methods": [contender.record() for contender in methods],
        "settings": asdict(settings),
        "samples": {"count": len(samples), "sha256": hashlib.sha256(text.encode()).hexdigest()},
        "versions": versions(),
    }


_Rows: TypeAlias = tuple[tuple[int, bool], ...]
"""Samples of a batch, and whether the model prefers the other form, which is then explained."""


class _Ready(NamedTuple):
    """A loaded model, and the samples as it sees them."""

    model: nn.Module
    tokenizer: Any
    tokenized: TokenizedSamples


@dataclass
class _Runner:
    """The remaining work for one model, divided among processes.

    Batches are made of all samples, whatever remains to do, so that results do not
    depend on interruptions or on the number of processes.

    Attributes:
        name: Name of the model.
        load: Returns the model and its tokenizer.
        samples: The samples.
        contenders: The contenders.
        settings: The settings.
        journal: The finished work.
        processes: The processes of the run; batches are dealt out in turn.
    """

    name: str
    load: Callable[[], tuple[nn.Module, Any]]
    samples: Sequence[Sample]
    contenders: Sequence[Contender]
    settings: Settings
    journal: Journal
    processes: Processes
    _batches: dict[_Rows, tuple[Query, Effects]] = field(default_factory=dict)

    def run(self) -> None:
        """Do the remaining work of this process's share."""
        lengths = [each["length"] for each in self._tokens()["kept"]]
        batches = list(enumerate(buckets(lengths, self.settings.token_budget)))
        share = batches[self.processes.share :: self.processes.shares]
        draws = [
            (contender, draw) for contender in self.contenders for draw in range(contender.draws)
        ]
        with tqdm(
            total=len(share) * len(draws), desc=self.name, disable=not self.processes.is_main
        ) as bar:
            wanted = [(index, self._wanted(index, rows)) for index, rows in share]
            for contender, draw in draws:
                bar.set_postfix_str(contender.name)
                for index, rows in wanted:
                    key = ("relevances", self.name, contender.name, draw, index)
                    if rows and key not in self.journal.records:
                        self.journal.append(key, self._unit(rows, contender, draw))
                    bar.update()

    # Steps --------------------------------------------------------------------------------------

    def _tokens(self) -> dict[str, Any]:
        """Record of how the model sees the samples."""
        key = ("tokens", self.name)
        if key not in self.journal.records:
            model, _, tokenized = self._ready
            content = {
                "task": task_of(model),
                "gated": _is_gated(model, tokenized),
                "counts": tokenized.counts,
                "kept": self._kept(tokenized),
            }
            self.journal.append(key, content)
        return self.journal.records[key]

    def _kept(self, tokenized: TokenizedSamples) -> list[dict[str, Any]]:
        """Tokenised samples, with their index among all samples."""
        places = enumerate(self.samples)  # read on, as both have the same order
        return [
            {
                "sample": next(index for index, sample in places if sample is each.sample),
                "length": len(each.ids),
                "evidence": [place for place, is_it in enumerate(each.evidence) if is_it],
                "special": [place for place, is_it in enumerate(each.special) if is_it],
            }
            for each in tokenized
        ]

    def _wanted(self, index: int, rows: Sequence[int]) -> _Rows:
        """Rows of a batch to explain.

        A value is the logit of the correct form minus the other's: positive where it is right.
        """
        key = ("values", self.name, index)
        if key not in self.journal.records:
            query, _ = self._batch(tuple((row, False) for row in rows))
            values = query.values.double().tolist()
            self.journal.append(key, {"rows": list(rows), "values": values})
        return tuple(
            (row, value <= 0)
            for row, value in zip(rows, self.journal.records[key]["values"], strict=True)
            if value > 0 or self.settings.include_wrong
        )

    def _unit(self, rows: _Rows, contender: Contender, draw: int) -> dict[str, Any]:
        """Explain a batch by one method."""
        query, effects = self._batch(rows)
        found = contender.attribute(query, draw, self.settings.token_budget)
        kept = self._tokens()["kept"]
        content: dict[str, Any] = {
            "rows": [row for row, _ in rows],
            "relevances": [
                values[: kept[row]["length"]]
                for (row, _), values in zip(rows, found.relevances.double().tolist(), strict=True)
            ],
        }
        if self.settings.faithfulness:
            content["faithfulness"] = effects.measure(found.relevances, contender)
        return content

    # The model ----------------------------------------------------------------------------------

    def _batch(self, rows: _Rows) -> tuple[Query, Effects]:
        """A batch, and the effects of its tokens; both keep what several methods need."""
        if rows not in self._batches:
            model, tokenizer, tokenized = self._ready
            chosen = [
                tokenized[row].with_forms_exchanged() if wrong else tokenized[row]
                for row, wrong in rows
            ]
            query = _asked(model, tokenizer, chosen)
            masked = task_of(model) == "masked-lm"
            replaceable = [  # tokens of the text, except the mask
                [
                    not special and not (masked and place == each.position)
                    for place, special in enumerate(each.special)
                ]
                for each in chosen
            ]
            self._batches[rows] = query, Effects(query, replaceable)
        return self._batches[rows]

    @cached_property
    def _ready(self) -> _Ready:
        model, tokenizer = self.load()
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
        known = self.journal.records.get(("tokens", self.name))
        if known is not None and known["kept"] != self._kept(tokenized):
            raise ValueError(
                f"{self.name!r} has other tokens than before, so its model or tokenizer was "
                "exchanged: start over in another folder."
            )
        return _Ready(model, tokenizer, tokenized)


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
