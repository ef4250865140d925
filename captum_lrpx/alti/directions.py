"""Directions in which each branch of a model moves an explained value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.alti.attention_weights import wide
from captum_lrpx.parallel import whole
from captum_lrpx.trace.graph import Edge, node_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from captum_lrpx.alti.attention_parts import Part, Reader
    from captum_lrpx.alti.layout import Layout

_WORTH_A_LOOK: Final = 1 << 13
"""Size of a gradient below which all of its rows are kept."""


class Rows:
    """Non-zero rows of a gradient: few, if one position is explained."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor | slice, Tensor]] = []

    def add(self, gradient: Tensor) -> None:
        """Add a part of the gradient ``[..., z]``."""
        flat = gradient.reshape(-1, gradient.shape[-1])
        rows: Tensor | slice = slice(None)
        if flat.numel() >= _WORTH_A_LOOK:
            rows = (flat != 0).any(-1).nonzero().squeeze(1)
        self.parts.append((rows, flat[rows]))

    def whole(self, count: int) -> Tensor:
        """The gradient ``[N, z]``."""
        rows, first = self.parts[0]
        if len(self.parts) == 1 and isinstance(rows, slice):
            return first
        total = first.new_zeros(count, first.shape[-1])
        for rows, values in self.parts:
            total[rows] += values.to(total)
        return total


@dataclass(frozen=True, eq=False)
class Directions:
    """Gradients of one explained value per example, and the terms that follow directly from them.

    Attributes:
        value: The explained values ``[B]``.
        found: Gradient at the mixing node of each attention that the value depends on directly, by
            node.
        start: ``<u, x>`` at the start of each stream, its positions side by side ``[B, T]``.
        mlps: ``<u, m>`` of each branch that treats positions separately ``[B, M]``; none if the
            terms are not wanted.
        biases: ``<u, b>`` of each constant added elsewhere ``[B]``, by its path; likewise.
        output: The explained value minus ``<u, o>`` of the outputs of the model ``[B]``;
            0 if these are unknown, as for a function that is linear in them.
    """

    value: Tensor
    found: Mapping[int, Rows]
    start: Tensor
    mlps: Tensor
    biases: dict[str, Tensor]
    output: Tensor

    def at_heads(self, part: Part) -> Tensor | None:
        """Gradient at the output of each head of an attention ``[B, H, T, z]``; None if none."""
        rows = self.found.get(part.attention.mixing)
        return None if rows is None else part.found(rows.whole(part.rows.numel()))


def directions_of(
    reader: Reader,
    layout: Layout,
    output: Tensor,
    tokens: Sequence[int],
    name: Callable[[int, Any], str | None],
    outputs: Mapping[int, Tensor],
    *,
    terms: bool,
) -> Directions:
    """Pull an explained value back through head and streams.

    Args:
        reader: Reads tensors of the pass.
        layout: Its parts.
        output: The explained values ``[B]``.
        tokens: Positions of each input.
        name: Returns the name under which a constant of a node is reported, None if it is not.
        outputs: The outputs of the model that the explained function uses, by node; empty for a
            function that is linear in them.
        terms: Whether the terms of MLPs and biases are wanted.

    Raises:
        ValueError: If the value does not depend on the residual stream.
    """
    batch = len(output)
    home = wide(output.detach())
    starts = {place: stream.start for place, stream in layout.streams.items()}
    operands = [each.operand for each in layout.positional]
    mixings = {Edge(each.mixing, 0): Rows() for each in layout.attentions}
    biases = Biases(reader, batch, name)
    beyond = home.clone() if outputs else torch.zeros_like(home)

    def seen(number: int, gradient: Tensor) -> None:
        biases(number, gradient)
        if number in outputs:
            product = wide(whole(gradient)) * wide(whole(outputs[number]))
            beyond.sub_(product.reshape(batch, -1).sum(1).to(home))

    node = node_of(output)
    assert node is not None  # noqa: S101 - it has a gradient
    found = reader.pull.back(
        layout.order,
        {Edge(reader.graph.index[node], output.output_nr): torch.ones_like(output)},
        {*starts.values(), *operands, *mixings},
        seen if terms else None,
        {edge: rows.add for edge, rows in mixings.items()},
    )
    start = [
        _by_position(found.get(starts[place]), reader, starts[place], batch, count).to(home)
        if place in starts
        else home.new_zeros(batch, count)
        for place, count in enumerate(tokens)
    ]
    mlps = _of_branches(reader, layout, found, batch, tokens, biases) if terms else []
    return Directions(
        value=home,
        found={edge.node: rows for edge, rows in mixings.items() if rows.parts},
        start=torch.cat(start, 1),
        mlps=torch.stack([each.to(home) for each in mlps], 1) if mlps else home.new_zeros(batch, 0),
        biases={each: biases.amounts[each].to(home) for each in reversed(biases.amounts)},
        output=beyond,
    )


def _of_branches(
    reader: Reader,
    layout: Layout,
    found: Mapping[Edge, Tensor],
    batch: int,
    tokens: Sequence[int],
    biases: Biases,
) -> list[Tensor]:
    """``<u, m>`` of each branch that treats positions separately ``[B]``."""
    mlps = []
    for branch in layout.positional:
        place = branch.operand, batch, tokens[branch.stream]
        term = _by_position(found.get(branch.operand), reader, *place).sum(1)
        if branch.constant:
            biases.add(f"{reader.path(branch.operand.node)}.constant", term)
        else:
            mlps.append(term)
    return mlps


def _by_position(
    gradient: Tensor | None, reader: Reader, edge: Edge, batch: int, tokens: int
) -> Tensor:
    """``<u, x>`` at each position ``[B, T]``; 0 without a gradient."""
    x = reader.value(edge, batch, tokens).flatten(0, 1)
    result = wide(x.new_zeros(batch * tokens))
    if gradient is not None:
        flat = gradient.reshape(batch * tokens, -1)
        rows = (flat != 0).any(-1).nonzero().squeeze(1)
        result[rows] = (wide(flat[rows]) * wide(x[rows.to(x.device)])).sum(-1).to(result)
    return result.view(batch, tokens)


class Biases:
    """Sums the contributions of constants, as gradients are pulled through their nodes."""

    def __init__(self, reader: Reader, batch: int, name: Callable[[int, Any], str | None]) -> None:
        self.reader, self.batch, self.name = reader, batch, name
        self.amounts: dict[str, Tensor] = {}

    def __call__(self, number: int, gradient: Tensor) -> None:
        """Record the constants of a node."""
        node = self.reader.graph.nodes[number]
        for constant, sign in self.reader.recording.constants.get(node, ()):
            name = self.name(number, constant)
            if name is not None:
                self.add(name, sign * product_with(gradient, constant, self.batch))

    def add(self, name: str, amount: Tensor) -> None:
        """Add an amount ``[B]`` under a name."""
        known = self.amounts.get(name)
        self.amounts[name] = amount if known is None else known + amount.to(known)


def product_with(gradient: Tensor, constant: Any, groups: int) -> Tensor:
    """``<u, b>`` of a constant broadcast to the shape of a gradient, by groups of rows."""
    u = wide(whole(gradient))
    if isinstance(constant, torch.Tensor):
        constant = whole(constant)
    if isinstance(constant, torch.Tensor) and constant.ndim == 1:
        of_features: Tensor = u.reshape(groups, -1, u.shape[-1]).sum(1) @ constant.to(u)
        return of_features
    product: Tensor = u * (constant.to(u) if isinstance(constant, torch.Tensor) else constant)
    return product.reshape(groups, -1).sum(1)
