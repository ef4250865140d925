"""Training mode: parts of a model that are random, or depend on the rest of a batch."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _NormBase

from captum_lrpx.notices import warn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn


_said = threading.local()


@contextmanager
def already_warned(model: nn.Module) -> Iterator[None]:
    """Within the ``with`` block, suppress warnings about a model that have been given."""
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
            f"{model} is in training mode: its batch norm uses the statistics of the batch and "
            "changes its running statistics. Call model.eval() first."
        )


def warn_if_dropping(modules: Sequence[nn.Module], where: Sequence[str]) -> None:
    """Warn if a function drops values at random although no module is in training mode.

    Args:
        modules: The model, and all modules in it.
        where: Paths of the modules in which a function does so.
    """
    said = id(modules[0]) in getattr(_said, "models", ())
    if not where or said or any(module.training for module in modules):
        return
    places = ", ".join(repr(path) for path in where if path)
    warn(
        f"{type(modules[0]).__name__} drops values at random although it is in evaluation mode"
        f"{f', in {places}' if places else ''}, and so the explanation is random: "
        "`F.dropout` needs `training=self.training`, and `scaled_dot_product_attention` no "
        "`dropout_p`."
    )


def checkpointed(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Modules of transformers with gradient checkpointing, which hides their graphs.

    Args:
        modules: The model, and all modules in it.
    """
    return [
        each
        for each in modules
        if each.training and vars(each).get("gradient_checkpointing") is True
    ]


@contextmanager
def without_checkpoints(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the ``with`` block, disable gradient checkpointing of modules.

    Args:
        modules: The result of :func:`checkpointed`.
    """
    for module in modules:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in modules:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def _drops(module: nn.Module) -> bool:
    """Whether a module in training mode drops a part at random.

    Dropout is a separate module, or a function of a number that a module keeps.
    """
    own = vars(module)
    numbers = [value for name, value in own.items() if "drop" in name and isinstance(value, float)]
    if "Drop" in type(module).__name__:
        numbers.append(own.get("p", 0.0))
    return any(value > 0 for value in numbers if isinstance(value, (int, float)))
