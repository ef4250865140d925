"""Numbers of each attention of a forward pass: weights, values, linear maps.

The linear end of an attention, from the heads' outputs to the summand of the stream, is measured
instead of looked up: gradients of known numbers that are pulled through it show the place of each
head and position, and the factors of features and positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from captum_lrpx.alti.attention_weights import Mixed, Order, attention_of, wide
from captum_lrpx.alti.pull import tolerance
from captum_lrpx.alti.scaling import Scaling, measured, of_layer_norm, rank_one
from captum_lrpx.fast.unrecorded import tensor_of
from captum_lrpx.parallel import COLLECTIVES, local, split_of
from captum_lrpx.trace.graph import Edge
from captum_lrpx.trace.operations import ADDITIONS, VIEWS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from captum_lrpx.alti.attention_weights import AttentionWeights
    from captum_lrpx.alti.layout import Attention
    from captum_lrpx.alti.pull import Pull
    from captum_lrpx.alti.recording import Recording
    from captum_lrpx.fast.unrecorded import Places
    from captum_lrpx.parallel import Split
    from captum_lrpx.trace.graph import Graph


@dataclass(eq=False)
class Part:
    """One attention in numbers.

    Attributes:
        attention: Its place in the graph.
        weights: Attention weights.
        values: ``[B, G, S, z]``.
        places: Index of each among the mixing node's matrices of values ``[B, G]``; for the heads
            of this process, if they are sharded.
        order: Rows of the mixing node by example, head and position ``[B, H, T]``; for the heads of
            this process, if they are sharded.
        output_weight: Maps the output of each head to the stream ``[H, z, D]``, before ``scaled``.
        by_head: Factor of the output of each head ``[B, H, T]``, or None.
        scaled: The norm or factor between output projection and stream.
        norm: The norm after the addition.
        residual: The tensor that it is added to ``[B, T, D]``.
        resultant: The result, after the norm ``[B, T, D]``.
        split: Distribution of the heads over processes; None if each has them all.
    """

    attention: Attention
    weights: AttentionWeights
    values: Tensor
    places: Tensor
    order: Order
    output_weight: Tensor
    by_head: Tensor | None
    scaled: Scaling | None
    norm: Scaling | None
    residual: Tensor
    resultant: Tensor
    split: Split | None = None

    @property
    def rows(self) -> Tensor:
        """Row of each example, head and position in the mixing node's rows ``[B, H, T]``."""
        return self.order.rows

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.output_weight.shape[0]

    def found(self, gradient: Tensor) -> Tensor:
        """A gradient at the mixing node, by heads ``[B, H, T, z]``."""
        of_rows = self.order.of_rows(gradient)
        return of_rows if self.split is None else self.split.joined(of_rows, 1)

    def joined(self, split: Split) -> Part:
        """The attention with the heads of all processes.

        Norms act on the sum over heads, so each process needs them all.
        """
        by_head = None if self.by_head is None else split.joined(self.by_head, 1)
        return replace(
            self,
            weights=self.weights.joined(split),
            values=split.joined(self.values, 1),
            output_weight=split.joined(self.output_weight, 0),
            by_head=by_head,
            split=split,
        )


@dataclass(eq=False)
class Reader:
    """Reads the attentions of a pass in numbers.

    Attributes:
        graph: The graph of the pass.
        pull: Calls its nodes.
        recording: The recording of its forward pass.
        where: Describes the place of a node.
        path: Returns the path of the module of a node.
        dropout: Whether dropout may be active, which hides the scale of a stream.
        orders: Orders of heads and positions by mixing node, shared by passes of one structure.
        saved: Places of saved tensors of the streams, if these are read from the nodes.
    """

    graph: Graph
    pull: Pull
    recording: Recording
    where: Callable[[int], str]
    path: Callable[[int], str]
    dropout: bool
    orders: dict[int, Order]
    saved: Places | None = None
    _numbers: set[Edge] = field(init=False, default_factory=set)  # already checked for NaN

    # Values of tensors ------------------------------------------------------------------------

    def value(self, edge: Edge, batch: int, tokens: int) -> Tensor:
        """A tensor of a stream ``[B, T, D]``."""
        known = self.tensor(edge, self.saved)
        if known is None:
            self.refuse(edge.node, "is part of a residual stream in a way that is not seen")
        if edge not in self._numbers and known.sum().isnan() and known.isnan().any():
            raise ValueError(
                f"The residual stream is not finite at {self.where(edge.node)}. (With padding on "
                "the left, eager attention of some families gives NaN in float64: use sdpa, or "
                "float32.)"
            )
        self._numbers.add(edge)
        shape = tuple(known.shape)
        if shape[:-1] not in ((batch, tokens), (batch * tokens,)):
            self.refuse(
                edge.node,
                f"works on a residual stream of shape {list(shape)} where {batch} examples of "
                f"{tokens} tokens are explained",
            )
        return known.reshape(batch, tokens, shape[-1])

    def tensor(self, edge: Edge, saved: Places | None) -> Tensor | None:
        """A tensor, or one that it is a view of; None if it is not known.

        Args:
            edge: The tensor.
            saved: Places of saved tensors; None to look in the recording.
        """
        graph, place = self.graph, edge
        while True:
            if saved is None:
                known = self.recording.value(graph.nodes[place.node], place.output)
            else:
                known = tensor_of(graph, saved, place, self.pull.need)
            edges = graph.operands[place.node]
            if known is not None or graph.names[place.node] not in VIEWS or not any(edges[:1]):
                return known
            place = edges[0]  # type: ignore[assignment]

    # Attentions -------------------------------------------------------------------------------

    def part(self, attention: Attention, batch: int, tokens: int, sources: int) -> Part:
        """Read an attention.

        Args:
            attention: The attention.
            batch: Examples.
            tokens: Positions of the stream that it is added to.
            sources: Positions of the stream that it reads.
        """
        mixing = attention.mixing
        order, by_head, by_feature = self._order(attention, batch, tokens)
        weights, values, places = self._mixed(mixing, order, sources)
        weight = self._weight(attention, batch * tokens)
        weight = weight.to(torch.promote_types(weight.dtype, values.dtype))
        if by_feature is not None:
            weight = weight * by_feature.unsqueeze(1)
        heads, size = order.rows.shape[1], values.shape[-1]
        if weight.shape[0] != heads * size:
            self.refuse(mixing, "finds something of another width than it projects")
        residual, resultant = self._ends(attention, batch, tokens)
        norm = scaled = None
        if attention.norms:
            start = Edge(attention.addition, 0)
            norm = self._scaling(attention.norms, attention.end, start, batch, tokens)
        plain = self.graph.names[attention.addition] == "Add"
        if not plain or any(self.graph.names[each] not in VIEWS for each in attention.after):
            behind, end = (attention.addition, *attention.after), Edge(attention.addition, 0)
            scaled = self._scaling(behind, end, attention.projected, batch, tokens)
        part = Part(
            attention,
            weights,
            values,
            places,
            order,
            weight.view(heads, size, -1),
            by_head,
            scaled,
            norm,
            residual,
            resultant,
        )
        splits = (split_of(self.graph.nodes[each]) for each in attention.projection)
        split = next((each for each in splits if each is not None), None)
        return part if split is None else part.joined(split)

    def result(self, attention: Attention) -> Edge | None:
        """The stream after an attention and its norm; None if an MLP is added at the same time."""
        alone = attention.residual in self.graph.operands[attention.addition]
        alone = alone and attention.leaf == attention.operand
        return attention.end if attention.norms or alone else None

    def _ends(self, attention: Attention, batch: int, tokens: int) -> tuple[Tensor, Tensor]:
        """The stream before an attention, in the sign with which it is added to, and after it."""
        residual, sign = self.value(attention.residual, batch, tokens), 1
        if self.graph.names[attention.addition] == "Sub":
            sign = -1 if self.graph.operands[attention.addition][1] == attention.operand else 1
            residual = -residual if sign > 0 else residual
        end = self.result(attention)
        if end is not None:
            return residual, self.value(end, batch, tokens)
        return residual, residual + sign * self._added(attention, batch, tokens)

    def _added(self, attention: Attention, batch: int, tokens: int) -> Tensor:
        """Summand of an attention, without MLPs in parallel."""
        leaf = attention.leaf
        added = self.value(leaf, batch, tokens)
        beside = [each for each in attention.region if each > leaf.node]
        if all(self.graph.names[each] in VIEWS | ADDITIONS for each in beside):
            return added
        scaling = self._scaling(beside, attention.operand, leaf, batch, tokens)
        if scaling is None:
            return added
        centered = added - added.mean(-1, keepdim=True) if scaling.centered else added
        return centered * scaling.weight * scaling.scale

    def seed(self, edge: Edge) -> Tensor:
        """Zeros of the shape of a tensor, in float32 or wider."""
        form = self._metadata(edge)
        return wide(torch.zeros(tuple(form.shape), dtype=form.dtype, device=form.device))

    def _metadata(self, edge: Edge) -> Any:
        """Shape, dtype and device of a tensor."""
        node: Any = self.graph.nodes[edge.node]
        return node._input_metadata[edge.output]  # noqa: SLF001

    def _pulled(self, order: Sequence[int], end: Edge, gradient: Tensor, start: Edge) -> Tensor:
        if end == start:
            return gradient
        found = self.pull.back(order, {end: gradient}, (start,))
        return found[start]

    # Order of heads and positions -------------------------------------------------------------

    def _order(
        self, attention: Attention, batch: int, tokens: int
    ) -> tuple[Order, Tensor | None, Tensor | None]:
        """Order of heads and positions, factors by head and position, and factors by feature.

        It is kept for passes of the same lengths, unless there are factors, which belong to one.
        """
        known = self.orders.get(attention.mixing)
        if known is not None and known.lengths == (batch, tokens):
            return known, None, None
        found = self._measured_order(attention, batch, tokens)
        if found[1] is None and found[2] is None:
            self.orders[attention.mixing] = found[0]
        return found

    def _measured_order(
        self, attention: Attention, batch: int, tokens: int
    ) -> tuple[Order, Tensor | None, Tensor | None]:
        """The same, by gradients of known numbers."""
        before, at = attention.before, attention.found
        found, seed = Edge(attention.mixing, 0), self.seed(at)
        width = seed.shape[-1]
        if seed.numel() != batch * tokens * width:
            self.refuse(attention.mixing, "does not find something for each token")
        count = torch.arange(seed.numel(), device=seed.device).to(seed)
        index = self._pulled(before, at, count.view_as(seed), found)
        factor = None
        if any(self.graph.names[each] not in VIEWS for each in before):
            factor = self._pulled(before, at, torch.ones_like(seed), found)
            index = index / factor
        size = index.shape[-1]
        first, last = (index[..., each].flatten().round().long() for each in (0, -1))
        place, feature = first // width, first % width
        if width % size or (last - first != size - 1).any() or (feature % size).any():
            self.refuse(attention.mixing, "puts its heads into another order than one by one")
        if index.numel() != seed.numel() or int(first.min()) < 0 or int(last.max()) >= seed.numel():
            self.refuse(attention.mixing, "does not find one vector for each token and head")
        rows = torch.full((batch * tokens, width // size), -1, device=first.device)
        rows[place, feature // size] = torch.arange(len(first), device=first.device)
        rows = rows.view(batch, tokens, -1).transpose(1, 2)
        if factor is None:
            return Order(rows), None, None
        factor = factor.reshape(-1, size)[rows]  # [B, H, T, z]
        same = tolerance(self.graph, (*attention.region, attention.mixing))
        if torch.allclose(factor, factor[..., :1], rtol=same):
            return Order(rows), factor[..., 0], None
        by_feature = factor.transpose(1, 2).reshape(batch * tokens, width)
        apart = rank_one(by_feature, same)
        if apart is None:
            self.refuse(attention.mixing, "is followed by a gate for each feature and position")
        scale, weight = apart
        by_head = scale.view(batch, 1, tokens).expand(-1, rows.shape[1], -1)
        return Order(rows), by_head, weight

    # Weights and values -----------------------------------------------------------------------

    def _mixed(self, mixing: int, order: Order, sources: int) -> Mixed:
        name, values_of = self.graph.names[mixing], self.graph.operands[mixing][-1]
        try:
            found = attention_of(self.graph.nodes[mixing], name, order)
        except ValueError as error:
            self.refuse(mixing, str(error))
        if found is None:
            raise ValueError(
                f"The attention weights of {self.where(mixing)} are not available: {name} does not "
                'show what it computes. Load the model with attn_implementation="sdpa" or "eager".'
            )
        if found.values.shape[-2] != sources or (values_of is None and name in ("Bmm", "Mm")):
            self.refuse(mixing, "mixes something else than the tokens that are explained")
        return found._replace(values=wide(found.values))

    # Linear maps ------------------------------------------------------------------------------

    def _weight(self, attention: Attention, rows: int) -> Tensor:
        """Matrix of the output projection ``[H z, D]``."""
        begin, end, between = attention.found, attention.projected, attention.projection
        (*_, width), (*_, columns) = self._metadata(begin).shape, self._metadata(end).shape
        if not between:
            return torch.eye(width, device=self._metadata(begin).device)
        kept = VIEWS | COLLECTIVES
        *others, first = [each for each in between if self.graph.names[each] not in kept] or [0]
        self.pull.need(first)
        node: Any = self.graph.nodes[first]
        if not others and self.graph.names[first] in ("Mm", "Addmm"):
            factor = getattr(node, "_saved_alpha", 1)
            found = local(node._saved_mat2.detach())  # noqa: SLF001
            if found.shape == (width, columns):  # otherwise it is not the heads' part alone
                return wide(found if factor == 1 else found * factor)
        seed = self.seed(end)
        result = seed.new_zeros(columns, width)
        for start in range(0, columns, rows):
            count = min(rows, columns - start)
            unit = torch.zeros_like(seed)
            each = torch.arange(count, device=seed.device)
            unit.view(rows, columns)[each, start + each] = 1.0
            pulled = self._pulled(between, end, unit.to(self._metadata(end).dtype), begin)
            result[start : start + count] = pulled.reshape(rows, width)[:count]
        return result.t().contiguous()

    def _scaling(
        self, order: Sequence[int], end: Edge, start: Edge, batch: int, tokens: int
    ) -> Scaling | None:
        """The norm or factor between two tensors of a stream's width."""
        found = of_layer_norm(self.pull, order, end, start)
        if found is None:
            same = tolerance(self.graph, (*order, start.node))
            pulled = partial(self._pulled, order, end, start=start)
            found = measured(pulled, self.seed(end), (batch, tokens), same)
        if found is None and not self.dropout:  # with dropout it is a factor on average only
            self.refuse(order[0], "is neither a norm nor a factor for each feature or position")
        return found

    def refuse(self, number: int, what: str) -> NoReturn:
        """Raise the error for a node that is not covered."""
        raise ValueError(f"{self.where(number)} {what}, which ALTI-Logit does not cover.")
