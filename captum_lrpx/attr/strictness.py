"""Refusing what no rule covers, before anything is attributed."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.capture import captured
from captum_lrpx.attr.checks import CheckedForward
from captum_lrpx.attr.forward import RecordedForward, with_gradients
from captum_lrpx.coverage import Coverage, Run, verdict
from captum_lrpx.propagation import propagation, sites_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from contextlib import AbstractContextManager

    from captum_lrpx.recipes import Recipe

__all__ = ["Passage", "coverage_of", "require"]


@dataclass(frozen=True)
class Passage:
    """The part of a forward pass that an attribution is about.

    Attributes:
        model: The Hugging Face model.
        recipe: The rules.
        forward_func: What runs the model.
        layers: Explained layers; none for inputs and outputs of the model.
        at_input: Whether what the layers take is meant.
        end: Whether the layers are where the passage ends instead of where it begins.
    """

    model: nn.Module
    recipe: Recipe
    forward_func: Callable[..., Any]
    layers: tuple[nn.Module, ...] = ()
    at_input: bool = False
    end: bool = False


def coverage_of(
    passage: Passage,
    inputs: Tensor | tuple[Tensor, ...],
    additional_forward_args: object | None,
    attach: Callable[[], AbstractContextManager[object]] | None = None,
) -> Coverage | None:
    """The operations of a passage, from a traced forward pass the first time.

    Args:
        passage: What is asked about.
        inputs: As for ``attribute``.
        additional_forward_args: As for ``attribute``.
        attach: Attaches other patches than those of the recipe.

    Returns:
        The coverage; None if what the forward function returns has no gradient.
    """
    tensors = _captum.format_tensor_into_tuples(inputs)
    args = _captum.format_additional_forward_args(additional_forward_args)
    forward_func = passage.forward_func
    if isinstance(forward_func, RecordedForward):
        forward_func = forward_func.forward_func

    def run() -> Run:
        if attach is None:
            return _run(passage, tensors, args, propagation(passage.model, passage.recipe))
        # Such patches may begin graphs of their own, wherever they do.
        return _run(passage, tensors, args, attach())._replace(attributed=[], inputs=[])

    scope: Hashable = (
        attach is not None,
        tuple(map(weakref.ref, passage.layers)),
        passage.at_input,
        passage.end,
        tuple(tensor.is_floating_point() for tensor in tensors),
        tuple(map(_kind, args or ())),
    )
    return verdict(passage.model, passage.recipe, forward_func, scope, run)


def _run(
    passage: Passage,
    inputs: tuple[Tensor, ...],
    args: tuple[Any, ...] | None,
    rules: AbstractContextManager[object],
) -> Run:
    """Explained values and what relevance is attributed to, with the rules attached."""
    embedding = sites_of(passage.model).token_embedding
    of_ids = not all(tensor.is_floating_point() for tensor in inputs)
    aliases = with_gradients(inputs)
    forward = CheckedForward(passage.forward_func, passage.model, None if passage.end else ())
    with (
        rules,
        captured([embedding] if of_ids else [], several_runs=True) as embedded,
        captured(passage.layers, at_input=passage.at_input, several_runs=True) as caught,
    ):
        output = _captum.run_forward(forward, aliases, None, args)
    explained = [output] if isinstance(output, Tensor) else []
    embeddings = list(embedded.get(embedding, ()) if of_ids else aliases)
    found = [tensor for layer in passage.layers for tensor in caught.get(layer, ())]
    if passage.end:
        return Run(found, [], embeddings)
    return Run(explained, found if passage.layers else [], embeddings)


def require(coverage: Coverage | None, *, strict: bool) -> None:
    """Refuse what is not covered, or warn of it.

    Raises:
        ValueError: If something non-linear has no rule and ``strict`` is set.
    """
    if coverage is None or coverage.complete:
        return
    if strict:
        raise ValueError(coverage.problem())
    warnings.warn(coverage.problem(), stacklevel=4)


def _kind(argument: object) -> Hashable:
    """What of an additional argument may choose another way through a forward function."""
    if isinstance(argument, Tensor):
        return "tensor"
    if argument is None or isinstance(argument, (bool, str)):
        return argument
    if isinstance(argument, Mapping):
        return tuple((str(key), _kind(value)) for key, value in argument.items())
    return type(argument).__name__
