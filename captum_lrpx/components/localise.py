"""Compares recipes at finding important components: estimates against measured effects."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_lrpx.components.patching import ActivationPatching, RelevancePatching
from captum_lrpx.metrics.agreement import Agreement, agreement
from captum_lrpx.models import device_of
from captum_lrpx.recipes import GRADIENT, LRP_MIRRORED_GATE, NAMED_RECIPES
from captum_lrpx.sva.evaluation.journal import Journal
from captum_lrpx.targets.forward import TokenSum

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from captum_lrpx.components.nodes import NodeKind
    from captum_lrpx.components.pairs import TokenPair
    from captum_lrpx.recipes import Recipe


class Kind(NamedTuple):
    """A kind of node, and its usual place in models.

    Attributes:
        by: Kind of the nodes.
        at_input: Whether they are in a layer's input.
        pattern: Regular expression of the paths of the layers.
    """

    by: NodeKind
    at_input: bool
    pattern: str


KINDS: Final[dict[str, Kind]] = {
    "heads": Kind(
        "head",
        True,
        r".*(self_attn\.(o_proj|out_proj|dense)|attn\.(c_proj|out_proj)|attention\.output\.dense"
        r"|(self_)?attention\.dense)",
    ),
    "attention": Kind("token", False, r".*\.(self_attn|attn|attention|self_attention)"),
    "mlp": Kind("token", False, r".*\.(mlp|feed_forward|block_sparse_moe|ffn)"),
    "residual": Kind("token", False, r".*\.(layers|h|layer|blocks)\.\d+"),
    "experts": Kind("expert", False, r".*\.experts"),
    "neurons": Kind("neuron", True, r".*\.(mlp|feed_forward)\.(down_proj|c_proj|w2)"),
}
"""Kinds of nodes by name."""

RECIPES: Final[dict[str, Recipe]] = {
    each.name: each for each in (GRADIENT, *NAMED_RECIPES.values(), LRP_MIRRORED_GATE)
}
"""Recipes by name."""


@dataclass(frozen=True)
class Localisation:
    """Agreement of estimates with measured effects.

    Attributes:
        found: By kind of node and name of a recipe, the agreement of each pair and direction.
        groups: By kind, the pair that each row belongs to.
        tasks: By kind, the task of each row.
        explained: The explained value of each pair for the clean and for the corrupted text
            ``[pairs, 2]``.
    """

    found: dict[tuple[str, str], Agreement]
    groups: dict[str, Tensor]
    tasks: dict[str, list[str]]
    explained: Tensor

    def of_task(self, task: str) -> Localisation:
        """The rows of one task."""
        rows = {
            kind: torch.tensor([number for number, each in enumerate(tasks) if each == task])
            for kind, tasks in self.tasks.items()
        }
        found = {
            (kind, name): Agreement(
                each.pearson[rows[kind]], each.spearman[rows[kind]], each.top_k[rows[kind]], each.k
            )
            for (kind, name), each in self.found.items()
        }
        groups = {kind: each[rows[kind]] for kind, each in self.groups.items()}
        tasks = {kind: [task] * len(each) for kind, each in rows.items()}
        return Localisation(found, groups, tasks, self.explained)


def layers_of(model: nn.Module, kind: str, pattern: str | None = None) -> list[nn.Module]:
    """Layers with nodes of a kind, in the order of the model.

    Args:
        model: The model.
        kind: A name of :data:`KINDS`.
        pattern: Regular expression of their paths. Default: the kind's

    Raises:
        ValueError: If there is no such kind, or no layer.
    """
    if kind not in KINDS:
        raise ValueError(f"Kinds of nodes are {', '.join(KINDS)}, not {kind!r}.")
    expression = re.compile(pattern or KINDS[kind].pattern)
    layers = [module for path, module in model.named_modules() if expression.fullmatch(path)]
    if not layers:
        raise ValueError(
            f"No module of {type(model).__name__} matches {expression.pattern!r}: give a regular "
            f"expression of the paths of its {kind}, as `model.named_modules()` lists them."
        )
    return layers


def localise(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    recipes: Mapping[str, Recipe],
    kinds: Mapping[str, str | None],
    *,
    perturbations_per_eval: int = 16,
    neurons: int = 4,
    share: float = 1.0,
    output: str | os.PathLike[str] | None = None,
    manifest: Mapping[str, Any] | None = None,
    resume: bool = False,
    show_progress: bool = False,
) -> Localisation:
    """Compare estimates of all nodes with their measured effects, in both directions.

    Positions before the first difference of two texts are excluded, and neurons are measured for a
    random choice in each layer.

    Args:
        model: A language model.
        pairs: Pairs of texts.
        recipes: By name.
        kinds: Kinds of nodes, each with a regular expression for its layers or None.
        perturbations_per_eval: Number of nodes patched in one forward pass.
        neurons: Number of neurons of each layer that are measured.
        share: Share of the other nodes of each layer that are measured, a random choice for each
            pair.
        output: Folder that keeps finished work.
        manifest: Identifies the run, for ``resume``.
        resume: Whether to continue the run in the folder.
        show_progress: Whether to show a progress bar.

    Raises:
        ValueError: If a kind has no layers, the share is out of range, or the folder holds another
            run.
    """
    if not 0 < share <= 1:
        raise ValueError(f"`share` is a share of the nodes, above 0 and up to 1, not {share}.")
    layers = {kind: layers_of(model, kind, pattern) for kind, pattern in kinds.items()}
    given = {"recipes": list(recipes), "kinds": dict(kinds), "neurons": neurons, "share": share}
    with Journal(output, given | dict(manifest or {}), resume=resume) as journal:
        # Tasks alternate, so that an interrupted run has some of each.
        order = sorted(pairs, key=lambda pair: pair.number)
        work = [(pair, kind, way) for pair in order for kind in kinds for way in range(2)]
        ways = [(pair, way) for pair in order for way in range(2)]
        for pair, way in tqdm(ways, disable=not show_progress):
            missing = [k for k in kinds if (pair.task, pair.number, k, way) not in journal.records]
            for alike in _alike(missing):
                asked = {kind: layers[kind] for kind in alike}
                found = _measured(
                    model, pair, way, asked, recipes, perturbations_per_eval, neurons, share
                )
                for kind, record in found.items():
                    journal.append((pair.task, pair.number, kind, way), record)
        records = [journal.records[pair.task, pair.number, kind, way] for pair, kind, way in work]
    return _joined(work, records, recipes, kinds)


def _measured(
    model: nn.Module,
    pair: TokenPair,
    way: int,
    layers: Mapping[str, Sequence[nn.Module]],
    recipes: Mapping[str, Recipe],
    at_once: int,
    neurons: int,
    share: float,
) -> dict[str, dict[str, Any]]:
    """Measured effects and estimates of one direction of a pair, for kinds of the same options."""
    kind = KINDS[next(iter(layers))]
    modules = [module for each in layers.values() for module in each]
    device = device_of(model)
    texts = (pair.clean.to(device), pair.corrupted.to(device))
    inputs, others = texts[way], texts[1 - way]
    forward = TokenSum(model)
    arguments = (None, pair.tokens.to(device), None, pair.weights.to(device))
    asked: dict[str, Any] = {
        "additional_forward_args": arguments,
        "by": kind.by,
        "attribute_to_layer_input": kind.at_input,
    }
    estimates = {
        name: RelevancePatching(forward, modules, recipe=recipe).attribute(inputs, others, **asked)
        for name, recipe in recipes.items()
    }
    chosen = [
        _chosen(pair, kind, number, each.shape[1], neurons, share)
        for number, each in enumerate(next(iter(estimates.values())))
    ]
    effects = ActivationPatching(forward, modules).attribute(
        inputs, others, only=chosen, perturbations_per_eval=at_once, **asked
    )
    with torch.no_grad():
        explained = [float(forward(each, *arguments)) for each in (inputs, others)]
    records, start = {}, 0
    for name, some in layers.items():
        part = slice(start, start + len(some))
        start = part.stop
        records[name] = {
            "explained": explained,
            "effects": _kept(effects[part], chosen[part]),
            "estimates": {
                each: _kept(found[part], chosen[part]) for each, found in estimates.items()
            },
        }
    return records


def _chosen(
    pair: TokenPair, kind: Kind, layer: int, width: int, neurons: int, share: float
) -> Tensor:
    """Nodes of a layer that are measured: the same neurons for all pairs, other nodes for each."""
    if kind.by == "neuron":
        start, number, seed = 0, neurons, layer
    else:
        start = pair.first_difference if kind.by == "token" else 0
        number, seed = math.ceil(share * (width - start)), 1000 * pair.number + layer
    generator = torch.Generator().manual_seed(seed)
    nodes = start + torch.randperm(width - start, generator=generator)[:number]
    return nodes.sort().values


def _alike(kinds: Sequence[str]) -> list[list[str]]:
    """Groups of kinds that one call can measure together."""
    groups: dict[tuple[NodeKind, bool], list[str]] = {}
    for kind in kinds:
        groups.setdefault((KINDS[kind].by, KINDS[kind].at_input), []).append(kind)
    return list(groups.values())


def _kept(found: Sequence[Tensor], chosen: Sequence[Tensor]) -> list[float]:
    """Values of the measured nodes, to six digits."""
    numbers = [each[0, nodes.to(each.device)] for each, nodes in zip(found, chosen, strict=True)]
    return [float(f"{number:.6g}") for number in torch.cat(numbers).tolist()]


def _joined(
    work: Sequence[tuple[TokenPair, str, int]],
    records: Iterable[Mapping[str, Any]],
    recipes: Iterable[str],
    kinds: Iterable[str],
) -> Localisation:
    rows = list(zip(work, records, strict=True))
    keys = dict.fromkeys((pair.task, pair.number) for pair, _, _ in work)
    pairs = {key: number for number, key in enumerate(keys)}
    found: dict[tuple[str, str], Agreement] = {}
    groups, tasks = {}, {}
    for kind in kinds:
        here = [(pair, record) for (pair, each, _), record in rows if each == kind]
        groups[kind] = torch.tensor([pairs[pair.task, pair.number] for pair, _ in here])
        tasks[kind] = [pair.task for pair, _ in here]
        for name in recipes:
            found[kind, name] = Agreement.joined(
                [
                    agreement(
                        torch.tensor([record["estimates"][name]]), torch.tensor([record["effects"]])
                    )
                    for _, record in here
                ]
            )
    explained = {
        pairs[pair.task, pair.number]: record["explained"]
        for (pair, _, way), record in rows
        if way == 0
    }
    return Localisation(found, groups, tasks, torch.tensor(list(explained.values())))
