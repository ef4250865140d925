"""Attributions of compiled programs, of which it is known what each result depends on.

    python benchmarks/programs.py [--texts 200] [--seed 0] [--programs reverse ...]

Prints a table for each measure, with 95 % bootstrap intervals over texts. Of each program so many
different texts of the greatest length are drawn, and one position for each at which the result is
read (the last for ``dyck``). Texts whose result depends on no letter, or on every one, tell nothing
and are drawn anew.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

import captum.attr as captum
import torch

from captum_lrpx import ALTILogit, AttnLRPx, InformationFlow, LRPx, RandomAttribution
from captum_lrpx.metrics import relevance_rank_accuracy
from captum_lrpx.sva.evaluation.statistics import Estimate, estimates, resampling
from captum_lrpx.zoo.programs import PROGRAMS, Program, load_program

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Target = list[tuple[int, int]]

ZERO = 1e-6
"""What is smaller, as a share of a method's largest for a program, is rounding: such are tied."""

MEASURES = {
    "precision": "the share of letters that the result depends on among as many top letters",
    "false mass": "the share of the absolute attribution on letters that it does not depend on",
    "nothing": "the share of texts without any attribution on letters",
    "start token": "the share of the absolute attribution on the start token",
}


class Questions(NamedTuple):
    """Results to be explained.

    Attributes:
        ids: Token ids ``[N, T]``.
        targets: Position and output of each.
        truth: Letters that it depends on ``[N, T]``.
    """

    ids: Tensor
    targets: Target
    truth: Tensor


def questions(name: str, program: Program, count: int, seed: int) -> Questions:
    """Draw texts and positions."""
    vocabulary = program.vocabulary
    generator = torch.Generator().manual_seed(seed)
    length, letters = vocabulary.longest, len(vocabulary.letters)
    drawn = torch.randint(letters, (20 * count, length), generator=generator)
    drawn = torch.stack(list({tuple(each.tolist()): each for each in drawn}.values()))
    positions = torch.randint(1, length + 1, (len(drawn),), generator=generator)
    if name == "dyck":
        positions.fill_(length)
    ids = program.encode(["".join(vocabulary.letters[each] for each in row) for row in drawn])
    truth = program.dependence(ids, positions)
    telling = (truth.any(1) & ~truth[:, 1:].all(1)).nonzero().squeeze(1)[:count]
    ids, positions, truth = ids[telling], positions[telling], truth[telling]
    results = program.results(ids).gather(1, positions.unsqueeze(1)).squeeze(1)
    outputs = results if vocabulary.results else torch.zeros_like(positions)
    return Questions(ids, list(zip(positions.tolist(), outputs.tolist(), strict=True)), truth)


def _of_embeddings(
    program: Program, ids: Tensor, explain: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> Tensor:
    embeddings = program.tokens(ids).detach().requires_grad_()
    return explain(program.of_embeddings, embeddings).detach()


def _leave_one_out(program: Program, ids: Tensor, targets: Target) -> Tensor:
    embeddings = program.tokens(ids).detach()
    letters = torch.arange(ids.shape[1]).view(1, -1, 1)
    ablation = captum.FeatureAblation(program.of_embeddings)
    with torch.no_grad():
        return ablation.attribute(embeddings, target=targets, feature_mask=letters)[:, :, 0]


@torch.no_grad()
def _replacement(program: Program, ids: Tensor, targets: Target) -> Tensor:
    rows = torch.arange(len(ids))
    positions, outputs = torch.tensor(targets).unbind(1)
    value = program(ids)[rows, positions, outputs]
    found = torch.zeros(ids.shape, dtype=value.dtype)
    for place in range(1, ids.shape[1]):
        for letter in program.vocabulary.letters:
            other = ids.clone()
            other[:, place] = program.vocabulary.tokens.index(letter)
            change = value - program(other)[rows, positions, outputs]
            found[:, place] += change / (len(program.vocabulary.letters) - 1)
    return found


def _integrated(program: Program, ids: Tensor, targets: Target) -> Tensor:
    def explain(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return captum.IntegratedGradients(forward).attribute(x, target=targets, n_steps=50).sum(-1)

    return _of_embeddings(program, ids, explain)


METHODS: dict[str, Callable[[Program, Tensor, Target], Tensor]] = {
    "lrpx": lambda program, ids, targets: LRPx(program).attribute(ids, target=targets),
    "attnlrpx": lambda program, ids, targets: AttnLRPx(program).attribute(ids, target=targets),
    "altilogit": lambda program, ids, targets: ALTILogit(program).attribute(ids, target=targets),
    "information_flow": lambda program, ids, targets: InformationFlow(program).attribute(
        ids, target=targets
    ),
    "gradient": lambda program, ids, targets: _of_embeddings(
        program,
        ids,
        lambda forward, x: captum.Saliency(forward).attribute(x, target=targets).sum(-1),
    ),
    "input_x_gradient": lambda program, ids, targets: _of_embeddings(
        program,
        ids,
        lambda forward, x: captum.InputXGradient(forward).attribute(x, target=targets).sum(-1),
    ),
    "integrated_gradients": _integrated,
    "leave_one_out": _leave_one_out,
    "replacement": _replacement,
    "random": lambda program, ids, _targets: RandomAttribution(program).attribute(ids),
}


def measured(attributions: Tensor, truth: Tensor) -> Tensor:
    """All measures of attributions ``[N, T]``: ``[measures, 1, N]``, NaN where there is none."""
    size = attributions.double().abs()
    size = torch.where(size > ZERO * size.max(), size, 0.0)
    start, size, truth = size[:, 0], size[:, 1:], truth[:, 1:]
    total = size.sum(-1)
    false = (size * ~truth).sum(-1) / total  # 0 / 0 is NaN: nothing is false there
    return torch.stack(
        [
            relevance_rank_accuracy(size, truth),
            false,
            (total == 0).double(),
            start / (start + total),
        ]
    ).unsqueeze(1)


def evaluate(names: list[str], count: int, seed: int) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Estimates by measure, method and program."""
    found: dict[str, dict[str, dict[str, Estimate]]] = {
        measure: {method: {} for method in METHODS} for measure in MEASURES
    }
    for name in names:
        program = load_program(name).double()
        ids, targets, truth = questions(name, program, count, seed)
        letters = truth.sum(-1).double()
        print(
            f"{name}: {len(ids)} texts of {ids.shape[1] - 1} letters; the result depends on "
            f"{letters.mean():.1f} of them ({int(letters.min())} to {int(letters.max())})"
        )
        resampled = resampling(len(ids), seed)
        for method, attribute in METHODS.items():
            of_measures = estimates(measured(attribute(program, ids, targets), truth), resampled)
            for measure, each in zip(MEASURES, of_measures, strict=True):
                found[measure][method][name] = each
    return found


def _cell(each: Estimate) -> str:
    if not each.count:
        return "-"
    return f"{each.mean:.2f} [{each.low:.2f}, {each.high:.2f}]"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=200, help="texts of each program")
    parser.add_argument("--seed", type=int, default=0, help="of texts and bootstrap")
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    options = parser.parse_args()
    for measure, methods in evaluate(options.programs, options.texts, options.seed).items():
        print(f"\n{measure}: {MEASURES[measure]}\n")
        print("| method | " + " | ".join(options.programs) + " |")
        print("|---" * (1 + len(options.programs)) + "|")
        for method, cells in methods.items():
            print(f"| `{method}` | " + " | ".join(map(_cell, cells.values())) + " |")


if __name__ == "__main__":
    main()
