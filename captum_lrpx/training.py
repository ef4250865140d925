"""Training mode: what of a model is random in it, or depends on the rest of a batch."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _NormBase

from captum_lrpx.notices import warn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

__all__ = ["already_warned", "refuse_checkpointed", "warn_if_training"]

_said = threading.local()


@contextmanager
def already_warned(model: nn.Module) -> Iterator[None]:
    """Within the ``with`` block, what there is to say about a model has been said."""
    before: frozenset[int] = getattr(_said, "models", frozenset())
    _said.models = before | {id(model)}
    try:
        yield
    finally:
        _said.models = before


def warn_if_training(modules: Sequence[nn.Module]) -> None:
    """Warn if explanations of a model are random, or depend on the other rows of a batch.

    Training mode alone is no reason: without dropout it changes nothing.

    Args:
        modules: The model, and all modules in it.
    """
    training = [module for module in modules if module.training]
    if not training or id(modules[0]) in getattr(_said, "models", ()):
        return
    model = type(modules[0]).__name__
    if any(map(_drops, training)):
        warn(
            f"{model} is in training mode: its dropout is random, and so is the explanation. Call "
            "model.eval() first."
        )
    if any(isinstance(module, _NormBase) for module in training):
        warn(
            f"{model} is in training mode: its batch norm takes the statistics of the batch and "
            "changes those that it keeps. Call model.eval() first."
        )


def refuse_checkpointed(modules: Sequence[nn.Module]) -> None:
    """Refuse a model whose own gradient checkpointing would hide its graph.

    Args:
        modules: The model, and all modules in it.

    Raises:
        ValueError: If it is turned on, and the model in training mode, in which it takes effect.
    """
    if any(each.training and getattr(each, "gradient_checkpointing", False) for each in modules):
        raise ValueError(
            f"{type(modules[0]).__name__} computes parts of itself again in the backward pass "
            "(gradient checkpointing in training mode), so its graph is not there to be read: call "
            "model.eval() first, or model.gradient_checkpointing_disable()."
        )


def _drops(module: nn.Module) -> bool:
    """Whether a module in training mode leaves out a part at random.

    Dropout is a module of its own, or a function of a number that a module keeps.
    """
    own = vars(module)
    numbers = [value for name, value in own.items() if "drop" in name and isinstance(value, float)]
    if "Drop" in type(module).__name__:
        numbers.append(own.get("p", 0.0))
    return any(value > 0 for value in numbers if isinstance(value, (int, float)))
