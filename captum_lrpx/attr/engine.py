"""One forward pass of a forward function, the rules on its graph, and gradients at its sources.

Every attribution by rules is the same three steps: run the forward function once, put the rules on
the graph that it has left, take gradients of values at sources. What differs is what is explained,
and at which tensors.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrpx import _captum
from captum_lrpx.attr.caches import warn_of_cache
from captum_lrpx.attr.capture import captured
from captum_lrpx.attr.checks import NO_GRADIENT, CheckedForward, check_inputs
from captum_lrpx.attr.embedded import embedded_ids
from captum_lrpx.attr.forms import form_of
from captum_lrpx.attr.forward import with_gradients
from captum_lrpx.forms import NewWayError
from captum_lrpx.traced import TracedPass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from captum_lrpx._captum import TargetType
    from captum_lrpx.attr.protocol import LRPRules

    _Result = tuple[TracedPass, Any, tuple[Tensor, ...], dict[nn.Module, tuple[Tensor, ...]]]

__all__ = ["Passed", "forward_pass"]


class Passed:
    """A forward pass that has been run, and can be explained as long as its context is open.

    Attributes:
        output: What the forward function returned ``[B, ...]``.
        sources: For each input the tensor at which its relevance is read: an alias of itself if it
            is floating, else the embeddings of the token ids.
        layers: The tensors of each captured layer.
        rules: The rules, and the graph once something has been explained.
    """

    output: Any
    sources: tuple[Tensor, ...]
    layers: dict[nn.Module, tuple[Tensor, ...]]
    rules: TracedPass

    def __init__(
        self,
        attribution: LRPRules,
        inputs: tuple[Tensor, ...],
        once: Callable[[], AbstractContextManager[_Result]],
    ) -> None:
        self._of_ids = tuple(not tensor.is_floating_point() for tensor in inputs)
        self._strict = attribution.strict
        self._once = once
        self._opened = ExitStack()

    def run(self) -> None:
        """Run the forward function, also if it has been run."""
        self.close()
        self.rules, self.output, self.sources, self.layers = self._opened.enter_context(
            self._once()
        )

    def close(self) -> None:
        """Leave the model alone."""
        self._opened.close()

    def explain(
        self,
        select: Callable[[Passed], Tensor],
        at: Callable[[Passed], Sequence[Tensor]] | None = None,
        *,
        at_once: int = 1,
    ) -> Tensor:
        """Put the rules on everything between sources and a value.

        The forward function runs once more if it has taken another way than those that are known,
        for which more has to be kept than was.

        Args:
            select: Gives what is explained.
            at: Gives the tensors at which relevance is read; default: the sources.
            at_once: Number of values that one backward pass will be for.

        Returns:
            What is explained.

        Raises:
            ValueError: If something between them has no rule, and the attribution is strict.
        """
        value = select(self)
        try:
            self.rules.attach(value, at_once=at_once)
        except NewWayError:
            self.run()
            value = select(self)
            self.rules.attach(value, at_once=at_once)
        coverage = self.rules.problems(self.sources if at is None else at(self))
        if coverage is not None:
            coverage.require(strict=self._strict)
        return value

    def relevances(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Relevances of the inputs, from gradients at the sources.

        Args:
            gradients: One per source, ``[B, ...]`` or, for several values, ``[K, B, ...]``; None
                for one without a path to what is explained.
        """
        return tuple(map(self._relevance, self.sources, self._of_ids, gradients))

    @staticmethod
    def _relevance(source: Tensor, of_ids: bool, gradient: Tensor | None) -> Tensor:
        value = source.detach()
        product = torch.zeros_like(value) if gradient is None else value * gradient.detach()
        return product.sum(-1) if of_ids else product


@contextmanager
def forward_pass(
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
) -> Iterator[Passed]:
    """Run a forward function once.

    Args:
        attribution: Forward function, model, rules, and whether they are strict.
        inputs: Floating inputs and token ids, in any mixture; the first dimension is the batch.
        arguments: What the forward function takes after the inputs.
        targets: What of the output will be explained, to be refused as soon as it is there; None
            if the output does not matter.
        layers: Layers whose tensors are captured.
        at_input: Whether what the layers take is captured instead of what they give.
        watched: Whether the names of functions and modules are asked for.
        values: Whether to keep the result of each function, for a ledger.
        beside: Gives something that is open while the forward function runs.
        at_inputs: Whether relevances of the inputs are asked for: token ids have to be embedded
            then.

    Yields:
        The pass.

    Raises:
        AssertionError: Captum's errors for inputs and targets that do not fit.
        ValueError: If the embeddings of token ids are nowhere to be seen.
    """
    check_inputs(attribution.model, attribution.forward_func, inputs)  # type: ignore[attr-defined]
    args = _captum.format_additional_forward_args(arguments)
    warn_of_cache(attribution.forward_func, args)  # type: ignore[attr-defined]
    forward = CheckedForward(attribution.forward_func, attribution.model, targets)  # type: ignore[attr-defined]
    attribution.check_memory(attribution.forward_func, inputs)  # type: ignore[attr-defined]
    form = form_of(
        attribution.model, forward.forward_func, inputs, arguments, layers, targets or ()
    )
    form = None if form is None else (type(attribution), form)

    @contextmanager
    def once() -> Iterator[_Result]:
        aliases = with_gradients(inputs)
        ids = [tensor for tensor in inputs if not tensor.is_floating_point()]
        rules = TracedPass(
            attribution.model,
            attribution.recipe,
            form,
            watched=watched,
            values=values,
            fast=attribution.economical and not watched,
            positions=sum(map(_positions, inputs)),
            checkpointing=attribution.checkpointing,
        )
        with torch.enable_grad(), rules.prepared():
            with (
                rules.watching(),
                embedded_ids(attribution.model, ids) as embedded,
                captured(layers, at_input=at_input) as caught,
                nullcontext() if beside is None else beside(rules),
            ):
                given = tuple(map(_writable, aliases))
                try:
                    output = _captum.run_forward(forward, given, None, args)
                except ValueError as error:
                    # Without a gradient because ids were embedded where it cannot be seen.
                    if at_inputs and NO_GRADIENT in str(error) and not all(embedded):
                        raise _not_embedded(len(inputs)) from error
                    raise
            of_ids = iter(embedded)
            sources = tuple(
                alias
                if alias.is_floating_point()
                else _embedding_of(alias, next(of_ids), len(inputs))
                for alias in (aliases if at_inputs else ())
            )
            yield rules, output, sources, caught

    passed = Passed(attribution, inputs, once)
    try:
        passed.run()
        yield passed
    finally:
        passed.close()


def _positions(tensor: Tensor) -> int:
    """Positions of an input; each pixel of an image is one."""
    if tensor.ndim > 3:
        return tensor.numel() // tensor.shape[1]
    return tensor.shape[:2].numel()


def _writable(alias: Tensor) -> Tensor:
    """An input that the forward function may write into, as some scale their embeddings."""
    if not alias.is_floating_point():
        return alias
    own = alias.clone()
    return own if own.stride() == alias.stride() else alias  # strides may decide about last bits


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
        "The forward function embeds no token ids that it was given, in a table of embeddings that "
        f"could be seen: give embeddings instead of ids.{by_place if inputs > 1 else ''}"
    )
