"""Relevance that each operation of a graph receives and passes on: a ledger for any model.

Relevance flows along the edges of the graph. The difference between a function's relevance from its
consumers and the relevance passed to its operands is its leak; all leaks and the relevance of the
inputs sum to the explained value by construction. The check is that only two things may leak. A
constant that a function adds (a bias, an embedding of positions) has its value times its gradient,
computed separately wherever the value is known. A rule that declares that it does not conserve has
the rest. Any other leak is on no line and leaves the account open.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.conservation.book import wide
from captum_lrpx.conservation.places import Places
from captum_lrpx.parallel import COLLECTIVES, gathered, is_spread, local, sharing, sharing_of
from captum_lrpx.trace.graph import node_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.autograd.graph import Node

    from captum_lrpx.conservation.places import Place
    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.trace.origins import Added, Masked
    from captum_lrpx.trace.watch import Watch
    from captum_lrpx.traced import TracedPass

Gradients = tuple["Tensor | None", ...]
_MANY: Final = 1000
"""Rounding of a sum, in units of the last place."""


def _relevance(gradient: Tensor, value: Tensor) -> Tensor:
    """Gradient times value; 0 where the gradient is 0, as under a mask of ``-inf``."""
    if value.is_complex():
        gradient, value = torch.view_as_real(gradient), torch.view_as_real(value.resolve_conj())
    return (wide(gradient) * wide(value).masked_fill(gradient == 0, 0)).sum()


def _leading(graph: Graph, sources: tuple[Tensor, ...]) -> set[int]:
    """Indices of the nodes that depend on a source; all others are constant."""
    found = {graph.index[node] for source in sources if (node := node_of(source)) in graph.index}
    for number, edges in enumerate(graph.operands):
        if any(edge is not None and edge.node in found for edge in edges):
            found.add(number)
    return found


class Flow:
    """Records relevance along the edges between functions in one backward pass, by hooks.

    Args:
        passed: A pass that has kept its values, with its rules on the graph.
        sources: Tensors that relevance is attributed to.
        explained: The explained values ``[B]``, the root of the graph.
    """

    def __init__(self, passed: TracedPass, sources: tuple[Tensor, ...], explained: Tensor) -> None:
        graph, structure, watch = passed.graph, passed.structure, passed.watch
        assert graph is not None and structure is not None  # noqa: S101, PT018
        assert watch is not None and watch.origins is not None  # noqa: S101, PT018
        self._passed = passed
        self._graph = graph
        self._explained = explained.detach()
        self._values = dict(watch.values)
        for source in sources:
            self._values[node_of(source), source.output_nr] = source.detach()  # type: ignore[index]
        # A leaf is a group of its own, whichever function used it first.
        self._group = [
            watch.calls[node].number if node in watch.calls and any(edges) else -1 - number
            for number, (node, edges) in enumerate(zip(graph.nodes, graph.operands, strict=True))
        ]
        self._sharing = self._share(graph)
        self._places = Places(passed, _leading(graph, sources))
        self._alive = structure.plans[passed.recipe].alive
        self._members: dict[int, list[int]] = {}
        self._constants: dict[int, list[Added]] = {}  # of each group
        self._told: set[int] = set()  # groups whose constants all have known values
        self._order: dict[Place, int] = {}  # by the calls that lines belong to
        self._sure: set[Place] = set()  # lines of constants with known values
        # Amounts shared over processes are kept apart from amounts that each process has whole.
        self._leaks: dict[tuple[int, Any], Tensor] = {}
        self._lines: dict[tuple[Place, Any], Tensor] = {}
        self._masks: list[tuple[int, Masked, Tensor]] = []
        self._rows: list[dict[Place, Tensor]] = []
        for node, masked in watch.origins.masked.items():
            if graph.index.get(node) in self._alive:
                self._hook(node, partial(self._masked, graph.index[node], masked))
        self._watch_constants(watch, self._watch_edges())

    def _share(self, graph: Graph) -> list[Any]:
        """For each node the processes that share its relevance."""
        found: list[Any] = []
        for number, (node, edges) in enumerate(zip(graph.nodes, graph.operands, strict=True)):
            name, operands = graph.names[number], [edge for edge in edges if edge is not None]
            shares = [found[edge.node] for edge in operands]
            found.append(sharing(name, node, next((each for each in shares if each), None)))
            if name in COLLECTIVES and operands:  # not a watched function
                first = operands[0]
                if name == "_AllReduceForward":  # works in place
                    self._group[number] = self._group[first.node]
                value = self._values.get((graph.nodes[first.node], first.output))
                if name == "_AllReduceBackward" and value is not None:
                    self._values.setdefault((node, 0), value)
        return found

    def _watch_edges(self) -> dict[int, set[int]]:
        """Hook all nodes; returns, for each group, its nodes that other groups use."""
        taken: dict[int, set[int]] = {}
        for number in self._alive:
            group = self._group[number]
            self._members.setdefault(group, []).append(number)
            self._hook(self._graph.nodes[number], partial(self._flowed, number))
            for edge in self._graph.operands[number]:
                if edge is not None and self._group[edge.node] != group:
                    taken.setdefault(self._group[edge.node], set()).add(edge.node)
        return taken

    def _watch_constants(self, watch: Watch, taken: dict[int, set[int]]) -> None:
        assert watch.origins is not None  # noqa: S101 - it has kept its values
        for node, constants in watch.origins.added.items():
            if node not in watch.calls:
                continue
            group, number = watch.calls[node].number, self._graph.index.get(node, -1)
            self._constants.setdefault(group, []).extend(constants)
            # An overwritten tensor may have been used before, and has two gradients then.
            whole = taken.get(group, set()) <= {number}
            if whole and not constants:
                self._told.add(group)
            for constant in constants:
                place = self._places.of_constant(number, constant)
                if place is not None and constant.value is not None:
                    self._sure.add(place)
                    self._order.setdefault(place, group)
                    if whole and number in self._alive:
                        self._told.add(group)
                        self._hook(node, partial(self._added, number, place, constant.value))

    def _hook(self, node: Node, hook: Callable[[Gradients, Gradients], None]) -> None:
        self._passed.handles.append(node.register_hook(hook))

    # In the backward pass ------------------------------------------------------------------------

    def start(self, row: int) -> None:
        """Start the backward pass of one explained value, the relevance of its root."""
        (root,) = self._graph.roots
        self._leaks, self._lines, self._masks = {}, {}, []
        self._leak(root, wide(self._explained)[row], None)

    def _leak(self, number: int, amount: Tensor, shared: Any) -> None:
        key = self._group[number], shared
        self._leaks[key] = self._leaks.get(key, torch.zeros_like(amount)) + amount

    def _add(self, number: int, place: Place, amount: Tensor, shared: Any) -> None:
        """Move an amount from a function's leak to a line."""
        self._leak(number, -amount, shared)
        key = place, shared
        self._lines[key] = self._lines.get(key, torch.zeros_like(amount)) + amount

    def _product(self, number: int, gradient: Tensor, value: Tensor) -> tuple[Tensor, Any]:
        """Relevance of a value at a node, and the processes that share it."""
        if not (is_spread(gradient) or is_spread(value)):
            return _relevance(gradient, value), self._sharing[number]
        return _relevance(local(gradient), local(value)), sharing_of(gradient, value)

    def _flowed(self, number: int, given: Gradients, _taken: Gradients) -> None:
        for edge, gradient in zip(self._graph.operands[number], given, strict=True):
            if edge is None or gradient is None or self._group[edge.node] == self._group[number]:
                continue
            value = self._values.get((self._graph.nodes[edge.node], edge.output))
            if value is not None:
                amount, shared = self._product(edge.node, gradient.detach(), value)
                self._leak(number, -amount, shared)
                self._leak(edge.node, amount, shared)

    def _added(
        self, number: int, place: Place, value: Tensor, _given: Gradients, taken: Gradients
    ) -> None:
        if taken[0] is not None:
            gradient, own = taken[0].detach(), local(value)
            summed = wide(local(gradient)).sum_to_size(own.shape)
            shared = sharing_of(gradient) if is_spread(gradient) else self._sharing[number]
            self._add(number, place, _relevance(summed, own.to(summed.device)), shared)

    def _masked(self, number: int, masked: Masked, _given: Gradients, taken: Gradients) -> None:
        if taken[0] is not None:  # no backward pass inside of a hook: done at the end
            self._masks.append((number, masked, taken[0].detach()))

    # After the backward pass ---------------------------------------------------------------------

    def stop(self) -> None:
        """Settle the lines of one backward pass."""
        for number, masked, gradient in self._masks:
            self._settle(number, masked, gradient)
        leaks: dict[int, list[Any]] = {}
        for group, shared in self._leaks:
            leaks.setdefault(group, []).append(shared)
        for group, members in self._members.items():
            # A leaf keeps its relevance, which is no leak.
            if group in leaks and any(any(self._graph.operands[each]) for each in members):
                constants, told = self._constants.get(group, ()), group in self._told
                place = self._places.of_rest(members, constants, told=told)
                if place is not None:
                    self._order.setdefault(place, group)
                    for shared in leaks[group]:
                        self._add(members[0], place, self._leaks[group, shared], shared)
        self._rows.append(self._summed())

    def _summed(self) -> dict[Place, Tensor]:
        """Lines summed over all processes."""
        by_group: dict[Any, dict[Place, Tensor]] = {}
        for (place, shared), amount in self._lines.items():
            by_group.setdefault(shared, {})[place] = amount
        found = by_group.pop(None, {})
        for shared, own in by_group.items():
            for lines in gathered({place: each.cpu() for place, each in own.items()}, shared):
                for place, amount in lines.items():
                    before = found.get(place)
                    found[place] = amount if before is None else before + amount.to(before)
        return found

    def _settle(self, number: int, masked: Masked, gradient: Tensor) -> None:
        """Move the share of a finite mask from the leak of its attention to a line."""
        found = self._places.of_mask(number, of_values=masked.of_values)
        if found is None:
            return
        place, share = found
        with torch.enable_grad():
            mask = masked.mask.requires_grad_()
            (of_mask,) = torch.autograd.grad(masked.attention(mask), mask, gradient)
        self._order.setdefault(place, self._group[number])
        amount, shared = self._product(number, of_mask, mask.detach())
        self._add(number, place, share * amount, shared)

    def lines(self) -> dict[Place, Tensor]:
        """Amounts ``[B]`` of all lines except the sources', in the order of the calls."""
        nothing = wide(self._explained.new_zeros(()))
        amounts = {
            place: torch.stack([row.get(place, nothing) for row in self._rows])
            for place in sorted(self._order, key=self._order.__getitem__)
        }
        largest = torch.stack([*amounts.values(), wide(self._explained)]).abs().amax(0)
        return {
            place: each
            for place, each in amounts.items()
            if place in self._sure or bool((each.abs() > self._rounding(place) * largest).any())
        }

    def _rounding(self, place: Place) -> float:
        """Share of the largest amount below which a line of leaks counts as rounding."""
        if place[0] == "output":  # the square root separates a non-linear part from its rounding
            return math.sqrt(torch.finfo(self._explained.dtype).eps)
        summed = torch.finfo(wide(self._explained).dtype).eps
        return -1.0 if place[0] in ("softmax", "rule", "absorbed") else _MANY * summed
