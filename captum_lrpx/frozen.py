"""Temporarily frozen parameters, even if offloading replaces them meanwhile."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from captum_lrpx.module_tree import modules_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn


_frozen: dict[int, int] = {}
"""How many times a parameter is frozen, by id; guarded by the lock of its users, who keep it."""


class FrozenParameters:
    """The parameters frozen by one propagation."""

    def __init__(self) -> None:
        self._slots: list[tuple[nn.Module, str, nn.Parameter]] = []

    def freeze(self, modules: Sequence[nn.Module]) -> None:
        """Freeze the parameters of modules.

        Args:
            modules: The model, and all modules in it.

        Raises:
            RuntimeError: If they were created under ``torch.inference_mode``.
        """
        for module in modules:
            parameters = module._parameters  # noqa: SLF001 - parameters() is slow
            if not parameters:
                continue
            for name, parameter in parameters.items():
                if parameter is None:
                    continue
                if parameter.is_inference():
                    raise RuntimeError(
                        f"The parameters of {type(modules[0]).__name__} were created under "
                        "torch.inference_mode and cannot take part in a backward pass: load the "
                        "model outside of it, or explain copy.deepcopy(model), made outside."
                    )
                count = _frozen.get(id(parameter), 0)
                if count or parameter.requires_grad:
                    self._slots.append((module, name, parameter))
                    _frozen[id(parameter)] = count + 1
                    parameter.requires_grad = False

    def thaw(self) -> None:
        """Restore the flags, except of parameters that another propagation has frozen too."""
        replaced: list[tuple[nn.Parameter, nn.Parameter]] = []
        for module, name, parameter in self._slots:
            count = _frozen.pop(id(parameter), 1)
            if count > 1:
                _frozen[id(parameter)] = count - 1
            else:
                parameter.requires_grad = True
            # Offloading replaces parameters whenever their module runs.
            current = module._parameters.get(name)  # noqa: SLF001
            if current is not parameter and current is not None:
                replaced.append((current, parameter))
        for current, parameter in replaced:
            if parameter.requires_grad:
                current.requires_grad = True
        self._slots.clear()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Freeze the parameters of a model inside of a ``with`` block."""
    parameters = FrozenParameters()
    parameters.freeze(modules_of(model))
    try:
        yield
    finally:
        parameters.thaw()
