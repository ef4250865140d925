"""Logit updates and ALTI matrices of the attentions of a pass, from the last to the first.

The positions of all inputs are concatenated on one axis of ``T`` positions, so that an attention to
another stream is a block beside the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import torch

from captum_lrpx.alti.directions import product_with
from captum_lrpx.alti.examples import Example, Together, chunk_of, form_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from captum_lrpx.alti.attention_parts import Part, Reader
    from captum_lrpx.alti.directions import Directions
    from captum_lrpx.alti.layout import Attention, Layout

_FEWEST: Final = 4
"""Number of examples below which it takes longer not to skip what causal attention cannot read."""

_Found = tuple["Tensor", "Tensor | None", "Tensor | None"]


@dataclass(eq=False)
class Blocks:
    """Streams logit updates and ALTI matrices, attention by attention.

    Attributes:
        reader: Reads the parts of the pass.
        layout: Its layout.
        targets: Directions of each explained value.
        tokens: Positions of each input.
        memory_budget: Bytes that temporary tensors may take.
        value_bias: Whether the bias part of the values is counted for the tokens.
        keep_alti: Whether to keep the ALTI matrix of every attention, whole.
        per_head: Whether updates are kept per head.
        alti_by_head: Whether the matrices keep each head as a separate part.
        updates: The updates so far, last attention first.
        alti: The ALTI matrices so far, last attention first, each ``[B, T, T]``.
        sinks: Share of attention that went to no token, likewise, each ``[B, T]``.
        value_biases: Contribution of the bias part of the values, by path, of each target ``[B]``.
    """

    reader: Reader
    layout: Layout
    targets: Sequence[Directions]
    tokens: Sequence[int]
    memory_budget: int
    value_bias: bool = True
    keep_alti: bool = False
    per_head: bool = False
    alti_by_head: bool = False
    updates: list[Tensor] = field(init=False, default_factory=list)
    alti: list[Tensor] = field(init=False, default_factory=list)
    sinks: list[Tensor] = field(init=False, default_factory=list)
    value_biases: list[dict[str, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.value_biases = [{} for _ in self.targets]
        self.batch = len(self.targets[0].value)
        self.offsets = [0, *accumulate(self.tokens)]
        # Range of positions that the explained value is known to depend on, per input.
        self._reached = [
            {place: (count, 0) for place, count in enumerate(self.tokens)}
            for _ in range(self.batch)
        ]

    def positions(self, place: int) -> slice:
        """The positions of an input on the common axis."""
        return slice(self.offsets[place], self.offsets[place + 1])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield update ``[B, K (H), T]`` and ALTI matrix ``[B, T, T]`` by attention, last first."""
        home = self.targets[0].value.device  # blocks may be spread over devices
        for parts in self._groups():
            found = self._at_once(parts) if self._at_a_time(parts[0]) else None
            for update, matrix, sinks in found or map(self._one_by_one, parts):
                if self.keep_alti and matrix is not None and sinks is not None:
                    self.alti.append(matrix.to(home))
                    self.sinks.append(sinks.to(home))
                self.updates.append(update.to(home))
                yield self.updates[-1], None if matrix is None else matrix.to(home)

    def _carries(self, part: Part) -> bool:
        """Whether the ALTI matrix of an attention is needed."""
        return self.keep_alti or part.attention is not self.layout.attentions[-1]

    def _one_by_one(self, part: Part) -> _Found:
        """Update, ALTI matrix and sinks of an attention, example by example."""
        attention, carries = part.attention, self._carries(part)
        found = [target.at_heads(part) for target in self.targets]
        matrices, updates, sinks = [], [], []
        for example in range(self.batch):
            one = Example(part, example, self.memory_budget, whole=carries)
            update = self._update(one, found)
            matrix = self._matrix(one) if carries else None
            if matrix is not None:
                matrices.append(self._on_axis(matrix, attention))
            updates.append(self._placed(update, attention.source))
            self._extend_reach(example, attention, update, matrix)
            if self.keep_alti:
                sinks.append(self._placed(one.sink(), attention.stream))
        return (
            torch.stack(updates),
            torch.stack(matrices) if matrices else None,
            torch.stack(sinks) if sinks else None,
        )

    # Several at once --------------------------------------------------------------------------

    def _groups(self) -> Iterator[list[Part]]:
        """The attentions, last first, by those that are computed at once."""
        group: list[Part] = []
        for attention in reversed(self.layout.attentions):
            lengths = self.tokens[attention.stream], self.tokens[attention.source]
            part = self.reader.part(attention, self.batch, *lengths)
            room = max(1, self._at_a_time(part) // self.batch)
            if group and form_of(group[0]) != form_of(part):
                yield group
                group = []
            group.append(part)
            if len(group) >= room:
                yield group
                group = []
        if group:
            yield group

    def _at_a_time(self, part: Part) -> int:
        """Examples of attentions like this that are computed at once; 0 if they are too large."""
        alone = len(self.tokens) == 1 and part.split is None
        if not (alone and self.value_bias) or self.alti_by_head:
            return 0
        size = max(part.rows.shape[1:]) * part.values.shape[-2] * part.residual.shape[-1]
        count = chunk_of(part.values, self.memory_budget) // size
        return count if count >= _FEWEST else 0

    def _at_once(self, parts: list[Part]) -> list[_Found] | None:
        """The same of several attentions like each other; None if a number is not finite."""
        first = 0 if self._carries(parts[0]) else 1
        gradients = [
            torch.stack([self._gradient(part, target) for part in parts]) for target in self.targets
        ]
        pieces = []
        step = self._at_a_time(parts[0])
        for low in range(0, self.batch, step):
            some = Together(parts, slice(low, min(low + step, self.batch)))
            updates = [some.updates(each, per_head=self.per_head) for each in gradients]
            pieces.append((torch.cat(updates, 2), some.matrices(first), some.sinks()))
        joined = [torch.cat(each, 1) for each in zip(*pieces, strict=True)]
        if not (joined[0].sum() + joined[1].sum()).isfinite():
            return None
        self._reached = [{0: (0, self.tokens[0])} for _ in range(self.batch)]
        return list(zip(joined[0], [None] * first + list(joined[1]), joined[2], strict=True))

    def _gradient(self, part: Part, target: Directions) -> Tensor:
        """The gradient at the output of each head ``[B, H, T, z]``."""
        found = target.at_heads(part)
        return (
            part.values.new_zeros(*part.rows.shape, part.values.shape[-1])
            if found is None
            else found.to(part.values)
        )

    # Logit updates ----------------------------------------------------------------------------

    def _update(self, one: Example, found: list[Tensor | None]) -> Tensor:
        """Updates of all targets ``[K (H), S]``; the share of the values' bias is stored apart."""
        part, updates = one.part, []
        bias = None if self.value_bias else self._bias_of_values(part)
        for gradient, biases in zip(found, self.value_biases, strict=True):
            values = one.values
            if gradient is None:
                update = values.new_zeros(part.heads, values.shape[-2])
            else:
                rows, directions = one.directions(gradient)
                if bias is not None:
                    apart = one.logit_update(rows, directions, bias.expand_as(values))
                    name = f"{self.reader.path(part.attention.mixing)}.value_bias"
                    known = biases.setdefault(name, apart.new_zeros(self.batch))
                    known[one.example] = apart.sum()
                    values = values - bias
                update = one.logit_update(rows, directions, values)
            updates.append(update if self.per_head else update.sum(0, keepdim=True))
        return torch.cat(updates)

    def _bias_of_values(self, part: Part) -> Tensor:
        """Part of the values that does not depend on the input ``[G, 1, z]``.

        Unit vectors are pulled back through the path of the values, one at each position, and
        multiplied with the constants added there. If processes share the heads, one process at a
        time has the unit vectors: where the heads meet, gradients are summed.
        """
        attention, reader = part.attention, self.reader
        _, groups, tokens, size = part.values.shape
        rows = self.batch * tokens
        bias = part.values.new_zeros(groups * size)
        first_group = 0 if part.split is None else part.split.place * part.places.shape[1]

        def meet(number: int, gradient: Tensor) -> None:
            for constant, sign in reader.recording.constants.get(reader.graph.nodes[number], ()):
                if isinstance(constant, torch.Tensor) and constant.ndim > 1:
                    reader.refuse(number, "adds something of its own to values at each position")
                amounts = sign * product_with(gradient, constant, rows)
                bias[start : start + count] += amounts[:count].to(bias)

        for start in range(0, groups * size, rows):
            count = min(rows, groups * size - start)
            seed = reader.seed(attention.value)
            each = torch.arange(count, device=seed.device)
            feature = start + each
            group = feature // size - first_group
            own = (group >= 0) & (group < part.places.shape[1])
            places = part.places[(each // tokens)[own], group[own]]
            at = places, (each % tokens)[own], (feature % size)[own]
            seed.view(-1, tokens, size)[at] = 1.0
            reader.pull.back(attention.value_region, {attention.value: seed}, (), meet)
        return bias.view(groups, 1, size)

    # ALTI matrices ----------------------------------------------------------------------------

    def _matrix(self, one: Example) -> Tensor:
        """ALTI matrix ``[T, T or T + S]``, of which only the needed rows are computed."""
        attention = one.part.attention
        count = self.tokens[attention.stream]
        first, stop = (0, count) if self.keep_alti else self._reached[one.example][attention.stream]
        split, by_head = one.part.split, self.alti_by_head
        if split is None:
            return one.alti_matrix(first, stop, by_head=by_head)
        return split.summed(one.alti_matrix(*split.share(first, stop), by_head=by_head))

    def _on_axis(self, matrix: Tensor, attention: Attention) -> Tensor:
        """A matrix on the common axis; other streams are passed through."""
        if len(self.tokens) == 1:
            return matrix
        whole = torch.eye(self.offsets[-1], dtype=matrix.dtype, device=matrix.device)
        rows, columns = self.positions(attention.stream), self.positions(attention.source)
        count = self.tokens[attention.stream]
        whole[rows, rows] = matrix[:, :count]
        if matrix.shape[1] > count:
            whole[rows, columns] = matrix[:, count:]
        return whole

    def _placed(self, numbers: Tensor, place: int) -> Tensor:
        """Values of the positions of an input on the common axis ``[..., T]``."""
        if len(self.tokens) == 1:
            return numbers
        whole = numbers.new_zeros(*numbers.shape[:-1], self.offsets[-1])
        whole[..., self.positions(place)] = numbers
        return whole

    def _extend_reach(
        self, example: int, attention: Attention, update: Tensor, matrix: Tensor | None
    ) -> None:
        reads = {attention.source: (update != 0).any(0)}
        if matrix is not None:
            count = self.tokens[attention.stream]
            read = (matrix != 0).any(0)
            for place, part in ((attention.stream, read[:count]), (attention.source, read[count:])):
                if len(part):
                    reads[place] = reads[place] | part if place in reads else part
        reached = self._reached[example]
        for place, read in reads.items():
            where = read.nonzero().squeeze(1).tolist()
            if where:
                first, stop = reached[place]
                reached[place] = min(first, where[0]), max(stop, where[-1] + 1)
