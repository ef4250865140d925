"""Capturing the inputs or outputs of layers during a forward pass, inside its graph."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrpx.onlookers import hooked

if TYPE_CHECKING:
    from collections.abc import Callable


Captured = dict[nn.Module, tuple[Tensor, ...]]
"""Maps a layer to its captured inputs or outputs.

These are the first floating-point tensor and those with the same leading shape.
"""


@contextmanager
def captured(
    layers: Iterable[nn.Module], *, at_input: bool = False, several_runs: bool = False
) -> Iterator[Captured]:
    """Capture the outputs (or inputs) of layers during one forward pass.

    Of a layer's tensors those with the leading dimensions of the first floating-point one are
    captured: hidden states, but not masks, attention weights, rotary tables or None. A captured
    tensor that needs no gradient yet (an embedding of a frozen model) becomes a leaf, so that its
    gradient exists.

    Calls of the same layers in other threads are ignored.

    Args:
        layers: The layers.
        at_input: Whether to capture inputs, positional or by keyword, instead of outputs.
        several_runs: Whether a layer may run more than once; the tensors of all runs are kept then.

    Yields:
        A dictionary that fills during the forward pass.
    """
    found: Captured = {}

    def keep(module: nn.Module, caught: _Caught) -> None:
        if _in_backward() or getattr(_thread, "uncaptured", False):
            return  # a checkpointed block is recomputed, or the run is only a probe
        if module in found and not several_runs:
            raise ValueError(
                f"The layer {type(module).__name__} runs more than once in one forward pass, so it "
                "has no single relevance: choose a layer that runs once."
            )
        found[module] = (*found.get(module, ()), *caught.kept)

    def after(module: nn.Module, _: Any, output: Any) -> Any:
        caught = _Caught()
        replaced = map_tensors(output, caught)
        keep(module, caught)
        return replaced

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        caught = _Caught()
        replaced = map_tensors((args, kwargs), caught)
        keep(module, caught)
        return replaced

    with hooked(layers, before=before) if at_input else hooked(layers, after=after):
        yield found


@contextmanager
def embedding_with_gradients(embedding: nn.Module) -> Iterator[list[Tensor]]:
    """Make the output of an embedding require a gradient, also if its weights are frozen.

    Everything after it then has a graph, so that a layer without a path to the explained output
    is constant under the rules, rather than upstream of every tensor that needs a gradient.

    Args:
        embedding: The token embedding of the model.

    Yields:
        A list that fills with the outputs of the embedding.
    """
    found: list[Tensor] = []

    def after(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        found.append(output if output.requires_grad else output.detach().requires_grad_())
        return found[-1]

    with hooked([embedding], after=after):
        yield found


_thread = threading.local()


@contextmanager
def uncaptured() -> Iterator[None]:
    """Within the ``with`` block, ignore what the calling thread computes."""
    _thread.uncaptured = True
    try:
        yield
    finally:
        _thread.uncaptured = False


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)  # noqa: SLF001 - no public name


class _Caught:
    """Keeps tensors and passes copies of them on to the model."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if self.kept and tensor.shape[:-1] != self.kept[0].shape[:-1]:
            return tensor
        if self.kept and not tensor.requires_grad:
            return tensor  # rotary tables have the shape of hidden states in a batch of one row
        with torch.enable_grad():
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
            self.kept.append(tensor)
            # A copy: the model may change it in place later, which would change the kept one.
            return tensor.clone()


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of a nested structure, in order."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):  # the outputs of transformers are mappings of their own class
        mapped = copy.copy(value)
        for key, item in value.items():
            mapped[key] = map_tensors(item, function)  # type: ignore[index]
        return mapped
    if isinstance(value, (tuple, list)):
        items = [map_tensors(item, function) for item in value]
        named = hasattr(value, "_fields")
        return type(value)(*items) if named else type(value)(items)
    return value
