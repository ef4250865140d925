"""The ledger written by hand, without the package's own: the replica that it is compared with.

The inputs of the decomposition are the outputs of all embedding layers, and each bias, by ordinary
autograd with every bias needing a gradient. What AttnLRP loses in a softmax is computed from the
scores and the weights that the model's own softmax saw.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from models import embeddings_of, outputs
from passes import opened
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know
from torch.overrides import TorchFunctionMode

from captum_lrpx.rules import UniformAttention
from captum_lrpx.traced import TracedPass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from captum_lrpx.recipes import Recipe

RELATIVE = 1e-10
# Relevances of both signs cancel in the sum. Where they cancel to a value much smaller than their
# mass, the sum cannot be more exact than the rounding of what is summed: a few hundred units of the
# last place of the mass, for a few hundred operations one after the other.
MASS = 1e-13


class Exact(TorchFunctionMode):
    """Computes in float64 where transformers asks for float32, and records every softmax.

    The norms of Llama and its relatives, and their eager softmax, compute in float32 whatever the
    dtype of the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmaxes: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            func = Tensor.double if func is Tensor.float else func
            args = tuple(torch.float64 if each is torch.float32 else each for each in args)
            if func is Tensor.matmul:  # frequencies @ positions, of which `float` left the latter
                args = tuple(each.double() for each in args)
            kwargs = {
                name: torch.float64 if each is torch.float32 else each
                for name, each in kwargs.items()
            }
        result = func(*args, **kwargs)
        if func is F.softmax and result.requires_grad:
            self.softmaxes.append((args[0], result))
        return result


@dataclass(frozen=True)
class Ledger:
    """Where the explained value went.

    Attributes:
        explained: The explained value.
        embeddings: Relevances of the outputs of all embedding layers.
        biases: Sum of the relevances of all biases.
        softmax: What all softmaxes kept.
    """

    explained: float
    embeddings: list[Tensor]
    biases: float
    softmax: float

    @property
    def total(self) -> float:
        return total_of(self.embeddings) + self.biases + self.softmax

    @property
    def mass(self) -> float:
        parts = [part.abs() for part in self.embeddings]
        return total_of(parts) + abs(self.biases) + abs(self.softmax)

    def closes(self, relative: float = RELATIVE, mass: float = MASS) -> bool:
        allowed = relative * abs(self.explained) + mass * self.mass
        return abs(self.total - self.explained) <= allowed


@contextmanager
def captured(modules) -> Iterator[list[Tensor]]:
    """The outputs of modules in the order of the calls, made leaves of the graph."""
    found: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1]

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        yield found


@contextmanager
def with_biases(
    model: nn.Module, recipe: Recipe
) -> Iterator[tuple[TracedPass, dict[str, tuple[Tensor, Tensor]]]]:
    """The rules of a recipe, and for each bias its value and a tensor with its gradient.

    The rule of a norm gives none to its parameters, so zeros are added to what norms return.
    """
    with opened(TracedPass(model, recipe, None)) as rules, ExitStack() as stack:
        found = {}
        for path, module in model.named_modules():
            bias = module._parameters.get("bias")
            if bias is None:
                continue
            wanted = bias
            if isinstance(module, nn.LayerNorm):
                wanted = torch.zeros_like(bias)
                add = lambda *call, zeros=wanted: call[2] + zeros  # noqa: E731
                stack.callback(module.register_forward_hook(add).remove)
            found[f"{path}.bias"] = bias.detach(), wanted.requires_grad_()
        yield rules, found


def ledger(
    model: nn.Module, recipe: Recipe, index: tuple[int, ...], *, exact: bool = True, **inputs: Any
) -> Ledger:
    """Decompose ``outputs[index]`` by ordinary autograd under the rules of a recipe."""
    recorder = Exact()
    with (
        with_biases(model, recipe) as (rules, named),
        captured(embeddings_of(model)) as embedded,
        recorder if exact else ExitStack(),
    ):
        explained = outputs(model, **inputs)[index]
        rules.attach(explained)
        biases = {id(wanted): (value, wanted) for value, wanted in named.values()}.values()
        scores = [scores for scores, _ in recorder.softmaxes]
        weights = [weights for _, weights in recorder.softmaxes]
        groups = [embedded, [wanted for _, wanted in biases], scores, weights]
        flat = [tensor for group in groups for tensor in group]
        gradients = torch.autograd.grad(explained, flat, allow_unused=True, materialize_grads=True)
    remaining = iter(gradients)
    groups[1] = [value for value, _ in biases]
    of_embeddings, of_biases, of_scores, of_weights = (
        [relevance(tensor.detach(), next(remaining)) for tensor in group] for group in groups
    )
    # Where the weights are constant no relevance enters the softmax.
    enters = isinstance(recipe.attention, UniformAttention)
    return Ledger(
        explained=explained.item(),
        embeddings=of_embeddings,
        biases=total_of(of_biases),
        softmax=enters * (total_of(of_weights) - total_of(of_scores)),
    )


def biases_by_hand(
    model: nn.Module, recipe: Recipe, index: tuple[int, ...], ids: Tensor
) -> dict[str, float]:
    """The relevance of each bias in ``outputs[index]``, with the layers' own rules of a recipe."""
    with with_biases(model, recipe) as (rules, named), captured(embeddings_of(model)):
        explained = outputs(model, input_ids=ids)[index]
        rules.attach(explained)
        gradients = torch.autograd.grad(
            explained, [wanted for _, wanted in named.values()], materialize_grads=True
        )
    return {
        name: (value * gradient).sum().item()
        for (name, (value, _)), gradient in zip(named.items(), gradients, strict=True)
    }


def relevance(value: Tensor, gradient: Tensor) -> Tensor:
    """Value times gradient; 0 where a mask made a score minus infinity, which has no gradient."""
    masked = value.isneginf() & (gradient == 0)
    return value.masked_fill(masked, 0) * gradient


def total_of(tensors: list[Tensor]) -> float:
    return sum(tensor.sum().item() for tensor in tensors)
