"""The parts of a model that ALTI-Logit speaks of, found in the graph of one forward pass.

A *stream* begins where the last tensor lies that everything passes which is computed from an input
before tokens are mixed (the embedding, after its norm where it has one), and goes on by what leaves
it what it is: additions, norms, views, constant factors. What else is added to it is a *branch*: an
attention, if tokens are mixed in it by a softmax and all that follows is linear; else something
that works on each position for itself (an MLP, experts). Nothing here looks at names of modules.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NoReturn

from captum_lrpx.trace.graph import Edge
from captum_lrpx.trace.operations import ADDITIONS, STREAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from captum_lrpx.graph_rules import Plan
    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.trace.roles import Roles

__all__ = ["Attention", "Branch", "Layout", "Stream", "layout_of"]

_NONE: Final = Edge(-1, 0)
_KEEPING: Final = frozenset({"linear", "norm", "constant factor"})
"""Roles of operations that are linear with what is held constant."""


@dataclass(frozen=True)
class Branch:
    """Something that is added to a stream.

    Attributes:
        operand: What is added.
        addition: The node that adds it.
        stream: The stream, by its place among the inputs.
        constant: Whether it does not depend on the inputs (an attention to constant states).
    """

    operand: Edge
    addition: int
    stream: int
    constant: bool = False


@dataclass(frozen=True)
class Attention(Branch):
    """An attention whose result is added to a stream.

    Attributes:
        leaf: What of the operand comes from the attention alone, without MLPs beside it.
        mixing: The node that mixes tokens.
        region: Nodes between it and the operand, operands last.
        value: The values that are mixed.
        value_region: Nodes between them and the stream that they are read from, norms among them,
            operands last.
        residual: What of the stream the block adds to.
        source: The stream that the values are read from.
        entries: Where the values leave that stream.
        norms: Nodes of the norm after the addition, before the stream is read again; operands last.
    """

    leaf: Edge = _NONE
    mixing: int = -1
    region: tuple[int, ...] = ()
    value: Edge = _NONE
    value_region: tuple[int, ...] = ()
    residual: Edge = _NONE
    source: int = 0
    entries: tuple[Edge, ...] = ()
    norms: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stream:
    """A residual stream.

    Attributes:
        source: The embeddings of its input.
        start: Its first tensor.
    """

    source: Edge
    start: Edge


@dataclass
class Layout:
    """What a graph is made of.

    Attributes:
        streams: The streams by the places of their inputs.
        attentions: In an order in which each comes after all that it reads from.
        positional: Branches that work on each position for itself, and constant ones.
        kept: Nodes of the streams.
        order: All nodes that the explained values depend on along streams, heads and attentions,
            operands last.
    """

    streams: dict[int, Stream]
    attentions: list[Attention] = field(default_factory=list)
    positional: list[Branch] = field(default_factory=list)
    kept: frozenset[int] = frozenset()
    order: tuple[int, ...] = ()


def layout_of(
    graph: Graph,
    roles: Roles,
    plan: Plan,
    sources: Iterable[int | None],
    where: Callable[[int], str],
) -> Layout:
    """Find streams, attentions and other branches.

    Args:
        graph: The graph of the explained values.
        roles: The roles of its nodes.
        plan: The rules of LRP, which hold weights of attention, gates and scales constant.
        sources: For each input the node of its embeddings, None for one that nothing depends on.
        where: Describes the place of a node.

    Returns:
        The layout.

    Raises:
        ValueError: If the model is not made of such parts.
    """
    return _Reader(graph, roles, plan, where).read(list(sources))


class _Reader:
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
        for number, edges in enumerate(graph.operands):
            for edge in edges:
                if edge is not None:
                    self.all_users[edge.node].add(number)
        self.streams: dict[int, Stream] = {}
        self.of_streams: dict[int, int] = {}  # node -> the streams that it keeps, one bit for each
        self.chain: dict[int, list[Edge]] = {}  # node of a stream -> what is added there
        self.head: set[int] = set()

    def read(self, sources: list[int | None]) -> Layout:
        if not self.mixing:
            raise ValueError(
                "The attention weights of this model cannot be had: nothing in it mixes tokens by "
                "a softmax or scaled_dot_product_attention. ALTI-Logit does not cover recurrent "
                "mixers; if a kernel hides the attention, load the model with "
                'attn_implementation="sdpa" or "eager".'
            )
        for place, source in enumerate(sources):
            if source is not None and source in self.live:
                self.streams[place] = Stream(Edge(source, 0), self._start(source))
        starts = [stream.start for stream in self.streams.values()]
        if len(set(starts)) < len(starts):
            raise ValueError(
                "Two of the inputs are parts of one sequence: ALTI-Logit needs one input for each "
                "residual stream. Give the embeddings of the whole sequence."
            )
        self._follow_streams()
        self._walk(self.graph.roots)
        self._mixes()
        layout = Layout(self.streams)
        self._branches(layout)
        self._check_states(layout)
        layout.kept = frozenset(self.chain)
        layout.attentions = [
            replace(each, value_region=self._until_chain(each)) for each in layout.attentions
        ]
        layout.attentions.sort(key=lambda each: each.addition)
        layout.positional.sort(key=lambda each: each.addition)
        order = self.head | set(self.chain)
        order.update(*(each.region for each in layout.attentions))
        layout.order = tuple(sorted(order, reverse=True))
        return layout

    # Streams ----------------------------------------------------------------------------------

    def _start(self, source: int) -> Edge:
        """The last node before any mixing that all paths from a source pass."""
        mixed, passed = set(self.mixing), {source}
        open_edges, start = 0, source
        for number in self.alive:
            if number < source:
                continue
            into = sum(edge.node in passed for edge in self.live[number])
            if number != source and not into:
                continue
            if number in self.mixing or any(edge.node in mixed for edge in self.live[number]):
                mixed.add(number)
            passed.add(number)
            open_edges -= into
            if not open_edges and number not in mixed:
                start = number
            open_edges += self._uses(number)
        return Edge(start, 0)

    def _uses(self, number: int) -> int:
        """How often the result of a node is used; that of a root once more."""
        times = sum(edge.node == number for user in self.users[number] for edge in self.live[user])
        return times + (number in self.graph.roots)

    def _follow_streams(self) -> None:
        bits = {stream.start.node: 1 << place for place, stream in self.streams.items()}
        for number in self.alive:
            kept = bits.get(number, 0)
            if not kept and self._keeps(number):
                for edge in self.live[number]:
                    kept |= self.of_streams.get(edge.node, 0)
            if kept:
                self.of_streams[number] = kept

    def _keeps(self, number: int) -> bool:
        return self.graph.names[number] in STREAM and self.roles[number].role in _KEEPING

    def _is_start(self, number: int) -> bool:
        return any(stream.start.node == number for stream in self.streams.values())

    def _walk(self, ends: Iterable[int]) -> None:
        """Follow streams from where they are read, and what reads them, back to their starts."""
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
            if self._is_start(number):
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

    # Branches ---------------------------------------------------------------------------------

    def _mixes(self) -> None:
        """Which nodes of branches have a mixing of tokens in them."""
        self.mixes: set[int] = set()
        for number in self.alive:
            if number in self.of_streams:
                continue
            if number in self.mixing or any(edge.node in self.mixes for edge in self.live[number]):
                self.mixes.add(number)

    def _branches(self, layout: Layout) -> None:
        """Read all branches of the streams; what an attention reads from is one more stream."""
        done: set[int] = set()
        while set(self.chain) - done:
            number = max(set(self.chain) - done)
            done.add(number)
            for edge in self.chain[number]:
                self._branch(layout, number, edge)

    def _branch(self, layout: Layout, addition: int, operand: Edge) -> None:
        stream = self._stream_of(addition)
        if operand.node not in self.mixes:
            layout.positional.append(Branch(operand, addition, stream))
            return
        leaf, region, mixings = self._region(layout, addition, stream, operand)
        if len(mixings) != 1:
            self._refuse(operand.node, "adds the sum of several attentions")
        (mixing,) = mixings
        if not self.live[mixing]:
            layout.positional.append(Branch(operand, addition, stream, constant=True))
            return
        (value,) = self.live[mixing]
        entries = self._until_stream(mixing, value)
        source = self._source(entries, mixing)
        layout.attentions.append(
            Attention(
                operand,
                addition,
                stream,
                leaf=leaf,
                mixing=mixing,
                region=region,
                value=value,
                residual=self._residual(addition, stream, source, entries),
                source=source,
                entries=entries,
                norms=self._norms(addition),
            )
        )

    def _region(
        self, layout: Layout, addition: int, stream: int, operand: Edge
    ) -> tuple[Edge, tuple[int, ...], set[int]]:
        """What lies between a branch's result and the mixing of tokens, which must be linear."""
        mixings: set[int] = set()
        region: set[int] = set()
        leaf = operand
        stack = [operand.node]
        while stack:
            number = stack.pop()
            if number in region or number in mixings:
                continue
            if number in self.mixing:
                mixings.add(number)
                continue
            if self.roles[number].role not in _KEEPING:
                self._refuse(number, "is not linear in what an attention found")
            region.add(number)
            for edge in self.live[number]:
                if edge.node in self.mixes:
                    stack.append(edge.node)
                elif self.graph.names[number] in ADDITIONS:
                    layout.positional.append(Branch(edge, addition, stream))
                    (leaf,) = [each for each in self.live[number] if each.node in self.mixes]
                else:
                    self._refuse(number, "joins something to what an attention found")
        return leaf, tuple(sorted(region, reverse=True)), mixings

    def _until_stream(self, mixing: int, value: Edge) -> tuple[Edge, ...]:
        """Where values leave a stream."""
        inside: set[int] = set()
        entries: dict[Edge, None] = {}
        stack = [value]
        while stack:
            edge = stack.pop()
            number = edge.node
            if number in self.of_streams:
                entries[edge] = None
            elif number not in inside:
                if number in self.mixing:
                    self._refuse(mixing, "reads values from another mixing of tokens")
                inside.add(number)
                stack += self.live[number]
        return tuple(entries)

    def _until_chain(self, attention: Attention) -> tuple[int, ...]:
        """What lies between values and the stream that they are read from."""
        inside, stack = set(), [attention.value.node]
        while stack:
            number = stack.pop()
            if number not in inside and number not in self.chain:
                inside.add(number)
                stack += [edge.node for edge in self.live[number]]
        return tuple(sorted(inside, reverse=True))

    def _source(self, entries: tuple[Edge, ...], mixing: int) -> int:
        """The stream that values are read from."""
        bits = 0
        for edge in entries:
            bits |= self.of_streams[edge.node]
        if bits & (bits - 1) or not bits:
            self._refuse(mixing, "reads values from several residual streams, or from none")
        self._walk(edge.node for edge in entries if not self._anchors(edge.node))
        return bits.bit_length() - 1

    def _anchors(self, number: int) -> set[int]:
        """The nodes of a known stream that a norm before a branch reads."""
        found, stack = set(), [number]
        while stack:
            each = stack.pop()
            if each in self.chain:
                found.add(each)
            elif not self._is_start(each) and each in self.of_streams:
                stack += [edge.node for edge in self.live[each]]
        return found

    def _stream_of(self, number: int) -> int:
        bits = self.of_streams[number]
        if bits & (bits - 1):
            self._refuse(number, "joins several residual streams")
        return bits.bit_length() - 1

    def _residual(self, addition: int, stream: int, source: int, entries: tuple[Edge, ...]) -> Edge:
        """What an attention is added to, without MLPs that stand beside it."""
        (operand, *others) = [edge for edge in self.live[addition] if edge.node in self.of_streams]
        if others:
            self._refuse(addition, "joins several residual streams")
        if stream != source:
            return operand
        read = {anchor for edge in entries for anchor in self._anchors(edge.node)}
        edge, beside = operand, False
        while edge.node not in read and len(kept := self._kept(edge.node)) == 1:
            beside |= bool(self.chain.get(edge.node))
            edge = kept[0]
        return edge if beside and edge.node in read else operand

    def _kept(self, number: int) -> list[Edge]:
        if self._is_start(number):
            return []
        return [edge for edge in self.live[number] if edge.node in self.of_streams]

    def _norms(self, addition: int) -> tuple[int, ...]:
        """The nodes from an addition to where its stream is read twice, if a norm lies there."""
        inside, open_edges, last = {addition}, self._uses(addition), addition
        if self._forks(addition):
            return ()
        for number in self.alive[self.alive.index(addition) + 1 :]:
            into = sum(edge.node in inside for edge in self.live[number])
            if not into:
                continue
            if self.chain.get(number, [_NONE]) or number in self.graph.roots:
                return ()
            inside.add(number)
            open_edges -= into
            if not open_edges and self._forks(number):
                last = number
                break
            open_edges += self._uses(number)
        if last == addition:
            return ()
        return tuple(sorted(inside - {addition}, reverse=True))

    def _forks(self, number: int) -> bool:
        """Whether a stream is read there by a branch, or by what adds a branch."""
        users = self.all_users[number]
        return len(users) > 1 and any(self._leads_on(user) for user in users)

    def _leads_on(self, number: int) -> bool:
        """Whether a node is part of a branch, or adds one; what computes a scale is neither."""
        done, stack = set(), [number]
        while stack:
            each = stack.pop()
            if each in self.mixing or self.chain.get(each):
                return True
            if each not in self.chain and each not in done:
                done.add(each)
                stack += self.all_users[each]
        return False

    # States -----------------------------------------------------------------------------------

    def _check_states(self, layout: Layout) -> None:
        """Every attention must read its stream as the attention before left it."""
        by_addition: dict[int, Attention] = {}
        for each in layout.attentions:
            if each.addition in by_addition:
                self._refuse(each.addition, "adds two attentions at once")
            by_addition[each.addition] = each
        states: dict[int, int] = {}
        last: dict[int, int] = {}
        reads: list[tuple[Attention, int]] = []
        for number in sorted(self.chain):
            before = {states[edge.node] for edge in self._kept(number) if edge.node in states}
            if len(before) > 1:
                self._refuse(
                    number, "adds a residual stream to itself as it was before an attention"
                )
            states[number] = before.pop() if before else -1
            attention = by_addition.get(number)
            if attention is not None:
                reads.append((attention, states[number]))
                states[number] = number
            last[self._stream_of(number)] = states[number]
        for attention, state in reads:
            expected = state if attention.source == attention.stream else last[attention.source]
            read = {
                states[anchor] for edge in attention.entries for anchor in self._anchors(edge.node)
            }
            if read != {expected}:
                self._refuse(
                    attention.mixing, "reads values from a residual stream as it was elsewhere"
                )

    def _refuse(self, number: int, what: str) -> NoReturn:
        raise ValueError(
            f"{self.where(number)} {what}, which ALTI-Logit does not cover. It explains models in "
            "which attentions by softmax and branches that work on each position for itself are "
            "added to one residual stream: use LRPx or AttnLRPx for this one."
        )
