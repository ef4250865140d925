"""One forward pass of a forward function, rules on its graph, and gradients at its sources.

Every attribution by rules takes these three steps: run the forward function once, attach the rules
to its graph, take gradients of explained values at sources. Attributions differ in the explained
values and in the tensors where relevance is read.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import Self

from captum_lrpx import _captum
from captum_lrpx.attr.capture import captured
from captum_lrpx.attr.checks import NO_GRADIENT, CheckedForward, check_inputs, warn_of_cache
from captum_lrpx.attr.embedded import apart, embedded_ids
from captum_lrpx.attr.forward_function import aliases_with_gradients, runs_nothing_else
from captum_lrpx.forms import NewWayError, form_of
from captum_lrpx.traced import TracedPass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from captum_lrpx._captum import TargetType
    from captum_lrpx.attr.protocol import LRPRules


class ForwardPass:
    """A forward pass that can be explained inside of a ``with`` block.

    Args:
        attribution: Forward function, model, rules, and whether they are strict.
        inputs: Floating inputs and token ids, in any mixture; the first dimension is the batch.
        arguments: Further arguments of the forward function, after the inputs.
        targets: Targets within the output, checked as soon as the output is computed; None if the
            output does not matter.
        layers: Layers whose tensors are captured.
        at_input: Whether inputs of the layers are captured instead of outputs.
        watched: Whether to record the names of functions and modules.
        values: Whether to keep the result of each function, for a ledger.
        beside: Returns a context that is open while the forward function runs.
        at_inputs: Whether relevances of the inputs are wanted; token ids must be embedded then.

    Attributes:
        output: Output of the forward function ``[B, ...]``.
        sources: For each input the tensor at which its relevance is read: an alias of a floating
            input, or the embeddings of token ids.
        layers: The tensors of each captured layer.
        rules: The rules, and the graph once something has been explained.

    Raises:
        AssertionError: Captum's errors for inputs and targets that do not fit.
        ValueError: If the embeddings of token ids are not found.
    """

    output: Any
    sources: tuple[Tensor, ...]
    layers: dict[nn.Module, tuple[Tensor, ...]]
    rules: TracedPass

    def __init__(
        self,
        attribution: LRPRules,
        inputs: tuple[Tensor, ...],
        arguments: object | None,
        *,
        targets: Sequence[TargetType] | None = (),
        layers: Sequence[nn.Module] = (),
        at_input: bool = False,
        watched: bool = False,
        values: bool = False,
        beside: Callable[[TracedPass], AbstractContextManager[object]] | None = None,
        at_inputs: bool = True,
    ) -> None:
        model, forward_func = attribution.model, attribution.forward_func  # type: ignore[attr-defined]
        check_inputs(model, forward_func, inputs)
        self._args = _captum.format_additional_forward_args(arguments)
        warn_of_cache(forward_func, self._args)
        attribution.check_memory(forward_func, inputs)
        form = form_of(model, forward_func, inputs, self._args, layers, targets or ())
        self._form = None if form is None else (type(attribution), form)
        self._forward = CheckedForward(forward_func, model, targets)
        self._attribution = attribution
        self._inputs = apart(inputs)
        self._captured, self._at_input = layers, at_input
        self._watched, self._values = watched, values
        self._beside = beside
        self._at_inputs = at_inputs
        self._whole = bool(layers or beside) or not runs_nothing_else(forward_func, model)
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        """Run the forward function."""
        self.run()
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove everything from the model."""
        self._opened.close()

    def run(self) -> None:
        """Run the forward function, again if it has run before."""
        self._opened.close()
        self._opened.enter_context(self._running())

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run it; the model has its rules, and the graph lives, inside of a ``with`` block."""
        attribution = self._attribution
        aliases = aliases_with_gradients(self._inputs)
        ids = [tensor for tensor in self._inputs if not tensor.is_floating_point()]
        rules = self.rules = TracedPass(
            attribution.model,
            attribution.recipe,
            self._form,
            watched=self._watched,
            values=self._values,
            fast=attribution.economical and not self._watched,
            whole=self._whole,
            positions=sum(map(_positions, self._inputs)),
            checkpointing=attribution.checkpointing,
        )
        with torch.enable_grad(), rules.prepared():
            with (
                rules.watching(),
                embedded_ids(attribution.model, ids) as embedded,
                captured(self._captured, at_input=self._at_input) as self.layers,
                nullcontext() if self._beside is None else self._beside(rules),
            ):
                self.output = self._output(aliases, embedded)
            of_ids = iter(embedded)
            self.sources = tuple(
                alias
                if alias.is_floating_point()
                else _embedding_of(alias, next(of_ids), len(self._inputs))
                for alias in (aliases if self._at_inputs else ())
            )
            yield

    def _output(self, aliases: tuple[Tensor, ...], embedded: Sequence[list[Tensor]]) -> Any:
        given = tuple(map(_writable, aliases))
        try:
            return _captum.run_forward(self._forward, given, None, self._args)
        except ValueError as error:
            # Without a gradient because ids were embedded where it cannot be seen.
            if self._at_inputs and NO_GRADIENT in str(error) and not all(embedded):
                raise _not_embedded(len(self._inputs)) from error
            raise

    def explain(
        self,
        select: Callable[[ForwardPass], Tensor],
        at: Callable[[ForwardPass], Sequence[Tensor]] | None = None,
        *,
        at_once: int = 1,
    ) -> Tensor:
        """Attach the rules to everything between sources and a value.

        The forward function runs once more if it took a path that is not known yet, for which more
        tensors, or a larger part of the graph, have to be kept.

        Args:
            select: Returns the explained value.
            at: Returns the tensors at which relevance is read; default: the sources.
            at_once: Number of values that one backward pass will explain.

        Returns:
            The explained value.

        Raises:
            ValueError: If an operation between them has no rule, and the attribution is strict.
        """
        value = select(self)
        try:
            self.rules.attach(value, at_once=at_once)
        except NewWayError:
            self.run()
            value = select(self)
            self.rules.attach(value, at_once=at_once)
        sources = self.sources if at is None else at(self)
        self.rules.require_rules(sources, strict=self._attribution.strict)
        return value

    def relevances(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Relevances of the inputs, computed from gradients at the sources.

        Args:
            gradients: One per source, ``[B, ...]`` or, for several values, ``[K, B, ...]``; None
                for a source without a path to the explained value.
        """
        return tuple(map(_relevance, self._inputs, self.sources, gradients))


def _relevance(tensor: Tensor, source: Tensor, gradient: Tensor | None) -> Tensor:
    """Relevance of an input: of token ids, summed over their embeddings' features."""
    value = source.detach()
    product = torch.zeros_like(value) if gradient is None else value * gradient.detach()
    return product if tensor.is_floating_point() else product.sum(-1)


def _positions(tensor: Tensor) -> int:
    """Positions of an input; each pixel of an image is one."""
    if tensor.ndim > 3:
        return tensor.numel() // tensor.shape[1]
    return tensor.shape[:2].numel()


def _writable(alias: Tensor) -> Tensor:
    """A copy of an input that the forward function may change in place, as some models do."""
    if not alias.is_floating_point():
        return alias
    own = alias.clone()
    return own if own.stride() == alias.stride() else alias  # strides can change the last bits


def _embedding_of(ids: Tensor, found: list[Tensor], inputs: int) -> Tensor:
    if not found:
        raise _not_embedded(inputs)
    if len(found) > 1:
        raise ValueError(
            f"The token ids of shape {tuple(ids.shape)} are embedded {len(found)} times, so they "
            "have no single relevance: give embeddings instead of ids."
        )
    return found[0]


def _not_embedded(inputs: int) -> ValueError:
    by_place = (
        " Several inputs are passed by position: if the model expects something else there, give a "
        "forward function that names them (of an encoder-decoder, DecoderLogits(model))."
    )
    return ValueError(
        "The forward function embeds no token ids that it was given, or in no visible table of "
        f"embeddings: give embeddings instead of ids.{by_place if inputs > 1 else ''}"
    )
