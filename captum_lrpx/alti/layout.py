"""Streams, attentions and other branches of a model, found in the graph of one forward pass.

A *branch* is whatever is added to a residual stream: an attention, if its tokens are mixed by a
softmax and everything after that is linear; else an operation on each position separately (an
MLP, experts). Names of modules play no role.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from captum_lrpx.alti.streams import KEEPING, Stream, Streams, paths
from captum_lrpx.parallel import COLLECTIVES
from captum_lrpx.trace.graph import Edge
from captum_lrpx.trace.operations import ADDITIONS, PROJECTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Branch:
    """A summand of a residual stream.

    Attributes:
        operand: The summand.
        addition: The node of the addition.
        stream: The stream, by its place among the inputs.
        constant: Whether it does not depend on the inputs (an attention to constant states).
    """

    operand: Edge
    addition: int
    stream: int
    constant: bool = False


@dataclass(frozen=True, kw_only=True)
class Attention(Branch):
    """An attention whose result is added to a stream.

    Regions are nodes, operands last.

    Attributes:
        leaf: The attention's own part of the operand, without MLPs beside it.
        mixing: The node that mixes tokens.
        region: Nodes between it and the operand.
        before: The part of the region before the output projection.
        projection: The output projection; none if there are no weights in the region.
        found: Input of the projection.
        projected: Its result.
        after: The part of the region after it.
        value: The mixed values.
        value_region: Nodes between the values and the stream that they are read from, norms
            included.
        residual: The tensor of the stream that the block adds to.
        source: The stream that the values are read from.
        entries: Edges at which the values leave that stream.
        norms: Nodes of the norm after the addition, before the stream is read again.
    """

    leaf: Edge
    mixing: int
    region: tuple[int, ...]
    before: tuple[int, ...]
    projection: tuple[int, ...]
    found: Edge
    projected: Edge
    after: tuple[int, ...]
    value: Edge
    value_region: tuple[int, ...] = ()
    residual: Edge
    source: int
    entries: tuple[Edge, ...]
    norms: tuple[int, ...]

    @property
    def end(self) -> Edge:
        """The stream after the addition, and its norm if there is one."""
        return Edge((*self.norms, self.addition)[0], 0)


@dataclass(frozen=True)
class Layout:
    """Streams, attentions and branches of a graph.

    Attributes:
        streams: The streams by the places of their inputs.
        attentions: Attentions, each after everything that it reads from.
        positional: Branches that treat positions separately, and constant ones.
        kept: Nodes of the streams.
        order: All nodes that the explained values depend on along streams, heads and attentions,
            operands last.
    """

    streams: dict[int, Stream]
    attentions: list[Attention]
    positional: list[Branch]
    kept: frozenset[int]
    order: tuple[int, ...]


class LayoutReader(Streams):
    """Finds streams, attentions and other branches; arguments as of :class:`Streams`."""

    def read(self, sources: Sequence[int | None]) -> Layout:
        """Find everything.

        Args:
            sources: For each input the node of its embeddings, None if nothing depends on it.

        Raises:
            ValueError: If the model does not have this form.
        """
        if not self.mixing:
            raise ValueError(
                "The attention weights of this model are not available: nothing in it mixes tokens "
                "by a softmax or scaled_dot_product_attention. ALTI-Logit does not cover recurrent "
                "mixers and attention without a softmax; if a kernel hides the attention, load the "
                'model with attn_implementation="sdpa" or "eager".'
            )
        for place, source in enumerate(sources):
            if source is not None and source in self.live:
                self.streams[place] = Stream(Edge(source, 0), self._start(source))
                self.starts[self.streams[place].start.node] = 1 << place
        if len(self.starts) < len(self.streams):
            raise ValueError(
                "Two of the inputs are parts of one sequence: ALTI-Logit needs one input for each "
                "residual stream. Give the embeddings of the whole sequence."
            )
        self._follow_streams()
        self._walk(self.graph.roots)
        self._branches()
        self._check_states()
        attentions = [
            replace(each, value_region=paths(self.live, self.chain, each.value)[1])
            for each in self.attentions
        ]
        order = self.head.union(self.chain, *(each.region for each in attentions))
        return Layout(
            streams=self.streams,
            attentions=sorted(attentions, key=lambda each: each.addition),
            positional=sorted(self.positional, key=lambda each: each.addition),
            kept=frozenset(self.chain),
            order=tuple(sorted(order, reverse=True)),
        )

    # Branches ---------------------------------------------------------------------------------

    def _branches(self) -> None:
        """Read all branches; the stream that an attention reads from is followed too."""
        self.attentions: list[Attention] = []
        self.positional: list[Branch] = []
        self.mixes: set[int] = set()  # nodes of branches that depend on a mixing of tokens
        for number in self.alive:
            mixes = number in self.mixing or any(e.node in self.mixes for e in self.live[number])
            if mixes and number not in self.of_streams:
                self.mixes.add(number)
        done: set[int] = set()
        while set(self.chain) - done:
            number = max(set(self.chain) - done)
            done.add(number)
            for edge in self.chain[number]:
                self._branch(number, edge)

    def _branch(self, addition: int, operand: Edge) -> None:
        stream = self._stream_of(addition)
        if operand.node not in self.mixes:
            self.positional.append(Branch(operand, addition, stream))
            return
        leaf, region, mixings = self._region(addition, stream, operand)
        if len(mixings) != 1:
            self._refuse(operand.node, "adds the sum of several attentions")
        (mixing,) = mixings
        if not self.live[mixing]:
            self.positional.append(Branch(operand, addition, stream, constant=True))
            return
        (value,) = self.live[mixing]
        entries, inside = paths(self.live, self.of_streams, value)
        if self.mixing.intersection(inside):
            self._refuse(mixing, "reads values from another mixing of tokens")
        source = self._source(entries, mixing)
        begin, end = self._projection(mixing, operand, region)
        self.attentions.append(
            Attention(
                operand,
                addition,
                stream,
                leaf=leaf,
                mixing=mixing,
                region=region,
                before=tuple(each for each in region if each <= begin.node),
                projection=tuple(each for each in region if begin.node < each <= end.node),
                found=begin,
                projected=end,
                after=tuple(each for each in region if each > end.node),
                value=value,
                residual=self._residual(addition, stream, source, entries),
                source=source,
                entries=entries,
                norms=self._norms(addition),
            )
        )

    def _region(
        self, addition: int, stream: int, operand: Edge
    ) -> tuple[Edge, tuple[int, ...], set[int]]:
        """Nodes between a branch's result and the mixing of tokens, which must be linear."""
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
            if self.roles[number].role not in KEEPING:
                self._refuse(number, "is not linear in what an attention found")
            region.add(number)
            for edge in self.live[number]:
                if edge.node in self.mixes:
                    stack.append(edge.node)
                elif self.graph.names[number] in ADDITIONS:
                    self.positional.append(Branch(edge, addition, stream))
                    (leaf,) = [each for each in self.live[number] if each.node in self.mixes]
                else:
                    self._refuse(number, "joins something to what an attention found")
        return leaf, tuple(sorted(region, reverse=True)), mixings

    def _projection(self, mixing: int, operand: Edge, region: tuple[int, ...]) -> tuple[Edge, Edge]:
        """The narrowest ends of the output projection that all paths through a region pass."""
        matrices = [n for n in region if self.graph.names[n] in PROJECTIONS | COLLECTIVES]
        if not matrices:
            return operand, operand
        begin, end = mixing, matrices[0]
        for number, alone in self._passages(mixing, region[::-1]):
            if alone and number < matrices[-1]:
                begin = number
            if alone and number >= matrices[0]:
                end = number
                break
        return Edge(begin, 0), Edge(end, 0)

    def _source(self, entries: tuple[Edge, ...], mixing: int) -> int:
        """The stream that values are read from."""
        bits = 0
        for edge in entries:
            bits |= self.of_streams[edge.node]
        if bits & (bits - 1) or not bits:
            self._refuse(mixing, "reads values from several residual streams, or from none")
        self._walk(edge.node for edge in entries if not self._anchors(edge.node))
        return bits.bit_length() - 1

    def _residual(self, addition: int, stream: int, source: int, entries: tuple[Edge, ...]) -> Edge:
        """The tensor that an attention is added to, without MLPs in parallel."""
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

    # States -----------------------------------------------------------------------------------

    def _check_states(self) -> None:
        """Require that every attention reads its stream right after the previous attention."""
        by_addition: dict[int, Attention] = {}
        for each in self.attentions:
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
