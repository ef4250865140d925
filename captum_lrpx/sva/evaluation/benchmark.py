"""Models x methods x samples: the benchmark of Arras et al. (2025), resumable and in parallel."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from captum_lrpx._version import versions
from captum_lrpx.sva.evaluation.contenders import Contender, contenders
from captum_lrpx.sva.evaluation.journal import Journal
from captum_lrpx.sva.evaluation.processes import Processes
from captum_lrpx.sva.evaluation.results import ModelResults
from captum_lrpx.sva.evaluation.run import Runner, Settings

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from captum_lrpx.sva.samples import Sample

__all__ = ["Evaluation", "evaluate"]

_FORMAT = 4
"""Version of the records of a journal; raised when their meaning changes."""


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
    settings: Settings = Settings(),  # noqa: B008 - frozen
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
            Runner(name, load, samples, methods, settings, journal, processes).run()
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
