"""The part of Captum's protocol that all attribution classes of this package share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.checks import not_an_input
from captum_lrpx.attr.finite import Finite, own_copy
from captum_lrpx.attr.forward_function import model_of
from captum_lrpx.coverage import without_a_trace
from captum_lrpx.memory import require_memory
from captum_lrpx.module_tree import modules_of
from captum_lrpx.recipes import ATTN_LRP, LRP, Recipe
from captum_lrpx.structure import blocks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from captum_lrpx.coverage import Coverage


class RelevanceProtocol:
    """The methods of Captum's ``Attribution`` that describe an attribution.

    Attributes:
        economical: Whether to skip storing tensors that no rule reads.
        checkpointing: Whether blocks are recomputed in the backward pass, to save memory.
    """

    economical: bool = False
    checkpointing: bool = False

    def check_memory(self, forward_func: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
        """Refuse inputs that are too large, before anything is computed.

        Raises:
            MemoryError: If more memory is needed than is available.
        """

    def has_convergence_delta(self) -> bool:
        """Whether ``attribute`` takes ``return_convergence_delta``: yes."""
        return True

    def compute_convergence_delta(
        self, attributions: Tensor | tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        r"""Explained output minus the sum of the relevances; same signature as Captum's LRP.

        Args:
            attributions (Tensor or tuple[Tensor, ...]): Relevances.
            output (Tensor): Explained output, one value per example.

        Returns:
            *Tensor* of **delta**:

            - **delta** (*Tensor*):
                ``output - sum of the relevances``, of shape ``[B]``.
        """
        tensors = attributions if isinstance(attributions, tuple) else (attributions,)
        total = sum(tensor.flatten(1).sum(1) for tensor in tensors)
        return output.reshape(-1) - total

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether the attributions contain the factor of the inputs: yes, relevances do."""
        return True

    def attribute_future(self) -> None:
        """Not available: relevance needs a backward pass.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"attribute_future is not implemented for {self.get_name()}.")

    @classmethod
    def get_name(cls) -> str:
        """Name of the method."""
        return cls.__name__


class LRPRules(RelevanceProtocol):
    """Attribution by the rules of a recipe, on the model inside a forward function.

    Attributes:
        default_recipe: The default rules of the class.
        model: The Hugging Face model that the rules are attached to.
        recipe: The rules of the instance.
        checkpointing: Whether blocks are recomputed in the backward pass, to save memory.
        strict: Whether to refuse a model that the rules do not cover.
    """

    default_recipe: ClassVar[Recipe] = LRP

    def set_rules(
        self,
        forward_func: Callable[..., Any],
        model: nn.Module | None,
        recipe: Recipe | None,
        *,
        checkpointing: bool = False,
        strict: bool = True,
        fast: bool = True,
    ) -> None:
        """Find the model and store the options.

        Raises:
            ValueError: If no model is found, or it does not support an option.
        """
        self.model = model_of(forward_func, model)
        self.recipe = self.default_recipe if recipe is None else recipe
        self.checkpointing = checkpointing
        self.strict = strict
        self.economical = fast
        if checkpointing and not blocks_of(self.model):
            raise ValueError(
                f"{type(self.model).__name__} has no blocks that could be recomputed (a "
                "torch.nn.ModuleList of modules of one class): leave `checkpointing` out."
            )

    def check_memory(self, forward_func: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
        """Refuse inputs that are too large, before anything is computed.

        Raises:
            MemoryError: If more memory is needed than is available.
        """
        if inputs:
            require_memory(
                self.model,
                self.recipe,
                inputs[0],
                checkpointing=self.checkpointing,
                full_head=forward_func is self.model,
            )

    def coverage(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: object | None = None,
    ) -> Coverage:
        r"""List every operation between the inputs and the explained value, with its rule.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As for ``attribute``.
            additional_forward_args (Any, optional): As for ``attribute``. Default: None

        Returns:
            *Coverage*: A table; ``.complete`` is true if every non-linear operation has a rule. The
            forward function runs once to find out, on copies of arguments that are no tensors, and
            not again for inputs of the same kind.

        Raises:
            ValueError: If the output of the forward function has no gradient.

        Examples::

            >>> print(AttnLRPx(model).coverage(ids))
        """
        return self.coverage_between(inputs, additional_forward_args)

    def coverage_between(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        arguments: object | None,
        *,
        start: Sequence[nn.Module] = (),
        end: nn.Module | None = None,
    ) -> Coverage:
        """Operations between layers: from the given ones, or the inputs, to one, or the output.

        Args:
            inputs: As for ``attribute``.
            arguments: Further arguments of the forward function.
            start: Layers; none for the inputs.
            end: A layer; None for the output.
        """
        from captum_lrpx.attr.engine import forward_pass  # noqa: PLC0415 - it imports this module

        require_gradients()
        args = _captum.format_additional_forward_args(arguments)
        copied = None if args is None else tuple(map(own_copy, args))
        forward_func: Any = self.forward_func  # type: ignore[attr-defined]
        around = modules_of(forward_func) if isinstance(forward_func, nn.Module) else ()
        layers = start if end is None else (end,)
        with (
            without_a_trace({*around, *modules_of(self.model)}),
            forward_pass(
                self,
                tensors_of(inputs),
                copied,
                targets=() if end is None else None,
                layers=layers,
                watched=True,
            ) as passed,
        ):
            found = [each for layer in layers for each in passed.layers.get(layer, ())]
            passed.rules.attach(*([passed.output] if end is None else found))
            return passed.rules.coverage(found if start else passed.sources)

    def finite(self, inputs: tuple[Tensor, ...], args: object | None = None) -> Finite:
        """A check that explained values and relevances are finite."""
        return Finite(self.model, self.forward_func, inputs, args)  # type: ignore[attr-defined]


class AttnLRPRules(LRPRules):
    """Attribution by AttnLRP's recipe, on the model inside a forward function."""

    default_recipe: ClassVar[Recipe] = ATTN_LRP


def require_gradients() -> None:
    """Refuse to run where PyTorch computes no gradients.

    Raises:
        RuntimeError: Under ``torch.inference_mode``.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "Relevance needs a backward pass, which torch.inference_mode rules out: call it "
            "outside of that context, or use torch.no_grad (which is fine)."
        )


def tensors_of(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs as a tuple.

    Raises:
        AssertionError: If there is none, or one is no tensor; the message is Captum's.
    """
    tensors: tuple[Tensor, ...] = inputs if isinstance(inputs, tuple) else (inputs,)
    for tensor in tensors or (None,):
        if not isinstance(tensor, Tensor):
            raise AssertionError(  # noqa: TRY004 - the type that Captum raises
                "`inputs` must be a torch.Tensor or a tuple[torch.Tensor] but found: "
                f"{type(inputs) if tensor is None else type(tensor)}.{not_an_input(tensor)}"
            )
    return tensors


def only_input(inputs: Tensor | tuple[Tensor, ...], method: str) -> Tensor:
    """The single input of a method that scores tokens.

    Raises:
        AssertionError: Captum's error for a value that is neither a tensor nor a tuple.
        ValueError: If there are several inputs.
    """
    tensors = tensors_of(inputs)
    if len(tensors) != 1:
        raise ValueError(
            f"{method} takes one input, token ids or embeddings, but {len(tensors)} were given. "
            "Give masks and the like as additional_forward_args."
        )
    return tensors[0]
