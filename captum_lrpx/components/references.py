"""Reference samples: the texts of a corpus with the largest scores of a neuron."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from captum_lrpx.files import write_bytes
from captum_lrpx.metrics.replacement import check_count

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from captum_lrpx._captum import TargetType
    from captum_lrpx.components.concepts import ConceptRelevance


Measure = Literal["relevance", "activation"]
"""Score that makes a text a reference of a neuron."""


class ReferenceSample(NamedTuple):
    """A text with a large score of a neuron.

    Attributes:
        sample: Index of the text in the corpus.
        position: The position of the largest score.
        score: Relevance or activation there.
    """

    sample: int
    position: int
    score: float


@dataclass(frozen=True)
class ReferenceIndex:
    """The texts with the largest scores of each neuron (or direction).

    Attributes:
        scores: ``[N, K]``, in descending order; -inf where there are fewer texts.
        samples: Index of the text ``[N, K]``; -1 where there are fewer.
        positions: Position in it ``[N, K]``.
        seen: Number of texts processed.
    """

    scores: Tensor
    samples: Tensor
    positions: Tensor
    seen: int

    def of(self, number: int) -> list[ReferenceSample]:
        """Return the references of a neuron, by descending score.

        Args:
            number: Index of the neuron or direction.

        Raises:
            IndexError: If it is out of range.
        """
        if not 0 <= number < len(self.scores):
            raise IndexError(f"There are {len(self.scores)} neurons, no number {number}.")
        rows = (self.samples[number], self.positions[number], self.scores[number])
        return [
            ReferenceSample(int(sample), int(position), float(score))
            for sample, position, score in zip(*rows, strict=True)
            if sample >= 0
        ]

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> ReferenceIndex:
        """Load and merge the index in a folder, over all processes that have built it.

        Args:
            folder: As for :func:`build_references`.

        Raises:
            ValueError: If there is none, or a file cannot be read.
        """
        paths = sorted(Path(folder).glob("references-*.safetensors"))
        if not paths:
            raise ValueError(f"There is no index of references in {str(folder)!r}: build it first.")
        parts = [_read(path)[0] for path in paths]
        return reduce(lambda merged, part: merged.merged(part, part.seen), parts)

    def merged(self, other: ReferenceIndex, seen: int) -> ReferenceIndex:
        """Merge two indices; among equal scores the earlier text comes first.

        Args:
            other: The other index, with as many neurons.
            seen: Number of texts that it adds.
        """
        k = self.scores.shape[1]
        scores = torch.cat([self.scores, other.scores], 1)
        samples = torch.cat([self.samples, other.samples], 1)
        positions = torch.cat([self.positions, other.positions], 1)
        order = samples.argsort(dim=1, stable=True)
        by_score = scores.gather(1, order).argsort(dim=1, descending=True, stable=True)
        best = order.gather(1, by_score)[:, :k]
        return ReferenceIndex(
            scores.gather(1, best),
            samples.gather(1, best),
            positions.gather(1, best),
            self.seen + seen,
        )


def build_references(
    concepts: ConceptRelevance,
    samples: Iterable[Tensor],
    folder: str | os.PathLike[str],
    *,
    by: Measure = "relevance",
    target: TargetType | Callable[[Tensor], TargetType] = None,
    additional_forward_args: object | None = None,
    k: int = 8,
    rank: int = 0,
    processes: int = 1,
    resume: bool = False,
    save_every: int = 100,
) -> ReferenceIndex:
    """Scan a corpus and keep, for each neuron, the texts with the largest scores.

    The score of a text is the largest relevance or activation of the neuron at any position.
    The index is stored along the way, so that an interrupted run can be resumed. Several processes
    can share a corpus: each takes every n-th text and has its own file in the folder.

    Args:
        concepts: The neurons, or directions.
        samples: Inputs ``[1, T]`` of the forward function, in the same order in each run.
        folder: Folder of the index.
        by: ``"relevance"`` (for ``target``) or ``"activation"``.
        target: The target, or a function that maps a text to its target; for relevances only.
        additional_forward_args: Further arguments of the forward function, after each text.
        k: Number of texts kept for each neuron.
        rank: Index of this process.
        processes: Number of processes.
        resume: Whether to continue the index in the folder, if there is one.
        save_every: Number of texts after which the index is stored.

    Returns:
        The index of this process; :meth:`ReferenceIndex.load` merges all.

    Raises:
        ValueError: If an option is out of range, or there is another index, or one that may not be
            resumed.
    """
    if by not in get_args(Measure):
        raise ValueError(f"`by` is 'relevance' or 'activation', not {by!r}.")
    for name, count in (("k", k), ("processes", processes), ("save_every", save_every)):
        check_count(count, name)
    if not 0 <= rank < processes:
        raise ValueError(f"`rank` is from 0 to {processes - 1}, not {rank}.")
    path = Path(folder) / f"references-{rank:05d}.safetensors"
    run = {"by": by, "k": str(k), "rank": str(rank), "processes": str(processes)}
    index = _there(path, run, resume=resume)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = 0 if index is None else index.seen
    first = rank + stored * processes
    for number, sample in islice(enumerate(samples), first, None, processes):
        new = _scored(concepts, sample, number, by, target, additional_forward_args, k)
        index = new if index is None else index.merged(new, 1)
        if index.seen - stored >= save_every:
            _write(path, index, run)
            stored = index.seen
    if index is None:
        raise ValueError("There are no samples, so no neuron has a reference.")
    if index.seen > stored or not path.exists():
        _write(path, index, run)
    return index


def _scored(
    concepts: ConceptRelevance, sample: Tensor, number: int, by: str, target: Any, args: Any, k: int
) -> ReferenceIndex:
    """The index of one text, whose other references are missing."""
    if len(sample) != 1:
        raise ValueError(
            f"Sample {number} has {len(sample)} rows: give texts one at a time, [1, T]."
        )
    if by == "activation":
        found = concepts.activations(sample, args)
    else:
        found = concepts.attribute(sample, target(sample) if callable(target) else target, args)
    scores, positions = found.reshape(-1, found.shape[-1]).float().cpu().max(0)
    samples = torch.full_like(positions, number)

    def padded(values: Tensor, missing: float) -> Tensor:
        return functional.pad(values.unsqueeze(1), (0, k - 1), value=missing)

    return ReferenceIndex(padded(scores, -torch.inf), padded(samples, -1), padded(positions, -1), 1)


def _there(path: Path, run: dict[str, str], *, resume: bool) -> ReferenceIndex | None:
    """An existing index, if it may be resumed."""
    if not path.exists():
        return None
    if not resume:
        raise ValueError(f"There is {path} already: resume it, or choose another folder.")
    index, other = _read(path)
    for name, value in run.items():
        if other.get(name) != value:
            raise ValueError(
                f"{path} was built with {name}={other.get(name)}, not {value}: choose another "
                "folder."
            )
    return index


def _read(path: Path) -> tuple[ReferenceIndex, dict[str, str]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            run = file.metadata() or {}
            scores, samples, positions = map(file.get_tensor, ("scores", "samples", "positions"))
        return ReferenceIndex(scores, samples, positions, int(run["seen"])), run
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no index of references ({error}): build it again in another folder."
        ) from error


def _write(path: Path, index: ReferenceIndex, run: dict[str, str]) -> None:
    tensors = {
        name: getattr(index, name).contiguous() for name in ("scores", "samples", "positions")
    }
    write_bytes(path, safetensors.torch.save(tensors, {**run, "seen": str(index.seen)}))
