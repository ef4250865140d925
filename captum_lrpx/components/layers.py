"""Layers of a model, their tensors, and the coefficients of a prediction there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.capture import captured
from captum_lrpx.attr.checks import CheckedForward, check_inputs, check_layers, did_not_run
from captum_lrpx.attr.engine import forward_pass
from captum_lrpx.attr.protocol import AttnLRPRules
from captum_lrpx.components.experts import calls_of, parts_of
from captum_lrpx.components.nodes import by_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from captum_lrpx._captum import ModuleOrModuleList, TargetType
    from captum_lrpx.attr.engine import Passed
    from captum_lrpx.recipes import Recipe


class LayerRules(AttnLRPRules):
    """Attribution to layers of a model, by the rules of a recipe on its graph.

    Attributes:
        layers: The layer, or layers.
    """

    def set_layers(
        self,
        forward_func: Callable[..., Any],
        layers: ModuleOrModuleList,
        model: nn.Module | None,
        recipe: Recipe | None,
        *,
        strict: bool,
    ) -> None:
        """Find the model, and check the layers.

        Raises:
            ValueError: If no model is found.
            TypeError: If a layer is no module.
        """
        self.set_rules(forward_func, model, recipe, strict=strict, fast=False)
        check_layers(self.model, layers)
        self.layers = layers

    def has_convergence_delta(self) -> bool:
        """Whether the attributions sum to the explained value: no."""
        return False

    @property
    def modules(self) -> list[nn.Module]:
        """The layers as a list."""
        return [self.layers] if isinstance(self.layers, nn.Module) else list(self.layers)

    def formatted(self, results: list[Tensor]) -> Any:
        """The result of a single layer, or a list for a list of layers."""
        return results[0] if isinstance(self.layers, nn.Module) else results

    def run(self, inputs: tuple[Tensor, ...], arguments: object | None) -> None:
        """Run the forward function on checked inputs, without gradients, for hooks of layers."""
        check_inputs(self.model, self.forward_func, inputs)  # type: ignore[attr-defined]
        forward = CheckedForward(self.forward_func, self.model)  # type: ignore[attr-defined]
        args = _captum.format_additional_forward_args(arguments)
        with torch.no_grad():
            _captum.run_forward(forward, inputs, None, args)

    def values(
        self,
        inputs: tuple[Tensor, ...],
        arguments: object | None,
        *,
        at_input: bool,
        experts: bool = False,
    ) -> list[Tensor]:
        """Compute the tensor of each layer ``[B, ...]`` in a forward pass.

        Args:
            inputs: Inputs of the forward function.
            arguments: Further arguments of the forward function.
            at_input: Whether to use the layers' inputs.
            experts: Whether outputs are split into the summands of experts ``[B, T, E, D]``.

        Raises:
            ValueError: If a layer does not run, runs several times, or has no row per example.
        """
        with (
            calls_of(self.modules if experts else ()) as calls,
            captured(self.modules, at_input=at_input) as found,
        ):
            self.run(inputs, arguments)
        values = self.rows_of(found, len(inputs[0]))
        return self._by_expert(values, calls) if experts else values

    def coefficients(
        self,
        inputs: tuple[Tensor, ...],
        target: TargetType,
        arguments: object | None,
        *,
        at_input: bool,
        experts: bool = False,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the tensor of each layer, and the gradient of the explained value by the rules.

        Args:
            inputs: Inputs of the forward function.
            target: Target within the output.
            arguments: Further arguments of the forward function.
            at_input: Whether to use the layers' inputs.
            experts: Whether outputs are split into the summands of experts ``[B, T, E, D]``.

        Returns:
            Values and coefficients, each ``[B, ...]``, zeros where a layer is constant; by experts
            coefficients are ``[B, T, 1, D]``.

        Raises:
            AssertionError: Captum's errors for inputs and targets that do not fit.
            ValueError: As :meth:`values`.
        """
        with (
            calls_of(self.modules if experts else ()) as calls,
            forward_pass(
                self,
                inputs,
                arguments,
                targets=[target],
                layers=self.modules,
                at_input=at_input,
                at_inputs=False,
            ) as passed,
        ):
            values = self.rows_of(passed.layers, len(inputs[0]))
            finite = self.finite(inputs, arguments)
            explained = passed.explain(
                lambda run: finite.require(_captum.select_targets(run.output, target)),
                self.tensors_of,
            )
            sources = self.tensors_of(passed)
            found = torch.autograd.grad(
                torch.unbind(explained.reshape(-1)), sources, allow_unused=True
            )
        slopes = [
            torch.zeros_like(value) if slope is None else slope.reshape(value.shape)
            for value, slope in zip(values, found, strict=True)
        ]
        if experts:
            values = self._by_expert(values, calls)
            slopes = [slope.unsqueeze(-2) for slope in slopes]
        return values, slopes

    def _by_expert(self, values: list[Tensor], calls: dict[nn.Module, Any]) -> list[Tensor]:
        return [
            parts_of(layer, calls[layer], value)
            for layer, value in zip(self.modules, values, strict=True)
        ]

    def tensors_of(self, run: Passed) -> list[Tensor]:
        """Tensor of each layer, within the graph."""
        return [run.layers[layer][0] for layer in self.modules]

    def rows_of(self, found: dict[nn.Module, tuple[Tensor, ...]], rows: int) -> list[Tensor]:
        """Captured tensor of each layer, with a row for each example.

        Args:
            found: The captured tensors.
            rows: Number of examples.

        Raises:
            ValueError: If a layer did not run, or has no such rows.
        """
        values = []
        for layer in self.modules:
            if not found.get(layer):
                raise did_not_run(self.model, layer)
            values.append(by_row(found[layer][0].detach(), rows, layer))
        return values
