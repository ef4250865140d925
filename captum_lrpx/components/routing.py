"""Routing: experts selected for each token, and the relevance through each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from captum.attr import LayerAttribution
from torch import nn

from captum_lrpx import _captum
from captum_lrpx.attr.keywords import entry_point
from captum_lrpx.components.experts import (
    by_expert,
    calls_of,
    choices_of,
    mixtures_of,
    number_of,
    parts_by_choice,
)
from captum_lrpx.components.layers import LayerRules
from captum_lrpx.extras import imported

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from captum_lrpx._captum import ModuleOrModuleList, TargetType
    from captum_lrpx.recipes import Recipe


_LIKE_A_MIXTURE: Final = re.compile(r"(moe|moeblock|experts)$", re.IGNORECASE)
"""Class names of modules that are listed in an error."""


@dataclass(frozen=True, eq=False)
class Routing:
    """The choices of one router, and the relevance through each.

    Attributes:
        name: Path of the module that holds the experts.
        count: Number of experts E.
        experts: Experts selected for each token, ``[B, T, k]``.
        weights: Their router weights, ``[B, T, k]``.
        relevances: The relevance through each, ``[B, T, k]``: of the expert's summand in
            the output, weight and bias included. Sums over k are the relevance of the output.
    """

    name: str
    count: int
    experts: Tensor
    weights: Tensor
    relevances: Tensor

    def by_token(self) -> Tensor:
        """Relevance of each expert at each token, ``[B, T, E]``; zero if it is not selected."""
        return by_expert(self.relevances, self.experts, self.count, dim=-1)

    def by_expert(self) -> Tensor:
        """Relevance of each expert, ``[B, E]``, summed over tokens."""
        return self.by_token().sum(1)

    def load(self) -> Tensor:
        """Number of tokens routed to each expert, ``[B, E]``."""
        ones = self.experts.new_ones(self.experts.shape)
        return by_expert(ones, self.experts, self.count, dim=-1).sum(1)

    def table(self, tokens: Sequence[str], row: int = 0) -> str:
        """Format one line per token: its experts with their weights and relevances.

        Args:
            tokens: The tokens as shown.
            row: Index of the example.

        Raises:
            ValueError: If there is not a token for each position.
        """
        self._check(tokens)
        width = max(map(len, tokens))
        lines = [self.name]
        for token, *choices in zip(
            tokens,
            self.experts[row].tolist(),
            self.weights[row].tolist(),
            self.relevances[row].tolist(),
            strict=True,
        ):
            taken = "   ".join(
                f"{expert:3d} ({weight:.2f}) {relevance:+.4f}"
                for expert, weight, relevance in zip(*choices, strict=True)
            )
            lines.append(f"{token:{width}}  {taken}")
        return "\n".join(lines)

    def plot(self, tokens: Sequence[str], row: int = 0) -> Any:
        """Draw tokens from left to right, experts from bottom to top, selected ones framed.

        Args:
            tokens: The tokens as shown.
            row: Index of the example.

        Returns:
            A figure of matplotlib.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If there is not a token for each position.
        """
        self._check(tokens)
        plt = imported(
            "matplotlib.pyplot",
            "A picture of a routing needs matplotlib: `pip install captum-lrpx[plot]`.",
        )
        found = self.by_token()[row].float().cpu()
        size = (1.8 + 0.5 * len(tokens), 1.2 + 0.3 * self.count)
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        limit = float(found.abs().max()) or 1.0
        image = axis.imshow(
            found.T.tolist(), cmap="bwr", vmin=-limit, vmax=limit, origin="lower", aspect="auto"
        )
        for place, experts in enumerate(self.experts[row].tolist()):
            for expert in experts:
                corner = (place - 0.5, expert - 0.5)
                axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor="gray"))
        axis.set_xticks(range(len(tokens)), tokens, rotation=45, ha="right")
        axis.set_yticks(range(self.count))
        axis.set_ylabel("expert")
        axis.set_title(self.name, fontsize="medium")
        figure.colorbar(image, label="relevance")
        return figure

    def _check(self, tokens: Sequence[str]) -> None:
        if len(tokens) != self.experts.shape[1]:
            raise ValueError(f"{len(tokens)} tokens do not name {self.experts.shape[1]} positions.")


class ExpertRelevance(LayerRules, LayerAttribution):
    r"""Experts selected for each token, and the relevance through each.

    The output of a mixture of experts is a sum over the selected ones, and the relevance of a
    summand is the summand times the coefficient (modified gradient) of the output. Hence the
    relevances of all choices sum to the relevance of the output, under every recipe. Shared experts
    beside them are no choice, and not included.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layers: ModuleOrModuleList | None = None,
        *,
        model: nn.Module | None = None,
        recipe: Recipe | None = None,
        strict: bool = True,
    ) -> None:
        r"""Find the model.

        Args:
            forward_func (Callable): The forward function of the model or any modification of it,
                as for :class:`LRPx`.
            layers (torch.nn.Module or list of torch.nn.Module, optional): Modules that hold all
                experts of a layer (``mlp.experts``), called with hidden states, selected experts
                ``[N, k]`` and their weights ``[N, k]``. Default: all of the model.
            model (torch.nn.Module, optional): The model that ``forward_func`` runs.
                Default: found in ``forward_func``.
            recipe (Recipe, optional): The rules. Default: AttnLRP's
            strict (bool, optional): Whether ``attribute`` refuses a non-linear operation without a
                rule. Default: True

        Raises:
            ValueError: If no model is found.
            TypeError: If a layer is no module.
        """
        LayerAttribution.__init__(self, forward_func, [] if layers is None else layers)
        self._found = layers is None
        if layers is None:
            self.set_rules(forward_func, model, recipe, strict=strict, fast=False)
            self.layers = []
        else:
            self.set_layers(forward_func, layers, model, recipe, strict=strict)

    @entry_point
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
    ) -> Routing | list[Routing]:
        r"""Compute the routing of each mixture of experts.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Inputs of ``forward_func``.
            target (int, tuple, Tensor, or list, optional): Target within the output.
                Default: None
            additional_forward_args (Any, optional): Arguments of ``forward_func`` after the inputs.
                Default: None

        Returns:
            *Routing* or list of *Routing*: One for a layer, a list for a list of layers and for all
            of the model, in the order in which they run.

        Raises:
            AssertionError: Captum's errors for inputs and targets that do not fit.
            ValueError: If the model mixes no experts, or in another way.
            RuntimeError: Under ``torch.inference_mode``.
        """
        given = _captum.format_tensor_into_tuples(inputs)
        if self._found:
            self.layers = self._mixtures(given, additional_forward_args)
        with calls_of(self.modules) as calls:
            values, slopes = self.coefficients(
                given, target, additional_forward_args, at_input=False
            )
        paths = {module: path for path, module in self.model.named_modules()}
        found = [
            _routing(paths.get(layer, ""), layer, calls[layer], value, slope)
            for layer, value, slope in zip(self.modules, values, slopes, strict=True)
        ]
        return found[0] if isinstance(self.layers, nn.Module) else found

    def _mixtures(self, inputs: tuple[Tensor, ...], arguments: object | None) -> list[nn.Module]:
        """Modules called with selected experts and their weights, in the order of their calls."""
        with mixtures_of(self.model) as found:
            self.run(inputs, arguments)
        if not found:
            kinds = {type(each).__name__: None for each in self.model.modules()}
            others = ", ".join(filter(_LIKE_A_MIXTURE.search, kinds))
            cause = f"{others} route in another way" if others else "it is no mixture of experts"
            raise ValueError(
                f"{type(self.model).__name__} calls no module with chosen experts [N, k] and their "
                f"weights [N, k]: {cause}."
            )
        return found


def _routing(path: str, layer: nn.Module, call: Any, value: Tensor, slope: Tensor) -> Routing:
    chosen, weights = choices_of(call, layer)
    shape = (*value.shape[:-1], chosen.shape[1])
    parts = parts_by_choice(layer, call, value)
    return Routing(
        path,
        number_of(layer),
        chosen.reshape(shape),
        weights.reshape(shape),
        (parts * slope.unsqueeze(-2)).sum(-1),
    )
