"""What each attention of a forward pass is made of, as numbers: weights, values, linear maps.

The linear end of an attention, from what it found to what is added to the stream, is measured and
not looked up: gradients of known numbers that are pulled through it say which head and position lie
where, and by what features and positions are scaled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch

from captum_lrpx.alti.attention_weights import attention_of, in_order
from captum_lrpx.alti.part import Part, Scaling, wide
from captum_lrpx.alti.pull import tolerance
from captum_lrpx.parallel import COLLECTIVES, local, split_of
from captum_lrpx.trace.graph import Edge
from captum_lrpx.trace.operations import ADDITIONS, PROJECTIONS, VIEWS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from captum_lrpx.alti.attention_weights import AttentionWeights
    from captum_lrpx.alti.known import Known
    from captum_lrpx.alti.layout import Attention
    from captum_lrpx.alti.pull import Pull
    from captum_lrpx.alti.recording import Recording
    from captum_lrpx.trace.graph import Graph

__all__ = ["Reader"]


class Reader:
    """Reads the parts of a pass.

    Args:
        graph: Its graph.
        pull: Calls its nodes.
        recording: What was noted of it.
        where: Describes the place of a node.
        path: Gives the path of the module of a node.
        dropout: Whether dropout may be active, which hides what scales a stream.
        known: What has been found out of passes of the same structure, and is now.
    """

    def __init__(
        self,
        graph: Graph,
        pull: Pull,
        recording: Recording,
        where: Callable[[int], str],
        path: Callable[[int], str],
        *,
        dropout: bool,
        known: Known,
    ) -> None:
        self.graph, self.pull, self.recording, self._known = graph, pull, recording, known
        self.where, self.path, self.dropout = where, path, dropout

    # Values of tensors ------------------------------------------------------------------------

    def value(self, edge: Edge, batch: int, tokens: int) -> Tensor:
        """A tensor of a stream ``[B, T, D]``."""
        place = edge
        while (known := self.recording.value(self.graph.nodes[place.node], place.output)) is None:
            edges = self.graph.operands[place.node]
            if self.graph.names[place.node] not in VIEWS or not edges or edges[0] is None:
                self.refuse(edge.node, "is part of a residual stream in a way that is not seen")
            place = edges[0]
        if known.isnan().any():
            raise ValueError(
                f"The residual stream is not finite at {self.where(edge.node)}. (With padding on "
                "the left, eager attention of some families gives NaN in float64: use sdpa, or "
                "float32.)"
            )
        shape = tuple(known.shape)
        if shape[:-1] not in ((batch, tokens), (batch * tokens,)):
            self.refuse(
                edge.node,
                f"works on a residual stream of shape {list(shape)} where {batch} examples of "
                f"{tokens} tokens are explained",
            )
        return known.reshape(batch, tokens, shape[-1])

    # Attentions -------------------------------------------------------------------------------

    def part(self, attention: Attention, batch: int, tokens: int, sources: int) -> Part:
        """The numbers of an attention.

        Args:
            attention: The attention.
            batch: Examples.
            tokens: Positions of the stream that it is added to.
            sources: Positions of the stream that it reads.
        """
        mixing = attention.mixing
        before, at, after = self._known.projection(mixing, lambda: self._projection(attention))
        place = attention, before, at[0], batch, tokens
        rows_of = self._known.rows
        rows, by_head, by_feature = rows_of(mixing, (batch, tokens), lambda: self._rows(*place))
        weights, values = self._mixed(mixing, rows, batch, sources)
        weight = self._weight(at, batch * tokens)
        weight = weight.to(torch.promote_types(weight.dtype, values.dtype))
        if by_feature is not None:
            weight = weight * by_feature.unsqueeze(1)
        heads, size = rows.shape[1], values.shape[-1]
        if weight.shape[0] != heads * size:
            self.refuse(mixing, "finds something of another width than it projects")
        residual = self.value(attention.residual, batch, tokens)
        added = self._added(attention, batch, tokens)
        if self.graph.names[attention.addition] == "Sub":
            second = self.graph.operands[attention.addition][1] == attention.operand
            added, residual = (-added, residual) if second else (added, -residual)
        resultant = residual + added
        norm = scaled = None
        if attention.norms:
            end, start = Edge(attention.norms[0], 0), Edge(attention.addition, 0)
            resultant = self.value(end, batch, tokens)
            norm = self._scaling(attention.norms, end, start, batch, tokens)
        order = (attention.addition, *after)
        plain = self.graph.names[attention.addition] == "Add"
        if not plain or any(self.graph.names[each] not in VIEWS for each in after):
            scaled = self._scaling(order, Edge(attention.addition, 0), at[1], batch, tokens)
        part = Part(
            attention,
            self.path(attention.mixing),
            weights,
            values,
            rows,
            weight.view(heads, size, -1),
            by_head,
            scaled,
            norm,
            residual,
            resultant,
        )
        splits = (split_of(self.graph.nodes[each]) for each in at[2])
        split = next((each for each in splits if each is not None), None)
        return part if split is None else part.joined(split)

    def _added(self, attention: Attention, batch: int, tokens: int) -> Tensor:
        """What an attention adds to the stream, without MLPs beside it."""
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

    def _projection(
        self, attention: Attention
    ) -> tuple[tuple[int, ...], tuple[Edge, Edge, tuple[int, ...]], tuple[int, ...]]:
        """Nodes before the output projection, its ends and nodes, and nodes after it."""
        region, found = attention.region, Edge(attention.mixing, 0)
        matrices = [each for each in region if self.graph.names[each] in PROJECTIONS | COLLECTIVES]
        if not matrices:
            return region, (attention.operand, attention.operand, ()), ()
        first, last = matrices[-1], matrices[0]
        inside, begin, end = {attention.mixing}, found, Edge(last, 0)
        open_edges = self._uses(attention.mixing, region)
        for number in reversed(region):
            inside.add(number)
            open_edges -= sum(
                edge is not None and edge.node in inside for edge in self.graph.operands[number]
            )
            if not open_edges and number < first:
                begin = Edge(number, 0)
            if not open_edges and number >= last:
                end = Edge(number, 0)
                break
            open_edges += self._uses(number, region)
        between = tuple(each for each in region if begin.node < each <= end.node)
        return (
            tuple(each for each in region if each <= begin.node),
            (begin, end, between),
            tuple(each for each in region if each > end.node),
        )

    def _uses(self, number: int, region: Sequence[int]) -> int:
        return sum(
            edge is not None and edge.node == number
            for each in region
            for edge in self.graph.operands[each]
        )

    def _seed(self, edge: Edge) -> Tensor:
        """Zeros of the shape of a tensor, in float32 or wider."""
        metadata: Any = self.graph.nodes[edge.node]
        metadata = metadata._input_metadata[edge.output]  # noqa: SLF001
        return wide(
            torch.zeros(tuple(metadata.shape), dtype=metadata.dtype, device=metadata.device)
        )

    def like(self, edge: Edge, numbers: Tensor) -> Tensor:
        """Numbers in the form of a tensor of the graph."""
        return numbers.reshape(self._seed(edge).shape)

    def _pulled(self, order: Sequence[int], end: Edge, gradient: Tensor, start: Edge) -> Tensor:
        if end == start:
            return gradient
        found = self.pull.back(order, {end: gradient}, (start,))
        return found[start]

    # Which head and position is where ---------------------------------------------------------

    def _rows(
        self, attention: Attention, before: tuple[int, ...], at: Edge, batch: int, tokens: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Row of each head and position, and factors by head and position, and by feature."""
        found, seed = Edge(attention.mixing, 0), self._seed(at)
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
            return rows, None, None
        factor = factor.reshape(-1, size)[rows]  # [B, H, T, z]
        same = tolerance(self.graph, (*attention.region, attention.mixing))
        if torch.allclose(factor, factor[..., :1], rtol=same):
            return rows, factor[..., 0], None
        by_feature = factor.transpose(1, 2).reshape(batch * tokens, width)
        scale, weight = self._rank_one(by_feature, same)
        if scale is None or weight is None:
            self.refuse(attention.mixing, "is followed by a gate for each feature and position")
        by_head = scale.view(batch, 1, tokens).expand(-1, rows.shape[1], -1)
        return rows, by_head, weight

    @staticmethod
    def _rank_one(factors: Tensor, same: float) -> tuple[Tensor | None, Tensor | None]:
        """Factors ``[N, F]`` as one of each row ``[N, 1]`` times one of each feature ``[F]``."""
        weight = factors[factors.norm(dim=-1).argmax()]
        scale = (factors @ weight / (weight @ weight).clamp(min=1e-30)).unsqueeze(-1)
        difference = (factors - scale * weight).norm()
        if not difference <= same * factors.norm():
            return None, None
        return scale, weight

    # Weights and values -----------------------------------------------------------------------

    def _mixed(
        self, mixing: int, rows: Tensor, batch: int, sources: int
    ) -> tuple[AttentionWeights, Tensor]:
        name = self.graph.names[mixing]
        found = attention_of(self.graph.nodes[mixing], name, rows)
        if found is None:
            raise ValueError(
                f"The attention weights of {self.where(mixing)} cannot be had: {name} does not "
                'show what it computes. Load the model with attn_implementation="sdpa" or "eager".'
            )
        weights, values = found
        if values.shape[-2] != sources or (
            self.graph.operands[mixing][-1] is None and (name in ("Bmm", "Mm"))
        ):
            self.refuse(mixing, "mixes something else than the tokens that are explained")
        flat = wide(values.detach()).reshape(-1, *values.shape[-2:])
        groups, heads = len(flat) // batch, rows.shape[1]
        grouped = flat.view(batch, groups, *flat.shape[-2:])
        queries = rows.numel() // len(flat)
        if in_order(rows) or groups in (1, heads):
            return weights, grouped
        of_head = rows[:, :, 0] // queries
        return weights, flat[of_head]

    # Linear maps ------------------------------------------------------------------------------

    def _weight(self, at: tuple[Edge, Edge, tuple[int, ...]], rows: int) -> Tensor:
        """The matrix of the output projection ``[H z, D]``."""
        begin, end, between = at
        width = self._seed(begin).shape[-1]
        if not between:
            return torch.eye(width, device=self._seed(begin).device)
        kept = VIEWS | COLLECTIVES
        *others, first = [each for each in between if self.graph.names[each] not in kept] or [0]
        self.pull.need(first)
        node: Any = self.graph.nodes[first]
        seed = self._seed(end)
        columns = seed.shape[-1]
        if not others and self.graph.names[first] in ("Mm", "Addmm"):
            factor = getattr(node, "_saved_alpha", 1)
            found = local(node._saved_mat2.detach())  # noqa: SLF001
            if found.shape == (width, columns):  # or else it is another part than the heads'
                return wide(found if factor == 1 else found * factor)
        result = seed.new_zeros(columns, width)
        for start in range(0, columns, rows):
            count = min(rows, columns - start)
            unit = torch.zeros_like(seed)
            each = torch.arange(count, device=seed.device)
            unit.view(rows, columns)[each, start + each] = 1.0
            metadata: Any = self.graph.nodes[end.node]
            metadata = metadata._input_metadata[end.output]  # noqa: SLF001
            pulled = self._pulled(between, end, unit.to(metadata.dtype), begin)
            result[start : start + count] = pulled.reshape(rows, width)[:count]
        return result.t().contiguous()

    def _scaling(
        self, order: Sequence[int], end: Edge, start: Edge, batch: int, tokens: int
    ) -> Scaling | None:
        """The norm or factor that lies between two tensors of a stream's width."""
        seed = self._seed(end)
        width = seed.shape[-1]
        signs = torch.where(torch.arange(width, device=seed.device) % 2 == 0, 1.0, -1.0).to(seed)
        noise = torch.linspace(-1, 2, width, device=seed.device).to(seed).sin() + 0.1
        plain, signed, noisy = (
            wide(self._pulled(order, end, (seed + each).contiguous(), start)).reshape(-1, width)
            for each in (torch.ones_like(signs), signs, noise)
        )
        same = tolerance(self.graph, (*order, start.node))
        # A mean that is subtracted differs between even and odd features by what it is.
        difference = plain - signs * signed
        even, odd = (difference[:, first::2].mean(-1, keepdim=True) for first in (0, 1))
        for centered in (False, True):
            factors = plain - (even + odd) / 2 if centered else plain
            expected = factors * noise
            if centered:
                expected = expected - expected.mean(-1, keepdim=True)
            if (noisy - expected).norm() <= same * noisy.norm():
                scale, weight = self._rank_one(factors, same)
                if scale is not None and weight is not None:
                    return Scaling(scale.view(batch, tokens, 1), weight, centered)
        if self.dropout:  # in the mean over what is dropped it is one
            return None
        return self.refuse(order[0], "is neither a norm nor a factor for each feature or position")

    def refuse(self, number: int, what: str) -> NoReturn:
        """Say what is not covered."""
        raise ValueError(f"{self.where(number)} {what}, which ALTI-Logit does not cover.")
