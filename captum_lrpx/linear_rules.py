"""Rules of linear layers: slopes that a recipe, or ``module.rule``, replaces."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.nn.modules.conv import _ConvNd

from captum_lrpx.module_patches import Attachment
from captum_lrpx.rules.captum_rules import captum_rule, warn_of_unused_rules

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.rules.base import Forward


def linear_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Linear layers and convolutions of a model with their paths, adapters around them included."""
    found: dict[nn.Module, str] = {}
    adapter = ""
    for path, module in model.named_modules():
        if adapter and path.startswith(f"{adapter}."):
            continue  # a part of the sum that the adapter computes, not a separate layer
        if hasattr(module, "base_layer"):
            adapter = path
            found[module] = path
        elif isinstance(module, (nn.Linear, _ConvNd)) or _is_linear_by_name(module):
            found[module] = path
    return found


def linear_attachments(
    model: nn.Module, modules: Sequence[nn.Module], recipe: Recipe
) -> list[Attachment]:
    """Attachments that the linear layers of a model need, for most recipes none.

    Args:
        model: The model.
        modules: All modules in it.
        recipe: The rules.

    Raises:
        TypeError: If a rule does not fit its layer.
    """
    attachments = with_own_gradients(model, modules)
    with_rules = any("rule" in vars(module) for module in modules)
    overridden = any(override.rule.role == "linear" for override in recipe.overrides)
    if not (with_rules or overridden) and recipe.linear.leaves_alone:
        return attachments
    layers = linear_layers(model)
    if with_rules:
        warn_of_unused_rules(model, layers.keys())
    for module, path in layers.items():
        rule: Any = captum_rule(module, path) or recipe.rule_for("linear", path)
        patch = rule.patch(module, path)
        if patch is not None:
            attachments.append(Attachment(module, patch))
    return attachments


def with_own_gradients(model: nn.Module, modules: Sequence[nn.Module]) -> list[Attachment]:
    """Attachments that make linear layers of foreign classes differentiable, or refuse them.

    Args:
        model: The model.
        modules: All modules in it.
    """
    return [
        Attachment(module, _RequireGradient(module, model))
        for module in modules
        if _is_foreign(type(module).__module__, type(module).__name__) and _is_whole(module)
    ]


def _is_linear_by_name(module: nn.Module) -> bool:
    """Whether a class other than ``nn.Linear`` is a linear layer (quantized, transposed)."""
    name = type(module).__name__
    return "Linear" in name or name == "Conv1D"


@cache
def _is_foreign(module: str, name: str) -> bool:
    """Whether a class is a foreign linear layer, such as a quantized one."""
    return not module.startswith(("torch.nn.", "transformers.")) and "Linear" in name


def _is_whole(module: nn.Module) -> bool:
    """Whether no other module computes for it; PyTorch's quantized layers have inner weights."""
    return not module._modules or type(module).__module__.startswith("torch.ao.")  # noqa: SLF001


@dataclass(frozen=True, eq=False)
class _RequireGradient:
    """Checks that a custom linear layer is differentiable; some quantized layers are not.

    As the computation of the layer is unknown, its linearity is measured once.

    Attributes:
        module: The layer.
        model: The model around it.
    """

    module: nn.Module
    model: nn.Module

    def __call__(self, forward: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer and check that its output has a graph back to its input."""
        wanted = torch.is_grad_enabled() and x.requires_grad
        if not x.requires_grad and x.is_floating_point() and not self._trained():
            # For inputs without a gradient bitsandbytes packs the weights for inference only.
            with torch.no_grad():
                return forward(x.detach().requires_grad_(), *args, **kwargs)
        output = forward(x, *args, **kwargs)
        if wanted and not _has_gradient(output, x):
            self.module.state_dict()  # unpacks the weights
            output = forward(x, *args, **kwargs)
        if wanted and not _has_gradient(output, x):
            kind = type(self.module)
            path = next(path for path, each in self.model.named_modules() if each is self.module)
            raise RuntimeError(
                f"The layer {path!r} ({kind.__module__}.{kind.__name__}) has no backward "
                "pass in PyTorch, as layers with dynamic int8 quantization have none: all "
                "relevance would be lost there. Explain the model before it is quantized, or "
                "quantize its weights only."
            )
        if wanted and not (args or kwargs) and self.module not in _measured:
            with saved_tensors_hooks(_as_it_is, _as_it_is):  # not part of the pass
                _measured[self.module] = _is_linear(self.module, forward, x)
        return output

    def _trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.module.parameters())


_measured: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
_ROWS: Final = 8
"""Rows of an input used for the comparison."""
_TOLERANCE: Final = 5e-2
"""Relative; activations may be rounded to 8 bits inside."""


def is_linear_in_numbers(module: nn.Module) -> bool:
    """Whether a custom linear layer was measured to be linear."""
    return _measured.get(module, False)


def _is_linear(module: nn.Module, forward: Forward, x: Tensor) -> bool:
    """Measure whether a layer ``[..., I]`` is linear, and its backward pass its transpose."""
    with torch.enable_grad():
        rows = x.detach().flatten(0, -2)[:_ROWS].clone()
        if not rows.any():  # of zeros, anything is linear
            rows = torch.cos(torch.arange(rows.numel(), device=x.device)).view_as(rows).to(rows)
        rows.requires_grad_()
        output = forward(rows)
        seed = torch.cos(torch.arange(output.numel(), device=x.device)).view_as(output).to(output)
        (gradient,) = torch.autograd.grad(output, rows, seed)
        # With a gradient, as above: otherwise another kernel might run.
        mirrored = forward((-rows.detach()).requires_grad_()).detach()
    bias = getattr(module, "bias", None)
    constant = torch.zeros_like(output) if bias is None else bias.to(output).expand_as(output)
    product = (output.detach() - constant.detach()).float()
    taken, given = seed.float() * product, gradient.float() * rows.detach().float()
    difference = (taken.sum(-1) - given.sum(-1)).abs()
    is_transpose = (difference <= _TOLERANCE * taken.abs().sum(-1)).all()
    beside = (constant.detach() - mirrored - product).abs().max()
    return bool(is_transpose & (beside <= _TOLERANCE * product.abs().max()))


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _has_gradient(output: Tensor, x: Tensor) -> bool:
    """Whether all operations between two tensors have a backward pass.

    For others PyTorch records one that warns and returns zeros.
    """
    if not output.requires_grad:
        return False
    return not any("NotImplemented" in name for name in _between(output, x))


def _between(output: Tensor, x: Tensor) -> Iterator[str]:
    """Names of the nodes between two tensors."""
    seen = {get_gradient_edge(x).node}
    nodes = [get_gradient_edge(output).node]
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            yield node.name()
            nodes += [before for before, _ in node.next_functions if before is not None]
