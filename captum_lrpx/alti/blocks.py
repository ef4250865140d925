"""The blocks of a recorded model, from the last to the first, as ALTI-Logit needs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

from captum_lrpx.alti import functional
from captum_lrpx.alti.directions import wide
from captum_lrpx.alti.linear import linear_map
from captum_lrpx.alti.recording import select_features, tolerance
from captum_lrpx.rules.patches import norm_epsilon

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from captum_lrpx.alti.directions import Directions
    from captum_lrpx.alti.recording import Recording
    from captum_lrpx.alti.records import BlockRecord
    from captum_lrpx.sites import NormSite

__all__ = ["Blocks"]

_TEMPORARIES: Final = 3  # weights of some rows, their scores, and a copy in another order


@dataclass(eq=False)
class Blocks:
    """Computes logit updates and ALTI matrices once, and lets go of each record behind it.

    Attributes:
        recording: A complete recording.
        targets: The directions of each explained value.
        memory_budget: Bytes that temporary tensors may take.
        value_bias: Whether the bias part of the values belongs to the tokens.
        keep_alti: Whether the ALTI matrix of every block is wanted, whole.
        per_head: Whether updates are kept per head.
        alti: The ALTI matrices so far, last block first, each ``[B, T, T]``.
        value_biases: What the bias part of the values contributes, per block (first to last once
            all have run) and target ``[B]``.
    """

    recording: Recording
    targets: Sequence[Directions]
    memory_budget: int
    value_bias: bool = True
    keep_alti: bool = False
    per_head: bool = False
    alti: list[Tensor] = field(default_factory=list)
    value_biases: list[dict[str, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.value_biases = [{} for _ in self.targets]
        batch, tokens, _ = self.recording.blocks[0].residual.shape
        # Positions that the explained value is known to read from, first and last + 1.
        self._reached = [(tokens, 0)] * batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Update ``[B, K (H), T]`` and ALTI matrix ``[B, T, T]`` of each block, the last first."""
        records = self.recording.blocks
        count = len(records)
        home = self.targets[0].value.device  # blocks may be spread over devices
        while records:
            record = records.pop()
            index = len(records)
            carries = self.keep_alti or index < count - 1
            output_weight = wide(linear_map(record.block.attention.output)).t()
            matrices, updates = [], []
            for example in range(len(self._reached)):
                part = _Part(record, example, output_weight, self.memory_budget, whole=carries)
                if self.recording.strict:
                    part.check_weights()
                matrix = self._matrix(part, example) if carries else None
                if matrix is not None:
                    matrices.append(matrix)
                update = self._update(part, example, index)
                updates.append(update)
                self._extend_reach(example, update, matrix)
            stacked = torch.stack(matrices).to(home) if matrices else None
            if self.keep_alti and stacked is not None:
                self.alti.append(stacked)
            yield torch.stack(updates).to(home), stacked

    def _matrix(self, part: _Part, example: int) -> Tensor:
        first, stop = (0, part.tokens) if self.keep_alti else self._reached[example]
        return part.alti_matrix(first, stop)

    def _update(self, part: _Part, example: int, index: int) -> Tensor:
        """Updates of all targets ``[K (H), T]``; what belongs to the values' bias is put aside."""
        updates = []
        values = part.values
        bias = None if self.value_bias else part.value_bias(self.recording.sites.placement)
        for target, biases in zip(self.targets, self.value_biases, strict=True):
            rows, directions = target.of(example, index)
            if bias is not None:
                apart = part.logit_update(rows, directions, bias.expand_as(values))
                name = f"{part.attention.path}.value_bias"
                known = biases.setdefault(name, apart.new_zeros(len(self._reached)))
                known[example] = apart.sum()
                values = part.values - bias
            update = part.logit_update(rows, directions, values)
            updates.append(update if self.per_head else update.sum(0, keepdim=True))
        return torch.cat(updates)

    def _extend_reach(self, example: int, update: Tensor, matrix: Tensor | None) -> None:
        read = (update != 0).any(0)
        if matrix is not None:
            read |= (matrix != 0).any(0)
        where = read.nonzero().squeeze(1).tolist()
        if where:
            first, stop = self._reached[example]
            self._reached[example] = (min(first, where[0]), max(stop, where[-1] + 1))


class _Part:
    """One example of one recorded block."""

    def __init__(
        self,
        record: BlockRecord,
        example: int,
        output_weight: Tensor,
        memory_budget: int,
        *,
        whole: bool,
    ) -> None:
        self.record = record
        self.example = example
        self.attention = record.block.attention
        self.tokens = record.residual.shape[1]
        self.memory_budget = memory_budget
        heads, size = self.attention.heads, self.attention.head_dim
        self.values = self._by_head(record.values[example]).contiguous()  # [G, T, z]
        self.output_weight = output_weight.view(heads, size, -1).to(self.values)
        # Rows whose attention weights may be held at a time.
        self.step = self._affordable_rows()
        self._whole: Tensor | None = None
        if whole and self.step >= self.tokens:
            self._whole = record.weights.of(example, slice(0, self.tokens)).to(self.values)

    def _by_head(self, values: Tensor) -> Tensor:
        groups, size = self.attention.key_value_heads, self.attention.head_dim
        return wide(values).reshape(-1, groups, size).transpose(0, 1)

    def _affordable_rows(self) -> int:
        row = self.attention.heads * self.tokens * self.values.element_size()
        step = self.memory_budget // (_TEMPORARIES * row)
        if step < 1:
            raise ValueError(
                f"The attention weights of one of {self.tokens} positions take "
                f"{_TEMPORARIES * row} bytes, more than memory_budget={self.memory_budget}: "
                "give a larger budget, or a shorter text."
            )
        return step

    def weights(self, rows: slice | Tensor) -> Tensor:
        """Attention weights of some rows ``[H, R, T]``."""
        if self._whole is not None:
            return self._whole[:, rows]
        return self.record.weights.of(self.example, rows).to(self.values)

    def value_bias(self, placement: str) -> Tensor:
        """What of the values does not depend on the input ``[G, 1, z]``."""
        projection, norm = self.attention.value, self.record.block.attention_norm
        like = self.record.residual
        constant = like.new_zeros(1, like.shape[-1])
        bias = getattr(norm.module, "bias", None)
        if placement == "pre" and bias is not None:
            constant = constant + bias.detach()
        with torch.no_grad():
            return self._by_head(select_features(projection.module(constant), projection))

    def logit_update(self, rows: Tensor, directions: Tensor, values: Tensor) -> Tensor:
        """Logit update of the explained rows ``[R]`` with directions ``[R, D]``: ``[H, T]``."""
        total = values.new_zeros(self.attention.heads, self.tokens)
        for start in range(0, rows.numel(), self.step):
            taken = slice(start, start + self.step)
            weights = self.weights(rows[taken].to(values.device))
            seen = directions[taken].to(values)
            total += functional.logit_update(weights, values, seen, self.output_weight)
        return total

    def alti_matrix(self, first: int, stop: int) -> Tensor:
        """ALTI matrix ``[T, T]`` with the rows ``first`` to ``stop``; the others are 0."""
        record, values = self.record, self.values
        matrix = values.new_zeros(self.tokens, self.tokens)
        for low in range(first, stop, self.step):
            rows = slice(low, min(low + self.step, stop))
            weights, output_weight = self.weights(rows), self.output_weight
            residual = record.residual[self.example, rows].to(values)
            if record.norm_input is not None:
                norm = record.block.attention_norm
                weights, output_weight, residual = functional.fold_frozen_norm(
                    weights,
                    output_weight,
                    residual,
                    scale=_norm_scale(norm, record.norm_input[self.example, rows]),
                    weight=_norm_weight(norm, record.norm_weight),
                    centered=norm.centered,
                )
            matrix[rows] = functional.alti_matrix(
                weights,
                values,
                output_weight,
                residual,
                record.resultant[self.example, rows].to(values),
                first_row=low,
                chunk=self._chunk(),
            )
        return matrix

    def check_weights(self) -> None:
        """Refuse an attention whose output is not ``A v``.

        Raises:
            ValueError: If the input of the output projection is something else.
        """
        record, attention = self.record, self.attention
        weights = self.weights(record.checked.to(self.values.device))
        values = self.values.repeat_interleave(attention.heads // attention.key_value_heads, 0)
        mixed = record.mixed[self.example].to(values)
        attends = (weights.sum((0, 2)) != 0).unsqueeze(1)  # else padding
        difference = ((mixed - _mixed(weights, values)) * attends).norm()
        # What averages out in the sum is rounded at the size of its terms.
        rounding = 2 * torch.finfo(record.mixed.dtype).eps * _mixed(weights, values.abs())
        allowed = tolerance(record.mixed) * (mixed * attends).norm() + (rounding * attends).norm()
        if not difference <= allowed:
            raise ValueError(
                f"The output projection of {attention.path!r} does not get the values weighed by "
                "the attention weights (a gate, or a norm of values?): ALTI-Logit does not know "
                "what this model does there."
            )

    def _chunk(self) -> int:
        """Elements of transformed vectors that may be held at a time."""
        share = max(1, self.memory_budget // (_TEMPORARIES * self.values.element_size()))
        # A processor wants what fits into its cache, an accelerator wants large pieces.
        on_cpu = self.values.device.type == "cpu"
        return min(share, functional.CHUNK_ELEMENTS) if on_cpu else share


def _mixed(weights: Tensor, values: Tensor) -> Tensor:
    """``A v`` of all heads beside each other ``[R, H z]``."""
    return (weights @ values).transpose(0, 1).flatten(1)


def _norm_weight(norm: NormSite, weight: Tensor | None) -> Tensor | None:
    return None if weight is None else wide(weight) + norm.weight_offset


def _norm_scale(norm: NormSite, x: Tensor) -> Tensor:
    """``1 / std`` or ``1 / rms`` of a norm's input ``[R, D]``: ``[R, 1]``."""
    x = wide(x)
    if norm.centered:
        square = x.var(-1, unbiased=False, keepdim=True)
    else:
        square = x.square().mean(-1, keepdim=True)
    return torch.rsqrt(square + norm_epsilon(norm.module, x))
