"""LRP and AttnLRP as Captum attributions of single neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from captum.attr._utils.attribution import GradientAttribution, NeuronAttribution

from captum_lrpx import _captum
from captum_lrpx.attr.checks import check_layers, did_not_run
from captum_lrpx.attr.engine import forward_pass
from captum_lrpx.attr.keywords import entry_point
from captum_lrpx.attr.protocol import AttnLRPRules, LRPRules, require_gradients, tensors_of
from captum_lrpx.attr.selection import select_neuron

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from captum_lrpx.attr.engine import Passed
    from captum_lrpx.attr.finite import Finite
    from captum_lrpx.coverage import Coverage
    from captum_lrpx.recipes import Recipe


class NeuronLRPx(LRPRules, NeuronAttribution, GradientAttribution):
    r"""Relevances of the inputs for the activation of a neuron, by the rules of :class:`LRPx`."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        model: nn.Module | None = None,
        recipe: Recipe | None = None,
        strict: bool = True,
        fast: bool = True,
    ) -> None:
        r"""Find the model.

        Args:
            forward_func (Callable): The forward function of the model or any modification of it,
                as for :class:`LRPx`.
            layer (torch.nn.Module): The layer that the neuron belongs to.
            device_ids (list[int], optional): As in Captum. Default: None
            model (torch.nn.Module, optional): The model that ``forward_func`` runs.
                Default: found in ``forward_func``.
            recipe (Recipe, optional): The rules. Default: the recipe of the class.
            strict (bool, optional): Whether ``attribute`` refuses a non-linear operation without a
                rule on the way from the inputs to the layer. Default: True
            fast (bool, optional): As for :class:`LRPx`. Default: True

        Raises:
            ValueError: If no model is found.
        """
        NeuronAttribution.__init__(self, forward_func, layer, device_ids)
        GradientAttribution.__init__(self, forward_func)
        self.set_rules(forward_func, model, recipe, strict=strict, fast=fast)
        check_layers(self.model, [layer])

    @entry_point
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        neuron_selector: int | tuple[int | slice, ...] | Callable[..., Tensor],
        additional_forward_args: object | None = None,
        attribute_to_neuron_input: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""Compute the relevances of the inputs for the activation of a neuron.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Input for which relevances are computed:
                embeddings (relevances of their shape) or token ids ``[B, T]`` (one number per
                token). The first dimension is the batch.
            neuron_selector (int, tuple[int, ...], slice, or Callable): Which neuron, as in Captum:
                an index or a tuple of indices and slices after the batch dimension (slices are
                summed), or a function from the layer's tensors to one number per example.
            additional_forward_args (Any, optional): Arguments of ``forward_func`` after the
                inputs, given by position. Default: None
            attribute_to_neuron_input (bool, optional): Whether the neuron is in the layer's
                input instead of its output. Default: False

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*):
                Relevances, of the shape of the inputs; a tuple for a tuple.

        Raises:
            AssertionError: Captum's errors for selectors that do not fit.
            ValueError: If the layer does not run in the forward pass, or is constant there.
            RuntimeError: Under ``torch.inference_mode``.

        Examples::

            >>> mlp = model.transformer.h[0].mlp.act
            >>> neuron = NeuronLRPx(model, mlp)
            >>> # what made neuron 7 fire at position 3
            >>> relevance = neuron.attribute(ids, neuron_selector=(3, 7))
        """
        require_gradients()
        is_inputs_tuple = _captum.is_tuple(inputs)
        tensors = tensors_of(inputs)
        args = _captum.format_additional_forward_args(additional_forward_args)
        with forward_pass(
            self,
            tensors,
            args,
            targets=None,
            layers=[self.layer],
            at_input=attribute_to_neuron_input,
        ) as passed:
            finite = self.finite(tensors, args)
            relevances = passed.relevances(self._gradients(neuron_selector, finite, passed))
        finite.warn(relevances)
        return cast(
            "Tensor | tuple[Tensor, ...]", _captum.format_output(is_inputs_tuple, relevances)
        )

    def coverage(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: object | None = None,
    ) -> Coverage:
        """List every operation between the inputs and the layer, with its rule."""
        return self.coverage_between(inputs, additional_forward_args, end=self.layer)

    def _gradients(self, selector: Any, finite: Finite, passed: Passed) -> tuple[Tensor, ...]:
        if self.layer not in passed.layers:
            raise did_not_run(self.model, self.layer)
        neuron = passed.explain(
            lambda run: finite.require(select_neuron(run.layers[self.layer], selector))
        )
        sources = passed.sources
        found = torch.autograd.grad(torch.unbind(neuron.reshape(-1)), sources, allow_unused=True)
        if all(gradient is None for gradient in found):
            raise ValueError(
                f"The neuron of {type(self.layer).__name__} does not depend on the inputs under "
                f"the rules of {self.recipe.name!r}: its branch is constant there."
            )
        return tuple(
            torch.zeros_like(source) if gradient is None else gradient
            for source, gradient in zip(sources, found, strict=True)
        )


class NeuronAttnLRPx(AttnLRPRules, NeuronLRPx):
    r"""Relevances of the inputs for the activation of a neuron, by the rules of AttnLRP."""
