"""Nodes: the parts of a layer's tensor whose effects on a prediction are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from captum_lrpx.attr.protocol import tensors_of
from captum_lrpx.names import suggestion

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn


NodeKind = Literal["head", "token", "neuron", "output", "expert"]
"""Kind of a node of a layer."""

Ablation = Literal["zero", "mean"]
"""Replacement of a node's value, other than its value for corrupted inputs."""

_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "nhead")
"""Attributes of configs and attention modules with the number of heads."""
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv")
"""The same of keys and values, where several heads share them."""
_SIZES = ("head_dim", "attention_head_size")
_WIDTHS = ("hidden_size", "embed_dim", "n_embd", "d_model")


@dataclass(frozen=True)
class Nodes:
    """Division of a layer's tensors ``[B, ...]`` into nodes.

    Attributes:
        kind: Kind of the nodes.
        parts: Number of heads or experts; 1 for other kinds.
    """

    kind: NodeKind
    parts: int = 1

    def cut(self, values: Tensor) -> Tensor:
        """Reshape to ``[B, outer, N, inner]``, one node per index of the third dimension.

        Args:
            values: ``[B, ...]``; by experts ``[B, T, E, D]``.
        """
        rows = values.shape[0]
        if self.kind == "token":
            return values.reshape(rows, 1, values.shape[1], -1)
        if self.kind == "output":
            return values.reshape(rows, 1, 1, -1)
        if self.kind == "neuron":
            return values.reshape(rows, -1, values.shape[-1], 1)
        inner = values.shape[-1] if self.kind == "expert" else values.shape[-1] // self.parts
        return values.reshape(rows, -1, self.parts, inner)

    def total(self, values: Tensor) -> Tensor:
        """Sum of each node, ``[B, N]``; ``[B]`` if the whole output is one node."""
        return self.shaped(self.cut(values).sum((1, 3)))

    def shaped(self, numbers: Tensor) -> Tensor:
        """One number per node ``[B, N]``, or ``[B]`` if the whole output is one node."""
        return numbers.squeeze(1) if self.kind == "output" else numbers

    def replaced(
        self, values: Tensor, clean: Tensor, others: Tensor, nodes: Sequence[int]
    ) -> Tensor:
        """Replace one node of each group of rows.

        Args:
            values: ``[K * B, ...]``, groups of B rows.
            clean: Unchanged values of the nodes ``[B, ...]``.
            others: Their replacements ``[B, ...]``.
            nodes: The node of each of K groups; -1 to leave a group as it is.

        Returns:
            A new tensor of the shape of ``values``.
        """
        new = values.clone(memory_format=torch.contiguous_format)
        rows = others.shape[0]
        for group, node in enumerate(nodes):
            part = new[group * rows : (group + 1) * rows]
            if node < 0:
                continue
            if self.kind == "expert":  # the output is the sum over experts
                part += (others - clean)[..., node, :].to(new)
            else:
                self.cut(part)[:, :, node] = self.cut(others.to(new))[:, :, node]
        return new


def nodes_of(
    kind: NodeKind,
    values: Tensor,
    layer: nn.Module,
    model: nn.Module,
    heads: int | None,
    *,
    at_input: bool,
) -> Nodes:
    """Divide the tensor of a layer into nodes.

    Args:
        kind: Kind of the nodes.
        values: The tensor ``[B, ...]``.
        layer: The layer that it is the input or output of.
        model: The model around it.
        heads: Number of heads; None to read it from the model.
        at_input: Whether it is the input of the layer.

    Raises:
        ValueError: If the kind is unknown, or the tensor cannot be divided into such nodes.
    """
    name, shape = type(layer).__name__, list(values.shape)
    if kind == "token" and values.ndim < 3:
        raise ValueError(
            f'by="token" needs a dimension of positions, [B, T, ...], but {name} has {shape}: '
            'choose another layer, or by="output".'
        )
    if kind in ("neuron", "head") and values.ndim < 2:
        raise ValueError(
            f'by="{kind}" needs a dimension of features, [B, ..., D], but {name} has {shape}: '
            'choose by="output".'
        )
    if kind == "expert":
        return Nodes(kind, values.shape[-2])
    if kind != "head":
        return Nodes(kind)
    number: Any = heads
    if number is None:
        number = _number_of_heads(model, layer, shape[-1], at_input=at_input)
    if number is None:
        raise ValueError(
            f"Neither {type(model).__name__} nor the modules around its {name} tell the number of "
            f"heads: give `heads=`, a divisor of {shape[-1]}."
        )
    if isinstance(number, bool) or not isinstance(number, int) or number < 1 or shape[-1] % number:
        raise ValueError(
            f"{shape[-1]} features of {name} cannot be split into {number} heads. Heads are "
            "concatenated in the input of attention's output projection: give that layer, and "
            "`heads=` if its number of heads differs from the model's."
        )
    return Nodes(kind, number)


def checked(
    inputs: Any, corrupted: Any, by: Any, ablation: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """Check the arguments before anything runs.

    Args:
        inputs: Clean inputs.
        corrupted: Corrupted inputs, or None.
        by: Kind of the nodes.
        ablation: Replacement of nodes other than corrupted values, or None.

    Returns:
        Clean inputs; corrupted ones, or the ones to average over, or None.

    Raises:
        AssertionError: Captum's error for a value that is neither a tensor nor a tuple of tensors.
        ValueError: If a name is unknown, or the corrupted inputs are missing, superfluous or of
            another shape.
    """
    kinds, ablations = get_args(NodeKind), get_args(Ablation)
    if by not in kinds:
        meant = suggestion(str(by), kinds)
        raise ValueError(f"`by` is one of {', '.join(map(repr, kinds))}, not {by!r}{meant}.")
    if ablation is not None and ablation not in ablations:
        raise ValueError(f"`ablation` is 'zero', 'mean' or None, not {ablation!r}.")
    clean = tensors_of(inputs)
    if corrupted is None:
        if ablation is None:
            raise ValueError(
                "There is nothing to replace the nodes by: pass `corrupted_inputs`, or "
                "`ablation='zero'` or 'mean'."
            )
        return clean, None
    if ablation == "zero":
        raise ValueError("Nodes are replaced by zero: leave `corrupted_inputs` out.")
    others = tensors_of(corrupted)
    shapes, other_shapes = (
        ", ".join(str(list(each.shape)) for each in tensors) for tensors in (clean, others)
    )
    if ablation is None and shapes != other_shapes:
        raise ValueError(
            f"The clean inputs have the shape {shapes}, the corrupted inputs "
            f"{other_shapes}: they must match token by token. Reword one of the texts, or "
            "pass `ablation='mean'`, which takes corrupted inputs of any length."
        )
    return clean, others


def by_row(values: Tensor, rows: int, layer: nn.Module) -> Tensor:
    """Tensor of a layer with a row for each example.

    Args:
        values: ``[B, ...]``; or ``[B * T, D]``, as in routers and experts.
        rows: Number of examples B.
        layer: The layer.

    Returns:
        ``[B, ...]``, or ``[B, T, D]``.

    Raises:
        ValueError: If it has no row for each example.
    """
    if values.ndim and len(values) == rows:
        return values
    if values.ndim == 2 and len(values) % rows == 0:
        return values.reshape(rows, -1, values.shape[1])
    raise ValueError(
        f"{type(layer).__name__} has {list(values.shape)} for {rows} examples, not a row for each: "
        "choose a layer whose first dimension is the batch."
    )


def _number_of_heads(
    model: nn.Module, layer: nn.Module, width: int, *, at_input: bool
) -> int | None:
    """Number of heads by the closest module around a layer that states it, or its config.

    An input has a vector for each query; an output may have one for each key and value instead.

    Raises:
        ValueError: If the width of an output fits neither.
    """
    path = next((path for path, module in model.named_modules() if module is layer), "")
    names = path.split(".")
    for end in range(len(names) - 1, -1, -1):
        module = model.get_submodule(".".join(names[:end]))
        owners = (module, getattr(module, "config", None))
        number = _number(owners, _HEADS)
        if number is None:
            continue
        whole = _number(owners, _WIDTHS)
        size = _number(owners, _SIZES) or (None if whole is None else whole // number)
        if at_input or size is None or width == number * size:
            return number
        of_keys = _number(owners, _KEY_HEADS) or number
        if width == of_keys * size:
            return of_keys
        raise ValueError(
            f"{type(layer).__name__} has {width} features, not {number} heads of {size}: "
            "give a layer with heads alone, or `heads=` if these are heads side by side."
        )
    return None


def _number(owners: Iterable[Any], names: Iterable[str]) -> int | None:
    """The first attribute with one of some names that is an integer."""
    found = (getattr(owner, name, None) for owner in owners for name in names)
    return next((each for each in found if type(each) is int), None)
