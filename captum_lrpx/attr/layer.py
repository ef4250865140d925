"""LRP and AttnLRP as Captum attributions of a model's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.checks import check_layers, did_not_run
from captum_lrpx.attr.engine import forward_pass
from captum_lrpx.attr.keywords import entry_point
from captum_lrpx.attr.protocol import (
    AttnLRPRules,
    LRPRules,
    require_gradients,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from captum_lrpx._captum import ModuleOrModuleList, TargetType
    from captum_lrpx.attr.finite import Finite
    from captum_lrpx.coverage import Coverage
    from captum_lrpx.recipes import Recipe


LayerRelevance = Tensor | tuple[Tensor, ...]


class LayerLRPx(LRPRules, LayerGradientXActivation):
    r"""Relevances of the inputs or outputs of any layers, by the rules of :class:`LRPx`.

    A layer is any module of the model: embeddings, blocks, attention, projections, activations,
    heads. Several layers are explained by one backward pass. Captum's ``LLMGradientAttribution``
    takes this class.

    Unlike Captum's layer methods it also takes modules that return more than one tensor
    (attention returns weights, or None, beside its output) or that are called by keyword:
    relevance is computed for the hidden states.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: ModuleOrModuleList,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
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
            layer (torch.nn.Module or list of torch.nn.Module): The layer, or layers.
            device_ids (list[int], optional): As in Captum. Default: None
            multiply_by_inputs (bool, optional): Whether to multiply the gradient by the value of
                the layer, which makes it a relevance. Default: True
            model (torch.nn.Module, optional): The model that ``forward_func`` runs.
                Default: found in ``forward_func``.
            recipe (Recipe, optional): The rules. Default: the recipe of the class.
            strict (bool, optional): Whether ``attribute`` refuses a non-linear operation without a
                rule on the way from the layers to the output. Default: True
            fast (bool, optional): As for :class:`LRPx`. Default: True

        Raises:
            ValueError: If no model is found.
        """
        LayerGradientXActivation.__init__(
            self, forward_func, layer, device_ids, multiply_by_inputs=multiply_by_inputs
        )
        self.set_rules(forward_func, model, recipe, strict=strict, fast=fast)
        check_layers(self.model, layer)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether the attributions contain the factor of the layer's value."""
        return bool(self._multiply_by_inputs)

    @entry_point
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        r"""Compute the relevances of the layers for the explained output.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Inputs of ``forward_func``: token ids,
                embeddings, or whatever it takes. The first dimension is the batch.
            target (int, tuple, Tensor, or list, optional): Output indices that are explained, in
                every form that Captum takes. Default: None
            additional_forward_args (Any, optional): Arguments of ``forward_func`` after the
                inputs, given by position. Default: None
            attribute_to_layer_input (bool, optional): Whether to explain the layer's input
                instead of its output. Default: False
            grad_kwargs (dict[str, Any], optional): Keywords for ``torch.autograd.grad``.
                Default: None
            return_convergence_delta (bool, optional): Whether to return the convergence delta too.
                Default: False

        Returns:
            *Tensor* or *tuple[Tensor, ...]* or list of **attributions**, or 2-element tuple of
            **attributions**, **delta**:

            - **attributions** (*Tensor*, *tuple[Tensor, ...]*, or list):
                Relevances, of the shape of the layer's hidden states; a tuple if there are several
                of them, a list with an element per layer for a list of layers.
            - **delta** (*Tensor* or list, returned if return_convergence_delta=True):
                Explained output minus the sum of the relevances, ``[B]``; a list for a list.

        Raises:
            AssertionError: Captum's errors for inputs and targets that do not fit.
            ValueError: If a layer does not run, or runs several times, in the forward pass.
            RuntimeError: Under ``torch.inference_mode``.

        Examples::

            >>> block = model.transformer.h[3]
            >>> layer = LayerLRPx(model, block)
            >>> # [B, T, D], for the logit of token 42 at the last position
            >>> relevance = layer.attribute(ids, target=(-1, 42))
            >>> # relevance of each head: the input of the output projection, by head
            >>> mixed = LayerLRPx(model, block.attn.c_proj)
            >>> heads = mixed.attribute(ids, (-1, 42), attribute_to_layer_input=True)
            >>> heads = heads.unflatten(-1, (number_of_heads, -1)).sum(-1)  # [B, T, H]
        """
        require_gradients()
        layers = self._layers()
        tensors = tensors_of(inputs)
        with forward_pass(
            self,
            tensors,
            additional_forward_args,
            targets=[target],
            layers=layers,
            at_input=attribute_to_layer_input,
            at_inputs=False,
        ) as passed:
            for layer in layers:
                if layer not in passed.layers:
                    raise did_not_run(self.model, layer)
            finite = self.finite(tensors, additional_forward_args)
            explained = passed.explain(
                lambda run: finite.require(_captum.select_targets(run.output, target)),
                lambda run: [each for layer in layers for each in run.layers[layer]],
            )
            values = [passed.layers[layer] for layer in layers]
            gradients = self._gradients(explained.reshape(-1), values, grad_kwargs)
            results = [
                self._relevances(found, slopes)
                for found, slopes in zip(values, gradients, strict=True)
            ]
        output = explained.detach()
        return self._formatted(results, output, finite, with_delta=return_convergence_delta)

    def coverage(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: object | None = None,
    ) -> Coverage:
        """List every operation between the layers and the explained value, with its rule."""
        return self.coverage_between(inputs, additional_forward_args, start=self._layers())

    def _layers(self) -> list[nn.Module]:
        return [self.layer] if isinstance(self.layer, nn.Module) else list(self.layer)

    def _formatted(
        self, results: list[LayerRelevance], output: Tensor, finite: Finite, *, with_delta: bool
    ) -> Any:
        """Results in Captum's form: for one layer or several, with or without the delta."""
        flat = (each if isinstance(each, tuple) else (each,) for each in results)
        finite.warn(tuple(tensor for tensors_ in flat for tensor in tensors_))
        if not with_delta:
            return results[0] if isinstance(self.layer, nn.Module) else results
        deltas = [self.compute_convergence_delta(result, output) for result in results]
        if isinstance(self.layer, nn.Module):
            return results[0], deltas[0]
        return results, deltas

    def _gradients(
        self,
        explained: Tensor,
        values: list[tuple[Tensor, ...]],
        grad_kwargs: dict[str, Any] | None,
    ) -> list[tuple[Tensor, ...]]:
        """Gradients of all layers from one backward pass, grouped like the values."""
        flat = [tensor for tensors in values for tensor in tensors]
        keywords = {"allow_unused": True, **(grad_kwargs or {})}
        found = torch.autograd.grad(torch.unbind(explained), flat, **keywords)
        # None: the layer is on a branch that is constant under the rules.
        gradients = [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(flat, found, strict=True)
        ]
        grouped = []
        for tensors in values:
            grouped.append(tuple(gradients[: len(tensors)]))
            del gradients[: len(tensors)]
        return grouped

    def _relevances(
        self, values: tuple[Tensor, ...], gradients: tuple[Tensor, ...]
    ) -> LayerRelevance:
        products = tuple(
            (gradient * (value if self.multiplies_by_inputs else 1)).detach()
            for value, gradient in zip(values, gradients, strict=True)
        )
        return products if len(products) > 1 else products[0]


class LayerAttnLRPx(AttnLRPRules, LayerLRPx):
    r"""Relevances of the inputs or outputs of any layers, by the rules of :class:`AttnLRPx`."""
