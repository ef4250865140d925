"""Patching written out: one node of one layer at a time, each in a forward pass of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def index_of(kind: str, node: int, shape: Sequence[int], heads: int) -> tuple[Any, ...]:
    """The index of a node in a tensor of a layer."""
    if kind == "token":
        return (slice(None), node)
    if kind == "neuron":
        return (..., node)
    if kind == "head":
        width = shape[-1] // heads
        return (..., slice(node * width, (node + 1) * width))
    return (...,)


def number_of(kind: str, shape: Sequence[int], heads: int) -> int:
    return {"token": shape[1], "neuron": shape[-1], "head": heads, "output": 1}[kind]


def first(value: Any) -> Tensor:
    """The hidden states among what a module takes or gives."""
    while not isinstance(value, Tensor):
        value = next(each for each in value if each is not None)
    return value


def with_first(value: Any, new: Tensor) -> Any:
    if isinstance(value, Tensor):
        return new
    return type(value)([new, *value[1:]])


def value_at(layer: nn.Module, run: Callable[[], Tensor], *, at_input: bool) -> Tensor:
    """The tensor of a layer in a run."""
    kept: list[Tensor] = []
    if at_input:
        handle = layer.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    else:
        handle = layer.register_forward_hook(lambda _, __, output: kept.append(first(output)))
    run()
    handle.remove()
    return kept[0]


def patched(layer: nn.Module, run: Callable[[], Tensor], change: Any, *, at_input: bool) -> Tensor:
    """The result of a run in which a layer's tensor is changed."""
    if at_input:
        handle = layer.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        handle = layer.register_forward_hook(
            lambda _, __, output: with_first(output, change(first(output)))
        )
    try:
        return run()
    finally:
        handle.remove()


@torch.no_grad()
def measured(
    layer: nn.Module,
    clean: Callable[[], Tensor],
    other: Tensor | Callable[[], Tensor],
    kind: str,
    heads: int = 1,
    *,
    at_input: bool,
) -> Tensor:
    """Clean minus patched value of each node, ``[B, N]``.

    Args:
        layer: The layer.
        clean: Runs the model on clean inputs, and returns the explained values ``[B]``.
        other: Runs it on corrupted inputs, or is what replaces the tensor of the layer.
        kind: What a node is.
        heads: Number of heads.
        at_input: Whether nodes are in what the layer takes.
    """
    new = other if isinstance(other, Tensor) else value_at(layer, other, at_input=at_input)
    effects = []
    for node in range(number_of(kind, new.shape, heads)):
        index = index_of(kind, node, new.shape, heads)

        def change(value: Tensor, index: Any = index) -> Tensor:
            value = value.clone()
            value[index] = new[index]
            return value

        effects.append(clean() - patched(layer, clean, change, at_input=at_input))
    return torch.stack(effects, dim=1)


def estimated(
    values: Tensor, others: Tensor, coefficients: Tensor, kind: str, heads: int = 1
) -> Tensor:
    """Sum of difference times coefficient over each node, ``[B, N]``, number by number."""
    nodes = []
    for node in range(number_of(kind, values.shape, heads)):
        index = index_of(kind, node, values.shape, heads)
        parts = [each[index].reshape(len(values), -1) for each in (values, others, coefficients)]
        total = torch.zeros(len(values), dtype=values.dtype)
        for row in range(len(values)):
            for value, other, coefficient in zip(*(each[row] for each in parts), strict=True):
                total[row] += (value - other) * coefficient
        nodes.append(total)
    return torch.stack(nodes, dim=1)


def modified_llama(model: nn.Module, monkeypatch: Any) -> None:
    """Make the gradient of an eager Llama that of LRP with the activation as the gate's signal.

    Each layer has its own value and another gradient: constant scales of norms, constant weights of
    attention, activations as a constant times their input, constant ``up``.
    """
    softmax = F.softmax
    monkeypatch.setattr(F, "softmax", lambda *args, **kwargs: softmax(*args, **kwargs).detach())
    for module in model.modules():
        kind = type(module).__name__
        if kind == "LlamaRMSNorm":
            module.forward = _norm(module)
        elif kind == "LlamaMLP":
            module.forward = _mlp(module)


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        narrow = x.to(torch.float32)  # as Hugging Face does
        scale = torch.rsqrt(narrow.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        return module.weight * (narrow * scale.detach()).to(x.dtype)

    return forward


def _mlp(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        z = module.gate_proj(x)
        act = z * torch.sigmoid(z).detach()
        return module.down_proj(act * module.up_proj(x).detach())

    return forward
