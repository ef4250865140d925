"""Where in a model a prediction is made: patching of nodes, estimated and exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor, nn

from captum_lrpx.attr.keywords import entry_point
from captum_lrpx.attr.protocol import require_gradients
from captum_lrpx.components.layers import LayerRules
from captum_lrpx.components.nodes import checked, nodes_of
from captum_lrpx.components.runs import Patch, Runs
from captum_lrpx.metrics.replacement import check_count
from captum_lrpx.module_tree import modules_of
from captum_lrpx.recipes import LRP_UNIFORM_GATE, Recipe
from captum_lrpx.training import warn_if_training

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum_lrpx._captum import ModuleOrModuleList, TargetType
    from captum_lrpx.components.nodes import Ablation, NodeKind, Nodes


Inputs = Tensor | tuple[Tensor, ...]


class _Patching(LayerRules, PerturbationAttribution):
    """Common part of estimate and measurement: nodes, and their replacements."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layers: ModuleOrModuleList,
        *,
        model: nn.Module | None = None,
        heads: int | None = None,
        recipe: Recipe | None = None,
        strict: bool = True,
    ) -> None:
        r"""Find the model.

        Args:
            forward_func (Callable): The forward function of the model or any modification of it,
                as for :class:`LRPx`.
            layers (torch.nn.Module or list of torch.nn.Module): Layers whose nodes are patched. For
                ``by="head"`` the output projections of attention, whose *inputs* hold the heads
                side by side.
            model (torch.nn.Module, optional): The model that ``forward_func`` runs.
                Default: found in ``forward_func``.
            heads (int, optional): Number of heads. Default: read from the attention around the
                layer, or from the model's config
            recipe (Recipe, optional): The rules. Default: :data:`~captum_lrpx.LRP_UNIFORM_GATE`
            strict (bool, optional): Whether ``attribute`` refuses a non-linear operation without a
                rule on the way from the layers to the output. Default: True

        Raises:
            ValueError: If no model is found.
            TypeError: If a layer is no module.
        """
        PerturbationAttribution.__init__(self, forward_func)
        self.set_layers(forward_func, layers, model, recipe, strict=strict)
        self.heads = heads

    def _others(
        self,
        clean: list[Tensor],
        corrupted: tuple[Tensor, ...] | None,
        arguments: Any,
        ablation: Ablation | None,
        by: NodeKind,
        *,
        at_input: bool,
    ) -> list[Tensor]:
        """Replacements of the values of each layer, in their shape."""
        experts = by == "expert"
        if ablation == "zero":
            return [torch.zeros_like(values) for values in clean]
        values = clean
        if corrupted is not None:
            values = self.values(corrupted, arguments, at_input=at_input, experts=experts)
        if ablation == "mean":
            kept = 2 if experts else 1
            means = [each.mean(tuple(range(each.ndim - kept))) for each in values]
            return [mean.expand_as(each) for mean, each in zip(means, clean, strict=True)]
        for layer, one, other in zip(self.modules, clean, values, strict=True):
            if one.shape != other.shape:
                raise ValueError(
                    f"{type(layer).__name__} has {list(one.shape)} for the clean and "
                    f"{list(other.shape)} for the corrupted inputs, so its nodes cannot be "
                    "exchanged: give inputs of the same length, token by token."
                )
        return values

    def _at_input(self, by: NodeKind, given: bool | None) -> bool:
        """Whether nodes are in the inputs of the layers.

        Raises:
            ValueError: If a layer cannot be an output projection, whose input holds the heads.
        """
        if by == "expert" and given:
            raise ValueError(
                "The contributions of experts are in a layer's output: leave "
                "`attribute_to_layer_input` out."
            )
        if given is not None:
            return given
        for layer in self.modules:
            parts = [name for name, _ in layer.named_children()]
            if by == "head" and parts and not hasattr(layer, "weight"):
                raise ValueError(
                    f"{type(layer).__name__} takes hidden states, not heads side by side: for "
                    f'by="head" give its output projection, one of its parts ({", ".join(parts)}), '
                    "or pass `attribute_to_layer_input=False` if its output holds heads."
                )
        return by == "head"

    def _nodes(self, by: NodeKind, clean: list[Tensor], *, at_input: bool) -> list[Nodes]:
        return [
            nodes_of(by, values, layer, self.model, self.heads, at_input=at_input)
            for layer, values in zip(self.modules, clean, strict=True)
        ]


class RelevancePatching(_Patching):
    r"""Estimates the effect of every node on a prediction, all nodes at once.

    A node's effect is the drop of the explained value when the node takes its value for
    corrupted inputs. The estimate is the sum of (clean - corrupted) times coefficient over the
    node, where the coefficient is the gradient at the node, modified by the rules of a recipe. Two
    forward passes and one backward pass yield all nodes of all layers.

    With the default rules it is RelP (Jafari et al. 2025, https://arxiv.org/abs/2508.21258), with
    :data:`~captum_lrpx.GRADIENT` attribution patching (Nanda 2023; Syed et al. 2023).
    """

    default_recipe: ClassVar[Recipe] = LRP_UNIFORM_GATE

    @entry_point
    def attribute(
        self,
        inputs: Inputs,
        corrupted_inputs: Inputs | None = None,
        target: TargetType = None,
        additional_forward_args: object | None = None,
        corrupted_additional_forward_args: object | None = None,
        by: NodeKind = "output",
        attribute_to_layer_input: bool | None = None,
        ablation: Ablation | None = None,
    ) -> Any:
        r"""Estimate the effects of the nodes.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Clean inputs of ``forward_func``. The first
                dimension is the batch.
            corrupted_inputs (Tensor or tuple[Tensor, ...], optional): Inputs of the same shape,
                which provide the nodes' other values. Default: None
            target (int, tuple, Tensor, or list, optional): Output indices that are explained, in
                every form that Captum takes. Default: None
            additional_forward_args (Any, optional): Arguments of ``forward_func`` after the inputs,
                given by position. Default: None
            corrupted_additional_forward_args (Any, optional): The same for the corrupted inputs.
                Default: ``additional_forward_args``
            by (str, optional): Kind of the nodes: ``"output"``, the whole tensor of a layer;
                ``"token"``, a position of it; ``"head"``, an attention head at all positions;
                ``"neuron"``, a feature at all positions; ``"expert"``, the summand of an expert in
                the output of a module that holds all experts of a layer. Default: ``"output"``
            attribute_to_layer_input (bool, optional): Whether nodes are in a layer's input
                instead of its output. Default: True for heads, else False
            ablation (str, optional): Instead of corrupted values: ``"zero"``; or ``"mean"``, the
                mean of each feature over the rows and positions of ``corrupted_inputs`` (of any
                shape then), or of ``inputs`` without them. Default: None

        Returns:
            *Tensor* or list of **attributions**:

            - **attributions** (*Tensor* or list of *Tensor*):
                Clean minus patched value: ``[B]`` by output, ``[B, T]`` by token, ``[B, H]`` by
                head, ``[B, D]`` by neuron, ``[B, E]`` by expert; a list with an element per layer
                for a list of layers.

        Raises:
            AssertionError: Captum's errors for inputs and targets that do not fit.
            ValueError: If the layers have no such nodes, the corrupted inputs do not match, or a
                layer does not run, or runs several times.
            RuntimeError: Under ``torch.inference_mode``.

        Examples::

            >>> projections = [block.self_attn.o_proj for block in model.model.layers]
            >>> patching = RelevancePatching(LogitDifference(model), projections)
            >>> heads = patching.attribute(
            ...     ids, other_ids, additional_forward_args=(None, are, is_), by="head"
            ... )
            >>> torch.stack(heads, dim=1)  # [B, layers, heads]
        """
        require_gradients()
        given, corrupted = checked(inputs, corrupted_inputs, by, ablation)
        at_input = self._at_input(by, attribute_to_layer_input)
        clean, coefficients = self.coefficients(
            given, target, additional_forward_args, at_input=at_input, experts=by == "expert"
        )
        nodes = self._nodes(by, clean, at_input=at_input)
        if corrupted_additional_forward_args is None:
            corrupted_additional_forward_args = additional_forward_args
        others = self._others(
            clean, corrupted, corrupted_additional_forward_args, ablation, by, at_input=at_input
        )
        effects = [
            cut.total((values - other) * slopes)
            for values, other, slopes, cut in zip(clean, others, coefficients, nodes, strict=True)
        ]
        self.finite(given, additional_forward_args).warn(tuple(effects))
        return self.formatted(effects)


class ActivationPatching(_Patching):
    r"""Measures the effect of every node on a prediction, by patching it.

    A node's effect is the drop of the explained value when the node takes its value for
    corrupted inputs: one forward pass for each node, several of them in a batch, each from the
    patched layer on. Modules before it return their recorded outputs for the clean inputs; a module
    with possible side effects (writes to an argument, keeps a state) runs again. Nodes whose clean
    and corrupted values are equal have no effect, and are not run.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layers: ModuleOrModuleList,
        *,
        model: nn.Module | None = None,
        heads: int | None = None,
    ) -> None:
        r"""Find the model.

        Args:
            forward_func (Callable): The forward function of the model or any modification of it.
            layers (torch.nn.Module or list of torch.nn.Module): As for :class:`RelevancePatching`.
            model (torch.nn.Module, optional): The model that ``forward_func`` runs.
                Default: found in ``forward_func``.
            heads (int, optional): As for :class:`RelevancePatching`.

        Raises:
            ValueError: If no model is found.
            TypeError: If a layer is no module.
        """
        super().__init__(forward_func, layers, model=model, heads=heads)

    @entry_point
    def attribute(
        self,
        inputs: Inputs,
        corrupted_inputs: Inputs | None = None,
        target: TargetType = None,
        additional_forward_args: object | None = None,
        corrupted_additional_forward_args: object | None = None,
        by: NodeKind = "output",
        attribute_to_layer_input: bool | None = None,
        ablation: Ablation | None = None,
        perturbations_per_eval: int = 16,
        only: Tensor | Sequence[Tensor] | None = None,
    ) -> Any:
        r"""Measure the effects of the nodes.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As for :class:`RelevancePatching`.
            corrupted_inputs (Tensor or tuple[Tensor, ...], optional): The same. Default: None
            target (int, tuple, Tensor, or list, optional): The same. Default: None
            additional_forward_args (Any, optional): The same; tensors with a dimension have a row
                for each example, as for Captum's ``FeatureAblation``. Default: None
            corrupted_additional_forward_args (Any, optional): The same. Default: None
            by (str, optional): The same. Default: ``"output"``
            attribute_to_layer_input (bool, optional): The same. Default: True for heads, else False
            ablation (str, optional): The same. Default: None
            perturbations_per_eval (int, optional): Number of nodes, of one layer or several,
                patched in one forward pass, of ``perturbations_per_eval * B`` rows. Default: 16
            only (Tensor or list of Tensor, optional): Indices of the nodes to measure, a list with
                a tensor per layer for a list of layers; the effects of others are NaN.
                Default: all

        Returns:
            *Tensor* or list of **attributions**:

            - **attributions** (*Tensor* or list of *Tensor*):
                Clean minus patched value, in the shapes of :class:`RelevancePatching`.

        Raises:
            AssertionError: Captum's errors for inputs and targets that do not fit.
            ValueError: As :meth:`RelevancePatching.attribute`.

        Examples::

            >>> blocks = list(model.model.layers)
            >>> patching = ActivationPatching(LogitDifference(model), blocks)
            >>> residual = patching.attribute(
            ...     ids, other_ids, additional_forward_args=(None, are, is_), by="token"
            ... )
        """
        given, corrupted = checked(inputs, corrupted_inputs, by, ablation)
        at_input = self._at_input(by, attribute_to_layer_input)
        check_count(perturbations_per_eval, "perturbations_per_eval")
        warn_if_training(modules_of(self.model))
        clean = self.values(
            given, additional_forward_args, at_input=at_input, experts=by == "expert"
        )
        nodes = self._nodes(by, clean, at_input=at_input)
        if corrupted_additional_forward_args is None:
            corrupted_additional_forward_args = additional_forward_args
        others = self._others(
            clean, corrupted, corrupted_additional_forward_args, ablation, by, at_input=at_input
        )
        runs = Runs(self, given, target, additional_forward_args, at_input=at_input)
        chosen = self._chosen(only)
        patches = [
            Patch(*each) for each in zip(self.modules, nodes, clean, others, chosen, strict=True)
        ]
        effects = runs.effects(patches, perturbations_per_eval)
        self.finite(given, additional_forward_args).warn(tuple(effects))
        return self.formatted(
            [patch.measured(effect) for patch, effect in zip(patches, effects, strict=True)]
        )

    def _chosen(self, only: Tensor | Sequence[Tensor] | None) -> Sequence[Tensor | None]:
        """Nodes to measure in each layer; None for all."""
        if only is None:
            return [None] * len(self.modules)
        chosen = [only] if isinstance(self.layers, nn.Module) else list(only)
        if len(chosen) != len(self.modules) or not all(map(_are_indices, chosen)):
            raise ValueError(
                "`only` is a tensor of indices of nodes; for a list of layers, a list of as many: "
                f"here {len(self.modules)}."
            )
        return chosen  # type: ignore[return-value]


def _are_indices(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and value.dtype == torch.int64
