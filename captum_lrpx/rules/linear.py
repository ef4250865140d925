"""Rules for linear layers and convolutions. The default, epsilon = 0, is their own gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from captum_lrpx.parallel import is_spread
from captum_lrpx.rules import functional
from captum_lrpx.rules.declarations import Rule

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx.rules.functional import Apply

Forward = Callable[..., Any]
Patch = Callable[..., Any]
"""``patch(forward, *args, **kwargs)`` returns what ``forward(*args, **kwargs)`` returns."""


class LinearRule(Rule):
    """Base class of rules for linear layers."""

    role: ClassVar[str] = "linear"

    @property
    def leaves_alone(self) -> bool:
        """Whether the rule is the ordinary gradient, whatever the layer."""
        return False

    @abstractmethod
    def patch(self, module: nn.Module, path: str) -> Patch | None:
        """Replacement of a layer's forward, with the same values; None if none is needed.

        Args:
            module: The layer.
            path: Its path in the model, for messages.

        Raises:
            TypeError: If the layer has no weights that the rule can split.
        """


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """LRP-epsilon (Bach et al. 2015; Arras et al. 2025, D.1).

    Formula: :func:`captum_lrpx.rules.functional.epsilon`.

    Attributes:
        stabilizer: epsilon >= 0, in units of the layer's output; 0 leaves the layer alone.
    """

    conserves: ClassVar[bool] = True

    stabilizer: float = 0.0

    def __post_init__(self) -> None:
        _check_non_negative("epsilon", self.stabilizer)

    @property
    def leaves_alone(self) -> bool:
        """Whether epsilon is 0."""
        return self.stabilizer == 0

    def patch(self, module: nn.Module, path: str) -> Patch | None:  # noqa: ARG002 - of any class
        """Damp the gradient of the output."""
        return None if self.leaves_alone else damped(self.stabilizer)


@dataclass(frozen=True)
class Alpha1Beta0(LinearRule):
    """LRP-alpha1-beta0: only positive contributions count (Bach et al. 2015; Arras et al., D.2).

    Formula: :func:`captum_lrpx.rules.functional.alpha1_beta0`.
    """

    conserves: ClassVar[bool] = True

    def patch(self, module: nn.Module, path: str) -> Patch:
        """Replace the layer's slope."""
        return with_weights(module, path, functional.alpha1_beta0)


@dataclass(frozen=True)
class Gamma(LinearRule):
    """Generalized LRP-gamma (Montavon et al. 2019; Achtibat et al. 2024).

    Formula: :func:`captum_lrpx.rules.functional.gamma`.

    Attributes:
        strength: gamma >= 0.
    """

    conserves: ClassVar[bool] = True

    strength: float = 0.25

    def __post_init__(self) -> None:
        _check_non_negative("gamma", self.strength)

    def patch(self, module: nn.Module, path: str) -> Patch:
        """Replace the layer's slope."""
        return with_weights(module, path, partial(functional.gamma, strength=self.strength))


def _check_non_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} must be a number >= 0, not {value!r}.")


def damped(stabilizer: float) -> Patch:
    """Patch of a layer that damps the gradient of small outputs."""

    def patch(forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        return functional.epsilon(forward(*args, **kwargs), stabilizer)

    return patch


def with_weights(module: nn.Module, path: str, formula: Callable[..., Tensor]) -> Patch:
    """Patch of a linear layer whose slope is a formula of its weights.

    Args:
        module: The layer.
        path: Its path in the model, for messages.
        formula: ``formula(apply, x, value, weight, bias)`` returns ``value``, with another slope.

    Raises:
        TypeError: If the layer keeps no plain weight.
    """
    _weights_of(module, path)  # refuse now, not during the forward pass

    def patch(forward: Forward, x: Tensor) -> Tensor:
        with torch.no_grad():
            value: Tensor = forward(x)
        apply, weight, bias = _weights_of(module, path)
        if is_spread(weight):  # fully_shard gathers it while the layer runs
            raise TypeError(
                f"The rule needs all of the weight of {path!r}, which is spread over processes: "
                "use Epsilon for this layer, or load the model without a tp_plan."
            )
        return formula(apply, x, value, weight, bias)

    return patch


def _weights_of(module: nn.Module, path: str) -> tuple[Apply, Tensor, Tensor | None]:
    """A linear layer as a function, its weight ``[out, in]`` or of a convolution, and its bias.

    Args:
        module: ``torch.nn.Linear``, a convolution, or transformers' ``Conv1D``, which stores its
            weight transposed.
        path: For the error message.

    Raises:
        TypeError: If the layer keeps no plain weight (a quantized layer, a LoRA adapter).
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    convolution = isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
    transposed = type(module).__name__ == "Conv1D"
    plain = convolution or transposed or isinstance(module, nn.Linear)
    if not plain or not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        raise TypeError(
            f"The rule needs the weight of {path!r}, but {type(module).__name__} has no plain "
            "floating-point weight: use Epsilon for this layer, or merge the adapter."
        )
    apply: Any = module._conv_forward if convolution else F.linear  # noqa: SLF001 - knows all modes
    return apply, weight.t() if transposed else weight, bias
