"""Residual streams in the graph of a forward pass, and the branches added to them.

A *stream* starts at the last tensor that all paths from an input pass before tokens are mixed
(the embedding, after its norm if there is one), and continues through operations that
preserve it: additions, norms, views, constant factors.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from captum_lrpx.trace.graph import Edge
from captum_lrpx.trace.operations import ADDITIONS, STREAM

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from captum_lrpx.graph_rules import Plan
    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.trace.roles import Roles

KEEPING: Final = frozenset({"linear", "norm", "constant factor", "router"})
"""Roles of operations that are linear, given the operands held constant."""


@dataclass(frozen=True)
class Stream:
    """A residual stream.

    Attributes:
        source: The embeddings of its input.
        start: Its first tensor.
    """

    source: Edge
    start: Edge


def paths(
    operands: Mapping[int, list[Edge]] | list[tuple[Edge | None, ...]],
    ends: Collection[int],
    edge: Edge,
) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    """Follow a tensor back to some nodes.

    Args:
        operands: The operands of each node.
        ends: The nodes.
        edge: The tensor.

    Returns:
        The results of these nodes that it is computed from, and the nodes between, operands last.
    """
    entries: dict[Edge, None] = {}
    between: set[int] = set()
    stack = [edge]
    while stack:
        each = stack.pop()
        if each.node in ends:
            entries[each] = None
        elif each.node not in between:
            between.add(each.node)
            stack += [operand for operand in operands[each.node] if operand is not None]
    return tuple(entries), tuple(sorted(between, reverse=True))


class Streams:
    """The streams of a graph.

    Args:
        graph: The graph of the explained values.
        roles: The roles of its nodes.
        plan: The rules of LRP, which hold weights of attention, gates and scales constant.
        where: Describes the place of a node.

    Attributes:
        live: For each node that the values depend on, the operands that are not held constant.
        mixing: Nodes that mix tokens by a softmax.
        streams: The streams by the places of their inputs.
        of_streams: For each node on streams, which ones, as bits.
        chain: For each node between the ends and the starts of streams, the operands added there.
        head: The nodes between the values and the ends of streams.
    """

    def __init__(self, graph: Graph, roles: Roles, plan: Plan, where: Callable[[int], str]) -> None:
        self.graph, self.roles, self.where = graph, roles, where
        factors = {action.number: action.factors for action in plan.actions if action.factors}
        self.alive = sorted(plan.alive)
        self.live: dict[int, list[Edge]] = {
            number: [
                edge
                for place, edge in enumerate(graph.operands[number])
                if edge is not None
                and (number not in factors or factors[number][place] is not None)
            ]
            for number in self.alive
        }
        self.mixing = {n for n in self.alive if roles[n].role in ("kernel", "attention")}
        self.users: dict[int, set[int]] = defaultdict(set)
        for number in self.alive:
            for edge in self.live[number]:
                self.users[edge.node].add(number)
        self.all_users: dict[int, set[int]] = defaultdict(set)
        for number, operands in enumerate(graph.operands):
            for operand in operands:
                if operand is not None:
                    self.all_users[operand.node].add(number)
        self.streams: dict[int, Stream] = {}
        self.starts: dict[int, int] = {}  # node -> the stream that starts there, as a bit
        self.of_streams: dict[int, int] = {}  # node -> the streams that it preserves, as bits
        self.chain: dict[int, list[Edge]] = {}  # node of a stream -> operands added there
        self.head: set[int] = set()

    # Streams ----------------------------------------------------------------------------------

    def _start(self, source: int) -> Edge:
        """Last node before any mixing that all paths from a source pass."""
        mixed, start = set(self.mixing), source
        for number, alone in self._passages(source, self.alive):
            if number in mixed or any(edge.node in mixed for edge in self.live[number]):
                mixed.add(number)
            elif alone:
                start = number
        return Edge(start, 0)

    def _passages(self, source: int, numbers: Sequence[int]) -> Iterator[tuple[int, bool]]:
        """Nodes that depend on a source, and whether all paths from it pass them.

        Args:
            source: The source.
            numbers: Nodes to look at, operands first; others are left out of the paths.
        """
        members = set(numbers)
        inside, open_edges = {source}, self._uses(source, members)
        for number in numbers:
            into = sum(edge.node in inside for edge in self.live[number])
            if into:
                inside.add(number)
                open_edges -= into
                yield number, not open_edges
                open_edges += self._uses(number, members)

    def _uses(self, number: int, members: set[int]) -> int:
        """Number of uses of a node's result by some nodes; being a root counts as one."""
        users = self.users[number] & members
        times = sum(edge.node == number for user in users for edge in self.live[user])
        return times + (number in self.graph.roots)

    def _follow_streams(self) -> None:
        for number in self.alive:
            kept = self.starts.get(number, 0)
            if not kept and self._keeps(number):
                for edge in self.live[number]:
                    kept |= self.of_streams.get(edge.node, 0)
            if kept:
                self.of_streams[number] = kept

    def _keeps(self, number: int) -> bool:
        return self.graph.names[number] in STREAM and self.roles[number].role in KEEPING

    def _walk(self, ends: Iterable[int]) -> None:
        """Follow streams, and the nodes that read them, back to their starts."""
        stack = list(ends)
        while stack:
            number = stack.pop()
            if number in self.chain or number in self.head:
                continue
            if number not in self.of_streams:
                if number in self.mixing:
                    self._refuse(
                        number, "mixes tokens without adding the result to a residual stream"
                    )
                self.head.add(number)
                stack += [edge.node for edge in self.live[number]]
                continue
            self.chain[number] = []
            if number in self.starts:
                continue
            for edge in self.live[number]:
                if edge.node in self.of_streams:
                    stack.append(edge.node)
                elif self.graph.names[number] in ADDITIONS:
                    self.chain[number].append(edge)
                else:
                    self._refuse(
                        number, "joins a branch to the residual stream, but does not add it"
                    )

    # Paths along a stream -------------------------------------------------------------------

    def _anchors(self, number: int) -> set[int]:
        """Nodes of a known stream that the norm before a branch reads."""
        found, stack = set(), [number]
        while stack:
            each = stack.pop()
            if each in self.chain:
                found.add(each)
            elif each not in self.starts and each in self.of_streams:
                stack += [edge.node for edge in self.live[each]]
        return found

    def _stream_of(self, number: int) -> int:
        bits = self.of_streams[number]
        if bits & (bits - 1):
            self._refuse(number, "joins several residual streams")
        return bits.bit_length() - 1

    def _kept(self, number: int) -> list[Edge]:
        if number in self.starts:
            return []
        return [edge for edge in self.live[number] if edge.node in self.of_streams]

    def _norms(self, addition: int) -> tuple[int, ...]:
        """Nodes of the norm between an addition and the next fork of its stream, if any."""
        if self._forks(addition):
            return ()
        inside: list[int] = []
        for number, alone in self._passages(addition, self.alive[self.alive.index(addition) :]):
            if number not in self.chain or self.chain[number] or number in self.graph.roots:
                return ()
            inside.insert(0, number)
            if alone and self._forks(number):
                return tuple(inside)
        return ()

    def _forks(self, number: int) -> bool:
        """Whether a stream is read at a node by a branch, or by the addition of a branch."""
        users = self.all_users[number]
        return len(users) > 1 and any(self._leads_on(user) for user in users)

    def _leads_on(self, number: int) -> bool:
        """Whether a node is part of a branch or adds one, unlike nodes that compute a scale."""
        done, stack = set(), [number]
        while stack:
            each = stack.pop()
            if each in self.mixing or self.chain.get(each):
                return True
            if each not in self.chain and each not in done:
                done.add(each)
                stack += self.all_users[each]
        return False

    def _refuse(self, number: int, what: str) -> NoReturn:
        raise ValueError(
            f"{self.where(number)} {what}, which ALTI-Logit does not cover. It explains models in "
            "which attentions by softmax and branches that treat positions separately are "
            "added to one residual stream: use LRPx or AttnLRPx for this one."
        )
