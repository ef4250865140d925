"""The head of a language model as a chain of modules, found by running it once.

If the logits of a model are ``head(base(x))``, and nothing else, they can be computed at some
positions only. This is tested, not declared: the model runs on two made-up hidden states in
place of the base's output, and each tensor on the path to the logits must be the input or output
of a module of the head.
"""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_lrpx.models import base_of
from captum_lrpx.module_tree import modules_of
from captum_lrpx.onlookers import hooked, is_plain

if TYPE_CHECKING:
    from collections.abc import Hashable


Chain = tuple[nn.Module, ...]

_known: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, Chain]] = weakref.WeakKeyDictionary()


def chain_to_logits(model: nn.Module) -> Chain:
    """Modules between the last hidden states of a model and its logits, in order.

    Args:
        model: A transformers model.

    Returns:
        The chain, its last member the output layer; empty if anything else happens in between, or
        hooks could see it.
    """
    base, head = base_of(model), head_of(model)
    if base is None or not head or not all(map(is_plain, head)):
        return ()
    if model.training or model._parameters:  # noqa: SLF001 - parameters() is slow
        return ()
    key = _key(model, head)
    known = _known.get(model)
    if known is None or known[0] != key:
        known = _known[model] = key, _found(model, base, head)
    return known[1]


def head_of(model: nn.Module) -> list[nn.Module]:
    """Modules of a transformers model outside of its base."""
    base = base_of(model)
    parts = [each for each in model._modules.values() if each is not None and each is not base]  # noqa: SLF001
    return [module for part in parts for module in modules_of(part)]


def _key(model: nn.Module, head: list[nn.Module]) -> Hashable:
    """Key that changes with anything that may make a step of the head an identity, or undo it."""
    numbers = [
        value
        for each in (model, getattr(model, "config", None))
        for value in vars(each).values()
        if isinstance(value, (int, float))
    ]
    versions = [
        parameter._version  # noqa: SLF001 - as autograd itself does
        for module in head
        for parameter in module._parameters.values()  # noqa: SLF001
        if parameter is not None and not parameter.is_inference()
    ]
    return (*map(id, (type(model), *head)), *versions, *numbers)


class _Base(nn.Module):
    """Stands for the base of a model, or any part of it: returns fixed hidden states."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def __getattr__(self, name: str) -> Any:
        """A part that some heads call separately."""
        return self

    def forward(self, *_args: Any, **_kwargs: Any) -> _Output:
        return _Output(self.states)


class _Output(dict[str, Any]):
    """Output of a base: hidden states, and nothing else."""

    def __init__(self, states: Tensor) -> None:
        super().__init__(last_hidden_state=states)

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, name: Any) -> Any:
        return self["last_hidden_state"] if name == 0 else super().__getitem__(name)


@torch.no_grad()
def _found(model: Any, base: nn.Module, head: list[nn.Module]) -> Chain:
    try:
        weight = model.get_output_embeddings().weight
        width = model.config.get_text_config().hidden_size
        states = torch.linspace(-1, 1, 2 * width, device=weight.device, dtype=weight.dtype)
    except (AttributeError, NotImplementedError, RuntimeError):
        return ()
    states = states.view(1, 2, width)
    twin = copy.copy(model)
    twin._modules = {  # noqa: SLF001 - no public name
        name: _Base(states) if module is base else module
        for name, module in model._modules.items()  # noqa: SLF001
    }
    calls: list[_Call] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        tensors = [each for each in (*args, output) if isinstance(each, Tensor)]
        if len(args) == 1 and len(tensors) == 2:
            calls.append(_Call(module, *tensors))

    with hooked(_without_adapters(head), after=note):
        try:  # its forward, as hooks are for calls of the model
            logits = twin.forward(torch.zeros(1, 2, dtype=torch.long, device=states.device)).logits
        except Exception:  # noqa: BLE001 - its head needs more from its base
            return ()
    return tuple(_way(logits, states, calls) or ())


def _without_adapters(head: list[nn.Module]) -> list[nn.Module]:
    """Modules of a head without the parts of adapters, which may be turned off and on."""
    adapters = [module for module in head if hasattr(module, "base_layer")]
    parts = {part for module in adapters for part in modules_of(module)} - {*adapters}
    return [module for module in head if module not in parts]


def _way(current: Any, states: Tensor, calls: list[_Call]) -> list[nn.Module] | None:
    """Modules that lead from the states to a tensor; inner ones rather than outer ones."""
    if not isinstance(current, Tensor):
        return None
    if _same(current, states):
        return []
    for index, call in enumerate(calls):
        if _same(call.output, current):
            before = _way(call.taken, states, calls[:index])
            if before is not None:
                return [*before, call.module]
    return None


class _Call(NamedTuple):
    """Call of a module with one tensor."""

    module: nn.Module
    taken: Tensor
    output: Tensor


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
