"""LRP and AttnLRP as Captum attributions of a model's layers."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.checks import check_layers, did_not_run
from captum_lrpx.attr.engine import ForwardPass
from captum_lrpx.attr.keywords import entry_point
from captum_lrpx.attr.protocol import LRPRules, require_gradients, tensors_of
from captum_lrpx.recipes import ATTN_LRP

if TYPE_CHECKING:
    from collections.abc import Callable

    from captum_lrpx._captum import ModuleOrModuleList, TargetType
    from captum_lrpx.coverage import Coverage
    from captum_lrpx.recipes import Recipe


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
        with ForwardPass(
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
            relevances = self._relevances(explained.reshape(-1), values, grad_kwargs)
        finite.warn(tuple(chain.from_iterable(relevances)))
        results = [each if len(each) > 1 else each[0] for each in relevances]
        several = not isinstance(self.layer, nn.Module)
        if not return_convergence_delta:
            return results if several else results[0]
        output = explained.detach()
        deltas = [self.compute_convergence_delta(each, output) for each in relevances]
        return (results, deltas) if several else (results[0], deltas[0])

    def coverage(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: object | None = None,
    ) -> Coverage:
        """List every operation between the layers and the explained value, with its rule."""
        return self.coverage_between(inputs, additional_forward_args, start=self._layers())

    def _layers(self) -> list[nn.Module]:
        return [self.layer] if isinstance(self.layer, nn.Module) else list(self.layer)

    def _relevances(
        self,
        explained: Tensor,
        values: list[tuple[Tensor, ...]],
        grad_kwargs: dict[str, Any] | None,
    ) -> list[tuple[Tensor, ...]]:
        """Relevances of all layers from one backward pass, grouped like their values."""
        flat = list(chain.from_iterable(values))
        keywords = {"allow_unused": True, **(grad_kwargs or {})}
        gradients = torch.autograd.grad(torch.unbind(explained), flat, **keywords)
        products = []
        for value, gradient in zip(flat, gradients, strict=True):
            # None: the layer is on a branch that is constant under the rules.
            slope = torch.zeros_like(value) if gradient is None else gradient
            products.append((slope * (value if self.multiplies_by_inputs else 1)).detach())
        remaining = iter(products)
        return [tuple(islice(remaining, len(tensors))) for tensors in values]


class LayerAttnLRPx(LayerLRPx):
    r"""Relevances of the inputs or outputs of any layers, by the rules of :class:`AttnLRPx`."""

    default_recipe: ClassVar[Recipe] = ATTN_LRP
