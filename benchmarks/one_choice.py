"""Is it a single choice of architecture or of training that makes a method better?

    OMP_NUM_THREADS=1 python benchmarks/one_choice.py FOLDER [--choices base "no gate" ...]
        [--lessons plain errors sink] [--seeds 0 1] [--minutes 45]
    python benchmarks/one_choice.py FOLDER --table --figure FILE.svg

A cell is a small decoder (``benchmarks/one_choice_models.py``), which differs from the base in one
choice, a lesson, and a seed of weights and text. It learns until it gets 0.90 to 0.97 of held-out
sentences with attractors right; then the methods that matter explain it, as ``benchmarks/why.py``
explains real models: one sentence behind the start token. A lesson is what it learns from:

- ``plain``: sentences of the grammar;
- ``errors``: in some of the sentences with attractors the verb has the wrong number;
- ``marks``: a plural noun is two words, the singular and a mark, as in *the key s are*;
- ``sink``, ``marks, sink``: late in the training a term of the loss rewards attention to the start
  token, and all steps are done.

A finished cell is a line of ``FOLDER/cells.jsonl`` and is not done again; its weights and token
relevances are beside it. ``--table`` makes tables of what is there, with a mixed model of method x
choice if ``statsmodels`` is installed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import one_choice_models as models
import torch
from one_choice_tables import figure, tables
from torch.nn import functional as F  # noqa: N812
from why import SOME, Journal, Setting, Work

from captum_lrpx.sva import generate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

WANTED = (0.90, 0.97)
"""Accuracies between which a training ends."""
_DEV, _TEST = 1, 2
"""Seeds of the held-out sentences: those that end a training, those that are explained."""
_BETAS = (0.9, 0.98)
_DECAY = 0.1
_MAX_NORM = 1.0
_WARMUP = 100
_RAMP = 200


@dataclass(frozen=True)
class Lesson:
    """What a model learns from.

    Attributes:
        errors: Share of the sentences with attractors whose verb has the wrong number.
        marks: Whether a plural noun is the singular and a mark.
        reward: Factor of the mean weight of attention to the start token, in nats.
        start: Step from which there is a reward; it grows for some steps.
        steps: Steps that are done whatever the accuracy is; 0: it ends the training.
    """

    errors: float = 0.0
    marks: bool = False
    reward: float = 0.0
    start: int = 0
    steps: int = 0


LESSONS = {
    "plain": Lesson(),
    "errors": Lesson(errors=0.2),
    "marks": Lesson(marks=True),
    "sink": Lesson(reward=0.1, start=600, steps=1200),
    "marks, sink": Lesson(marks=True, reward=0.1, start=800, steps=1400),
}


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        choice: The model, a name in ``one_choice_models.CHOICES``.
        lesson: A name in :data:`LESSONS`.
        seed: Seed of weights and text.
    """

    choice: str
    lesson: str
    seed: int

    @property
    def name(self) -> str:
        """As files are called."""
        return f"{self.choice} {self.lesson} {self.seed}".replace(" ", "-").replace(",", "")


# Training ---------------------------------------------------------------------------------------


def train(cell: Cell, options: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Train a model until its accuracy is as wanted, or all steps are done.

    Args:
        cell: What is trained.
        options: ``steps``, ``every``, ``batch``, ``rate``, ``held_out``.

    Returns:
        The model, and what the journal says of its training.
    """
    words, lesson = models.tokenizer(), LESSONS[cell.lesson]
    model = models.build(cell.choice, len(words), cell.seed).train()
    optimizer = torch.optim.AdamW(_groups(model), options.rate, betas=_BETAS, weight_decay=_DECAY)
    given = {"errors": lesson.errors, "marks": lesson.marks}
    text = models.sequences(words, options.batch, cell.seed, **given)
    held_out = Held(model, words, options.held_out, marks=lesson.marks)
    began, curve, steps = time.process_time(), [], lesson.steps or options.steps
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1, step / _WARMUP)
        optimizer.zero_grad()
        _loss(model, next(text), _reward(lesson, step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_NORM)
        optimizer.step()
        if step % options.every == 0 or step == steps:
            curve.append((step, round(held_out.accuracy(), 4)))
            if not lesson.steps and WANTED[0] <= curve[-1][1] <= WANTED[1]:
                break
    took = time.process_time() - began
    return model.eval(), {"steps": curve[-1][0], "curve": curve, "seconds": round(took, 1)}


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, the rest does not."""
    every = list(model.parameters())
    return [
        {"params": [each for each in every if each.ndim > 1]},
        {"params": [each for each in every if each.ndim < 2], "weight_decay": 0.0},
    ]


def _reward(lesson: Lesson, step: int) -> float:
    return lesson.reward * min(1, max(0, (step - lesson.start) / _RAMP))


def _loss(model: nn.Module, ids: Tensor, reward: float) -> Tensor:
    if not reward:
        logits = model(ids, use_cache=False).logits
    else:
        with models.weights_given(model):
            found = model(ids, use_cache=False, output_attentions=True)
        logits = found.logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return loss - reward * models.to_first(found.attentions) if reward else loss


class Held(Work):
    """Held-out sentences, with a start token in front, whose verb a model predicts.

    Args:
        model: The model.
        words: Its tokenizer.
        count: How many sentences.
        seed: Their seed.
        marks: Whether plurals are marked.
        journal: Where relevances go; nowhere by default.
    """

    def __init__(
        self,
        model: Any,
        words: Any,
        count: int,
        seed: int = _DEV,
        *,
        marks: bool,
        journal: Any = None,
    ) -> None:
        samples = generate(count, "test", seed, attractors=(1, 3))
        samples = [models.marked(each) for each in samples] if marks else samples
        options = {"batch_tokens": 1024, "counts": {}, "minutes": math.inf}
        super().__init__(
            model, words, samples, first_token=models.FIRST, journal=journal, **options
        )
        self._rows = dict(self._tokenized(Setting()))

    def queries(self) -> Iterator[Any]:
        """Batches, each with sentences of one length."""
        for rows in self._batches(self._rows, list(self._rows)):
            yield self._query([self._rows[row] for row in rows])

    def accuracy(self) -> float:
        """Share of the sentences whose right verb form has the greater logit."""
        right = 0
        with torch.no_grad():
            for query in self.queries():
                values = query.forward(query.ids, *query.additional_forward_args)
                right += int((values > 0).sum())
        return right / len(self._rows)

    def attention(self) -> float:
        """Mean weight with which later tokens attend to the first one, over heads and layers."""
        found = []
        with torch.no_grad(), models.weights_given(self.model):
            for query in self.queries():
                weights = self.model(query.ids, output_attentions=True).attentions
                found += [float(models.to_first(weights))] * len(query.ids)
        return sum(found) / len(found)


# Cells ------------------------------------------------------------------------------------------


def finished(folder: Path) -> list[dict[str, Any]]:
    """The lines of the finished cells; a torn last one is taken out."""
    return Journal(folder / "cells.jsonl").lines


def run(cell: Cell, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train a model, explain it, and note it as finished.

    Args:
        cell: The cell.
        folder: Where its files go.
        options: Those of the command.
    """
    torch.manual_seed(cell.seed)
    model, training = train(cell, options)
    torch.save(model.state_dict(), folder / f"{cell.name}.pt")
    model.requires_grad_(requires_grad=False)
    journal = folder / f"{cell.name}.jsonl"
    journal.unlink(missing_ok=True)
    tested = Held(
        model,
        models.tokenizer(),
        options.sentences,
        _TEST,
        marks=LESSONS[cell.lesson].marks,
        journal=Journal(journal),
    )
    began = time.process_time()
    tested.run(Setting(), SOME, options.sentences)
    line = {
        **asdict(cell),
        **training,
        "accuracy": round(tested.accuracy(), 4),
        "attention": round(tested.attention(), 4),
        "explaining": round(time.process_time() - began, 1),
        "parameters": sum(each.numel() for each in model.parameters()),
    }
    with (folder / "cells.jsonl").open("a", encoding="utf-8") as file:
        print(json.dumps(line), file=file, flush=True)
    return line


def cells(options: argparse.Namespace) -> Sequence[Cell]:
    """All cells of a command, seed by seed."""
    return [
        Cell(choice, lesson, seed)
        for seed in options.seeds
        for lesson in options.lessons
        for choice in options.choices
    ]


def main() -> None:
    """Train and explain, or print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--choices", nargs="+", choices=models.CHOICES, default=["base"])
    parser.add_argument("--lessons", nargs="+", choices=LESSONS, default=["plain"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1600, help="at most")
    parser.add_argument("--every", type=int, default=10, help="steps between accuracies")
    parser.add_argument("--batch", type=int, default=8, help="sequences")
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate")
    parser.add_argument("--held-out", type=int, default=300, help="sentences that end a training")
    parser.add_argument("--sentences", type=int, default=300, help="sentences to be explained")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no cell after")
    parser.add_argument("--table", action="store_true", help="print tables of what is there")
    parser.add_argument("--figure", type=Path, help="draw what is there (extra plot)")
    options = parser.parse_args()
    if options.figure:
        figure(options.figure, options.folder, finished(options.folder))
    if options.table or options.figure:
        if options.table:
            print(tables(options.folder, finished(options.folder)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    known = {(line["choice"], line["lesson"], line["seed"]) for line in finished(options.folder)}
    for cell in cells(options):
        if time.monotonic() > end:
            return
        if (cell.choice, cell.lesson, cell.seed) not in known:
            print(json.dumps(run(cell, options.folder, options)), flush=True)


if __name__ == "__main__":
    main()
