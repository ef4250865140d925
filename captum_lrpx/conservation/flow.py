"""What each operation of a graph was given and passed on: a ledger that knows no model.

Relevance flows along the edges of the graph. What a function receives from its consumers and does
not pass on to its operands is its leak; all leaks and the relevance of the inputs sum to the
explained value by construction. What makes this a check is that only some functions *may* leak: one
that adds a constant (a bias, an embedding of positions), and a rule that says that it does not
conserve. Whatever leaks elsewhere leaves the account open, and is named.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from captum_lrpx.conservation.tally import Kind, wide
from captum_lrpx.trace.graph import node_of

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.traced import TracedPass

__all__ = ["Flow", "Leak"]

Gradients = tuple["Tensor | None", ...]

_WITH_SUMMAND: Final = frozenset({"Addmm", "Baddbmm", "Addbmm", "Addmv", "Addr"})
_WITH_BIAS: Final = frozenset(
    {
        "Convolution",
        "ConvolutionOverrideable",
        "CudnnBatchNorm",
        "CudnnConvolution",
        "Linear",
        "MkldnnConvolution",
        "MkldnnLinear",
        "NativeBatchNorm",
        "NativeGroupNorm",
        "NativeLayerNorm",
    }
)
_FILLING: Final = frozenset(
    {
        "Cat",
        "ConstantPadNd",
        "Copy",
        "CopySlices",
        "Fill",
        "IndexAdd",
        "IndexCopy",
        "IndexFill",
        "IndexPut",
        "IndexPutImpl",
        "MaskedFill",
        "MaskedScatter",
        "Maximum",
        "Minimum",
        "Scatter",
        "ScatterAdd",
        "SelectScatter",
        "SliceScatter",
        "Stack",
        "Where",
    }
)
"""Operators that may write a constant somewhere."""


class Leak(NamedTuple):
    """What one function kept.

    Attributes:
        kind: What it is in a ledger; None for what no rule allows.
        path: Path of its module.
        function: Its name.
        amount: In units of the explained value.
    """

    kind: Kind | None
    path: str
    function: str
    amount: Tensor


def _relevance(gradient: Tensor, value: Tensor) -> Tensor:
    """Gradient times value; nothing where there is no gradient, as under a mask of ``-inf``."""
    if value.is_complex():
        gradient, value = torch.view_as_real(gradient), torch.view_as_real(value.resolve_conj())
    return (wide(gradient) * wide(value).masked_fill(gradient == 0, 0)).sum()


def _leading(graph: Graph, sources: tuple[Tensor, ...]) -> set[int]:
    """Indices of the nodes that depend on a source; what else there is is constant."""
    found = {graph.index[node] for source in sources if (node := node_of(source)) in graph.index}
    for number, edges in enumerate(graph.operands):
        if any(edge is not None and edge.node in found for edge in edges):
            found.add(number)
    return found


class Flow:
    """Hooks that note what flows along the edges between functions, in one backward pass.

    Args:
        passed: A pass that has kept its values, with its rules on the graph.
        sources: Tensors that relevance is attributed to.
    """

    def __init__(self, passed: TracedPass, sources: tuple[Tensor, ...]) -> None:
        graph, structure, watch = passed.graph, passed.structure, passed.watch
        assert graph is not None and structure is not None and watch is not None  # noqa: S101, PT018
        self.passed = passed
        self.graph = graph
        self.structure = structure
        self.plan = structure.plans[passed.recipe]
        self.recipe: Recipe = passed.recipe
        self.values = dict(watch.values)
        for source in sources:
            self.values[node_of(source), source.output_nr] = source.detach()  # type: ignore[index]
        # A leaf is a group of its own, whoever was the first to take it.
        self.group = [
            watch.calls[node].number if node in watch.calls and any(edges) else -1 - number
            for number, (node, edges) in enumerate(zip(graph.nodes, graph.operands, strict=True))
        ]
        self.leading = _leading(graph, sources)
        self.leaks: dict[int, Tensor] = {}
        self._rows: list[dict[int, Tensor]] = []
        self.unobserved: set[int] = set()
        self._members: dict[int, list[int]] = {}
        for number in self.plan.alive:
            self._members.setdefault(self.group[number], []).append(number)
            hook = graph.nodes[number].register_hook(partial(self._flowed, number))
            passed.handles.append(hook)

    def start(self, values: Tensor, row: int) -> None:
        """Begin with one explained value, which the function that made it is given.

        Args:
            values: ``[B]``, the root of the graph.
            row: Which of them the backward pass starts from.
        """
        (root,) = self.graph.roots
        self.leaks = {}
        self._add(root, wide(values.detach())[row])

    def stop(self) -> None:
        """Keep what one backward pass has found."""
        self._rows.append(self.leaks)

    def _add(self, number: int, amount: Tensor) -> None:
        group = self.group[number]
        self.leaks[group] = self.leaks.get(group, torch.zeros_like(amount)) + amount

    def _flowed(self, number: int, given: Gradients, _taken: Gradients) -> None:
        for edge, gradient in zip(self.graph.operands[number], given, strict=True):
            if edge is None or gradient is None or self.group[edge.node] == self.group[number]:
                continue
            value = self.values.get((self.graph.nodes[edge.node], edge.output))
            if value is None:
                self.unobserved.add(edge.node)
                continue
            amount = _relevance(gradient.detach(), value)
            self._add(number, -amount)
            self._add(edge.node, amount)

    # After the backward pass ------------------------------------------------------------------

    def found(self, row: int) -> list[Leak]:
        """The leaks of all functions but the sources, in the order of the forward pass.

        Args:
            row: Of which explained value.
        """
        leaks, amounts = [], self._rows[row]
        for group in sorted(self._members):
            if group not in amounts:
                continue
            members = self._members[group]
            if all(not any(self.graph.operands[number]) for number in members):
                continue  # a leaf: what it is given is its relevance
            path, _, function = self.structure.places.get(members[-1], ("", "", ""))
            leaks.append(Leak(self._kind(members), path, function, amounts[group]))
        return leaks

    def _kind(self, members: list[int]) -> Kind | None:
        kinds = {self._kind_of(number) for number in members} - {None}
        order: tuple[Kind, ...] = ("output", "softmax", "rule", "absorbed", "bias")
        return next((kind for kind in order if kind in kinds), None)

    def _kind_of(self, number: int) -> Kind | None:
        """What a node may keep; None if nothing."""
        if number in self.structure.explained:
            return "output"
        return self._by_rule(number) or self._by_constant(number)

    def _by_rule(self, number: int) -> Kind | None:
        """What the rule of a node says that it does not conserve."""
        operation, recipe = self.structure.roles[number], self.recipe
        role = operation.role
        if role == "rule":
            return "absorbed"
        if role == "softmax" or (role == "kernel" and not recipe.attention.constant_weights):
            return "softmax"
        not_conserving = {
            "attention": recipe.attention.own_gradient,
            "scores": recipe.attention.own_gradient,
            "gated product": not recipe.gate.conserves,
            "norm": not recipe.norm.conserves,
            "activation": not recipe.activation.conserves or operation.kind == "gate function",
        }
        scale = not recipe.norm.conserves and operation.nature == "scale"
        return "rule" if scale or not_conserving.get(role, False) else None

    def _by_constant(self, number: int) -> Kind | None:
        """Whether a node may add a constant."""
        name = self.graph.names[number]
        edges = [
            edge if edge is not None and edge.node in self.leading else None
            for edge in self.graph.operands[number]
        ]
        missing = None in edges or len(edges) < 2
        adds = (
            name in _WITH_BIAS
            or name == "Rsub"
            or (name in _WITH_SUMMAND and edges[0] is None)
            or (missing and (name in ("Add", "Sub") or name in _FILLING))
        )
        if adds:
            return "bias"
        weights = self.structure.roles[number].weights
        return "absorbed" if weights and self.recipe.attention.constant_weights else None
