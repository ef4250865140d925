"""Whether a module computes what its rule takes it to compute: compared once, on the first call.

A declaration says that something is a norm, or an element-wise activation. The rules have formulas
for these; a module that computes something else would get relevances that look right.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.rules.sparse import is_transformed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

__all__ = [
    "FirstCall",
    "agrees",
    "is_linear_in_numbers",
    "leaves_others_alone",
    "note_linear",
    "own_linear_layers",
    "require_inline",
    "require_norm",
]

_TOLERANCE: Final = 1e-3
"""Relative to the largest number: families compute norms in float32 whatever their precision."""

_TOLERANCE_OF_HALF: Final = 5e-2
"""In float16 and bfloat16, where values are rounded several times."""

_ROWS: Final = 8
"""So many rows of a tensor are compared."""


@dataclass(eq=False)
class FirstCall:
    """Whether a comparison is still to be made.

    Attributes:
        done: Whether it has been made.
    """

    done: bool = False

    def is_due(self, *tensors: Tensor) -> bool:
        """Whether it can be made now: with values that can be looked at, and that say something."""
        if self.done or not all(map(_has_values, tensors)):
            return False
        return all(bool(each.isfinite().all()) and bool((each != 0).any()) for each in tensors)


def _has_values(tensor: Tensor) -> bool:
    simulated = type(tensor).__module__.startswith("torch._subclasses.")  # while compiling
    return not (tensor.is_meta or simulated or is_transformed(tensor))


def agrees(found: Tensor, expected: Tensor, source: Tensor) -> bool:
    """Whether two tensors are equal up to rounding, in the precision that they were computed in.

    Args:
        found: One tensor.
        expected: The other one.
        source: What they were computed from; under autocast its precision may be a lower one.
    """
    half = (torch.float16, torch.bfloat16)
    rough = any(each.dtype in half for each in (found, expected, source))
    rough = rough or torch.is_autocast_enabled(found.device.type)
    tolerance = _TOLERANCE_OF_HALF if rough else _TOLERANCE
    found, expected = found.float(), expected.float()
    scale = torch.maximum(found.abs().max(), expected.abs().max())
    return bool((found - expected).abs().max() <= tolerance * scale)


def require_norm(
    path: str,
    module: nn.Module,
    x: Tensor,
    value: Tensor,
    formula: Callable[[Tensor, bool, float], Tensor],
    declared: tuple[bool, float],
) -> None:
    """Refuse a norm that is not the declared one.

    Args:
        path: Of the norm.
        module: The norm.
        x: Its input.
        value: Its output.
        formula: The norm of an input; whether the mean is subtracted, and what is added to the
            stored weight, are its other arguments.
        declared: What is declared of these two.

    Raises:
        ValueError: If the output is another one than the formula's.
    """
    dims = len(getattr(module, "normalized_shape", (1,)))
    rows, values = (each.detach().flatten(0, -dims - 1)[:_ROWS] for each in (x, value))
    if agrees(values, formula(rows, *declared), rows):
        return
    kinds = [(centered, offset) for centered in (False, True) for offset in (0.0, 1.0)]
    fitting = next((kind for kind in kinds if agrees(values, formula(rows, *kind), rows)), None)
    way_out = "override its rule (NormGradient takes its ordinary gradient)"
    if fitting is not None:
        way_out = f"Norms(centered={fitting[0]}, weight_offset={fitting[1]}) describes it"
    raise ValueError(
        f"The norm {path!r} ({type(module).__name__}) does not compute what is declared, "
        f"{_in_words(*declared)}: its relevance would be wrong. {way_out[0].upper()}{way_out[1:]}."
    )


def _in_words(centered: bool, offset: float) -> str:
    kind = "(x - mean) / std" if centered else "x / rms"
    return f"{kind} * {f'({offset:g} + weight)' if offset else 'weight'}"


def leaves_others_alone(function: Callable[[Tensor], Any], z: Tensor, value: Tensor) -> bool:
    """Whether a function is element-wise: half of the elements do not depend on the others.

    Args:
        function: The function.
        z: Its input ``[B, ..., D]``.
        value: Its output.
    """
    if z.shape != value.shape:
        return False
    z, value = z.detach()[:1], value.detach()[:1]
    number = torch.arange(z.numel(), device=z.device).view(z.shape)
    others = (number + number // z.shape[-1]) % 2 == 1  # as on a chess board
    changed = function(torch.where(others, -2 * z - 1, z))
    kept = torch.zeros((), dtype=value.dtype, device=value.device)
    return agrees(torch.where(others, kept, changed), torch.where(others, kept, value), z)


def own_linear_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers of a class of their own (quantized ones) in a layer or adapter, with paths."""
    for path, each in module.named_modules():
        leaf = not any(True for _ in each.children())
        kind = type(each)
        known = kind.__module__.startswith(("torch.nn.", "transformers."))
        if leaf and "Linear" in kind.__name__ and not known:
            yield path, each


_linear: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def is_linear_in_numbers(module: nn.Module | None) -> bool:
    """Whether a layer of a class of its own has been found to be linear."""
    return module is not None and module in _linear


def note_linear(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Find out whether a layer is linear in its input, and its backward pass is its transpose.

    Rounding of activations to 8 bits passes.

    Args:
        module: The layer.
        forward: Its forward.
        x: Its input ``[..., I]``.
    """
    with torch.enable_grad():
        rows = x.detach().flatten(0, -2)[:_ROWS].clone().requires_grad_()
        output = forward(rows)
        seed = torch.cos(torch.arange(output.numel(), device=x.device)).view_as(output).to(output)
        (gradient,) = torch.autograd.grad(output, rows, seed)
    bias = getattr(module, "bias", None)
    with torch.no_grad():
        constant = torch.zeros_like(output) if bias is None else bias.to(output).expand_as(output)
        product = (output - constant).float()
        # Asking for a gradient, as above: without one another kernel might run.
        mirrored = (constant - forward((-rows).requires_grad_())).float()
        taken, given = seed.float() * product, gradient.float() * rows.float()
        difference = (taken.sum(-1) - given.sum(-1)).abs()
        same = bool((difference <= _TOLERANCE_OF_HALF * taken.abs().sum(-1)).all())
        odd = bool((mirrored - product).abs().max() <= _TOLERANCE_OF_HALF * product.abs().max())
    if same and odd:
        _linear.add(module)


def require_inline(path: str, function: str, found: Tensor, expected: Tensor) -> None:
    """Refuse a function between two modules that is not the declared one.

    Args:
        path: Of the module before it.
        function: Its declared name.
        found: What the module after it takes.
        expected: What the function would give.

    Raises:
        ValueError: If the two differ.
    """
    if not agrees(found.detach(), expected, found):
        raise ValueError(
            f"What follows {path!r} is declared as {function!r}, but the model computes something "
            "else: its relevance would be wrong. Declare the function that it is."
        )
