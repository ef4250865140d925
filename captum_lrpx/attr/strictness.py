"""Refusing what no rule covers, in the very run that is attributed.

A forward function may have a state (a cache of keys and values, a counter), so it runs as often as
Captum would run it: the pass that is attributed is watched the first time, and what no rule covers
is refused between this forward pass and the backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.caches import warn_of_cache
from captum_lrpx.attr.capture import captured
from captum_lrpx.attr.checks import CheckedForward
from captum_lrpx.attr.finite import own_copy
from captum_lrpx.attr.forward import RecordedForward, with_gradients
from captum_lrpx.coverage import Coverage, Inquiry, Run
from captum_lrpx.coverage.strict import key_of
from captum_lrpx.notices import warn
from captum_lrpx.propagation import plain_propagation, sites_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from contextlib import AbstractContextManager

    from captum_lrpx.attr.protocol import LRPRules
    from captum_lrpx.recipes import Recipe

__all__ = ["Check", "Passage", "check", "coverage_of", "form_of", "require"]


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
        cut: Whether other patches than those of the recipe are attached, which may begin graphs of
            their own.
    """

    model: nn.Module
    recipe: Recipe
    forward_func: Callable[..., Any]
    layers: tuple[nn.Module, ...] = ()
    at_input: bool = False
    end: bool = False
    cut: bool = False

    def inquiry(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> Inquiry:
        """The question what of this passage is covered, for inputs of one kind."""
        forward_func = self.forward_func
        if isinstance(forward_func, RecordedForward):
            forward_func = forward_func.forward_func
        scope: Hashable = (
            self.cut,
            tuple(map(weakref.ref, self.layers)),
            self.at_input,
            self.end,
            tuple(tensor.is_floating_point() for tensor in inputs),
            tuple(map(_kind, args or ())),
        )
        return Inquiry(self.model, self.recipe, forward_func, scope)

    def run(
        self, output: object, inputs: Iterable[Tensor] = (), layers: Iterable[Tensor] = ()
    ) -> Run:
        """What a forward pass has led to.

        Args:
            output: What the forward function returned.
            inputs: Embeddings, or floating inputs.
            layers: What the explained layers took or gave.
        """
        if self.cut:
            inputs = ()
        if self.end:
            return Run(list(layers), [], list(inputs))
        explained = [output] if isinstance(output, Tensor) else []
        return Run(explained, list(layers), list(inputs))


class Check(NamedTuple):
    """A check of coverage that is still to be made, in the run that is attributed.

    Attributes:
        passage: What is explained.
        inquiry: What is not known yet.
        strict: Whether something non-linear without a rule is an error.
    """

    passage: Passage
    inquiry: Inquiry
    strict: bool

    def around(
        self,
        inputs: Callable[[], Iterable[Tensor]],
        layers: Callable[[], Iterable[Tensor]] = tuple,
    ) -> Callable[[Callable[[], Any]], Any]:
        """What :class:`RecordedForward` runs a forward function in.

        Args:
            inputs: Gives embeddings, or floating inputs, once the function has run.
            layers: Gives what the explained layers took or gave, likewise.
        """

        def watched(call: Callable[[], Any]) -> Any:
            with self.inquiry.watching() as seen:
                output = call()
            found = seen.coverage(self.passage.run(output, inputs(), layers()))
            require(found, strict=self.strict)
            return output

        return watched


def check(
    passage: Passage,
    inputs: Tensor | tuple[Tensor, ...],
    additional_forward_args: object | None,
    *,
    strict: bool,
) -> Check | None:
    """Refuse, or warn of, something non-linear without a rule.

    Args:
        passage: What is explained.
        inputs: As for ``attribute``.
        additional_forward_args: As for ``attribute``.
        strict: Whether to refuse it.

    Returns:
        None if the coverage is known; else the check that is to be made in the run.

    Raises:
        ValueError: If there is such a thing, as is known, and ``strict`` is set.
    """
    tensors = _captum.format_tensor_into_tuples(inputs)
    args = _captum.format_additional_forward_args(additional_forward_args)
    warn_of_cache(passage.forward_func, args)
    inquiry = passage.inquiry(tensors, args)
    known = inquiry.known()
    if known is None:
        return Check(passage, inquiry, strict)
    require(known, strict=strict)
    return None


def form_of(
    attribution: LRPRules,
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    arguments: object | None,
    layers: Iterable[nn.Module],
    targets: Iterable[object] = (),
) -> Hashable | None:
    """What calls of the same operations have in common; None for what is not recognized again."""
    forward = key_of(forward_func, attribution.model)
    if forward is None:
        return None
    args = _captum.format_additional_forward_args(arguments)
    kinds = tuple((tensor.dtype, tensor.ndim) for tensor in inputs)
    chosen = tuple((type(target), type(target) is tuple and len(target)) for target in targets)
    return forward, kinds, tuple(map(_kind, args or ())), tuple(map(weakref.ref, layers)), chosen


def require(coverage: Coverage | None, *, strict: bool) -> None:
    """Refuse what is not covered, or warn of it.

    Raises:
        ValueError: If something non-linear has no rule and ``strict`` is set.
    """
    if coverage is None or coverage.complete:
        return
    if strict:
        raise ValueError(coverage.problem())
    warn(coverage.problem())


# A pass of its own -------------------------------------------------------------------------------


def coverage_of(
    passage: Passage,
    inputs: Tensor | tuple[Tensor, ...],
    additional_forward_args: object | None,
    attach: Callable[[], AbstractContextManager[object]] | None = None,
) -> Coverage | None:
    """The operations of a passage, from a forward pass of its own if they are not known.

    It runs on copies of all arguments that are no tensors, such as caches.

    Args:
        passage: What is asked about.
        inputs: As for ``attribute``.
        additional_forward_args: As for ``attribute``.
        attach: Attaches the patches of a passage that is cut.

    Returns:
        The coverage; None if what the forward function returns has no gradient.
    """
    tensors = _captum.format_tensor_into_tuples(inputs)
    args = _captum.format_additional_forward_args(additional_forward_args)
    inquiry = passage.inquiry(tensors, args)
    rules = attach or partial(plain_propagation, passage.model, passage.recipe)
    return inquiry.known() or inquiry.traced(lambda: _run(passage, tensors, args, rules()))


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
    own = None if args is None else tuple(map(own_copy, args))
    forward = CheckedForward(passage.forward_func, passage.model, None if passage.end else ())
    with (
        rules,
        captured([embedding] if of_ids else [], several_runs=True) as embedded,
        captured(passage.layers, at_input=passage.at_input, several_runs=True) as caught,
    ):
        output = _captum.run_forward(forward, aliases, None, own)
    embeddings = embedded.get(embedding, ()) if of_ids else aliases
    found = [tensor for layer in passage.layers for tensor in caught.get(layer, ())]
    return passage.run(output, embeddings, found)


def _kind(argument: object) -> Hashable:
    """What of an additional argument may choose another way through a forward function."""
    if isinstance(argument, Tensor):
        return "tensor"
    if argument is None or isinstance(argument, (bool, str)):
        return argument
    if isinstance(argument, Mapping):
        return tuple((str(key), _kind(value)) for key, value in argument.items())
    return type(argument).__name__
