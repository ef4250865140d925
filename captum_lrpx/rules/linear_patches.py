"""What a rule does to one linear layer: a gradient that is scaled, or known to be mostly zero.

A plain layer with frozen weights gets a backward pass of its own in one step; any other one (a
quantized layer, an adapter, a layer with a rule of its own) keeps its graph, and the rule is an
operation behind or before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from captum_lrpx.rules import functional, sparse
from captum_lrpx.rules.verified import FirstCall, note_linear

if TYPE_CHECKING:
    from torch import Tensor

    from captum_lrpx.rules.patches import Forward

__all__ = [
    "RequireGradient",
    "ScaleFeatureGradients",
    "ScaleInputGradient",
    "ScaleOutputGradient",
    "SparseRows",
    "weight_and_bias",
]

_MOST_PARTS: Final = 4
"""A fused projection whose parts are interleaved by head has many more."""


@dataclass(frozen=True, eq=False)
class ScaleOutputGradient:
    """The gradient of the module's output is multiplied by a factor.

    Attributes:
        factor: The factor.
        module: The module.
    """

    factor: float
    module: nn.Module

    @property
    def output_scale(self) -> float:
        """What a gradient caught behind the module lacks."""
        return self.factor

    def __call__(self, forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module and scale the gradient of what it returns."""
        if not kwargs and len(args) == 1 and _takes_slope(self.module, forward, args[0]):
            return _scaled(self.module, forward, args[0], (self.factor,))
        return functional.scale_gradient(forward(*args, **kwargs), self.factor)


@dataclass(frozen=True, eq=False)
class ScaleFeatureGradients:
    """The gradient of each output feature of a linear layer is multiplied by a factor of its own.

    Attributes:
        factors: One factor per output feature.
        module: The layer.
    """

    factors: Tensor
    module: nn.Module
    _parts: tuple[sparse.Part, ...] | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parts", _few_parts(self.factors))

    @property
    def output_scale(self) -> Tensor:
        """What a gradient caught behind the module lacks."""
        return self.factors

    def __call__(self, forward: Forward, x: Tensor) -> Tensor:
        """Run the layer and scale the gradient of what it returns."""
        if self._parts is not None and _takes_slope(self.module, forward, x):
            return _scaled(self.module, forward, x, self._parts)
        output: Tensor = forward(x)
        factors = self.factors.to(device=output.device, dtype=output.dtype)
        return functional.scale_gradient(output, factors)


@dataclass(frozen=True, eq=False)
class ScaleInputGradient:
    """The gradient of the module's first input is multiplied by a factor.

    Attributes:
        factor: The factor.
        module: The module.
    """

    factor: float
    module: nn.Module

    @property
    def input_scale(self) -> float:
        """What a gradient caught before the module has too much."""
        return 1.0 / self.factor

    def __call__(self, forward: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Scale the gradient of ``x`` and run the module."""
        if not args and not kwargs and _takes_slope(self.module, forward, x):
            return _scaled(self.module, forward, x, (self.factor,))
        return forward(functional.scale_gradient(x, self.factor), *args, **kwargs)


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A linear layer behind all attention: its backward pass skips what is not explained.

    Attributes:
        module: The layer: the output layer of a language model, or one of the last block.
    """

    module: nn.Module

    def __call__(self, forward: Forward, x: Tensor) -> Tensor:
        """Run the layer."""
        value: Tensor
        if not _takes_slope(self.module, forward, x):
            value = forward(x)
            return value
        with torch.no_grad():
            value = forward(x)
        return sparse.row_sparse_linear(x, value, weight_and_bias(self.module)[0])


@dataclass(frozen=True, eq=False)
class RequireGradient:
    """A linear layer of a class of its own must have a gradient: not all quantized ones have.

    Attributes:
        path: Of the layer.
        module: The layer.
        own: Whether it is a layer of a class of its own, and not an adapter around one.
    """

    path: str
    module: nn.Module
    own: bool = False
    _first: FirstCall = field(default_factory=FirstCall)

    def __call__(self, forward: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer and look whether its output has a graph back to its input."""
        wanted = torch.is_grad_enabled() and x.requires_grad
        if self.own and not x.requires_grad and x.is_floating_point() and not _trained(self.module):
            # For inputs without a gradient bitsandbytes packs the weights for a kernel without one.
            with torch.no_grad():
                return forward(x.detach().requires_grad_(), *args, **kwargs)
        output = forward(x, *args, **kwargs)
        if wanted and self.own and not _has_gradient(output, x):
            self.module.state_dict()  # unpacks them
            output = forward(x, *args, **kwargs)
        if wanted and not _has_gradient(output, x):
            kind = type(self.module)
            raise RuntimeError(
                f"The layer {self.path!r} ({kind.__module__}.{kind.__name__}) has no backward "
                "pass in PyTorch, as layers with dynamic int8 quantization have none: all "
                "relevance would be lost there. Explain the model before it is quantized, or "
                "quantize its weights only."
            )
        if wanted and self.own and not args and not kwargs and self._first.is_due(x, output):
            note_linear(self.module, forward, x)
            self._first.done = True
        return output


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _has_gradient(output: Tensor, x: Tensor) -> bool:
    """Whether all operations between two tensors have a backward pass.

    For those that have none PyTorch records one that warns and gives zeros.
    """
    if not output.requires_grad:
        return False
    seen = {get_gradient_edge(x).node}
    nodes = [get_gradient_edge(output).node]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if "NotImplemented" in node.name():
            return False
        nodes += [before for before, _ in node.next_functions if before is not None]
    return True


def _few_parts(factors: Tensor) -> tuple[sparse.Part, ...] | None:
    """Ranges of features of one factor, without those of 0; None if they are many or none."""
    values, lengths = torch.unique_consecutive(factors, return_counts=True)
    stops = lengths.cumsum(0)
    ranges = zip((stops - lengths).tolist(), stops.tolist(), values.tolist(), strict=True)
    parts = tuple(sparse.Part(*part) for part in ranges if part[2] != 0)
    return parts if 0 < len(parts) <= _MOST_PARTS else None


def _takes_slope(module: nn.Module, forward: Forward, x: Tensor) -> bool:
    """Whether a linear layer can be given another slope instead of that of its own operations.

    Not if ``forward`` is that of another patch, which has given it a slope already, or a function
    that somebody put in the place of the layer's own.
    """
    own = getattr(forward, "__func__", None) is type(module).forward
    wanted = torch.is_grad_enabled() and x.requires_grad
    return own and wanted and sparse.is_plain_linear(module)


def _scaled(
    module: nn.Module, forward: Forward, x: Tensor, parts: tuple[sparse.Part, ...] | tuple[float]
) -> Tensor:
    """Run a linear layer without a graph and give it its own slope times factors."""
    with torch.no_grad():
        value: Tensor = forward(x)
    weight, _ = weight_and_bias(module)
    if not isinstance(parts[0], sparse.Part):
        parts = (sparse.Part(0, weight.shape[0], parts[0]),)
    return sparse.scaled_linear(x, value, weight, parts)


def weight_and_bias(module: nn.Module, path: str = "a layer") -> tuple[Tensor, Tensor | None]:
    """Weight ``[out, in]`` and bias of a linear layer.

    Args:
        module: ``torch.nn.Linear``, or transformers' ``Conv1D``, which stores its weight
            transposed.
        path: For the error message.

    Raises:
        TypeError: If the layer keeps no plain weight (a quantized layer, a LoRA adapter): rules
            that
            split the weights by sign cannot be applied to it.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    plain = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    if not plain or not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        raise TypeError(
            f"The rule needs the weight of {path!r}, but {type(module).__name__} has no plain "
            "floating-point weight: use Epsilon for this layer, or merge the adapter."
        )
    if type(module).__name__ == "Conv1D":
        weight = weight.t()
    return weight, bias
