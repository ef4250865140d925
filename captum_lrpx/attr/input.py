"""LRP and AttnLRP as Captum attributions of a model's inputs."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from captum.attr._utils.attribution import GradientAttribution

from captum_lrpx import _captum
from captum_lrpx.attr.engine import forward_pass
from captum_lrpx.attr.keywords import entry_point
from captum_lrpx.attr.many import relevances_by_target
from captum_lrpx.attr.protocol import (
    AttnLRPRules,
    LRPRules,
    require_gradients,
    tensors_of,
)
from captum_lrpx.attr.selection import check_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from captum_lrpx._captum import TargetType, TensorOrTupleOfTensorsGeneric
    from captum_lrpx.recipes import Recipe


class LRPx(LRPRules, GradientAttribution):
    r"""Layer-wise Relevance Propagation for transformers, as modified Gradient x Input.

    The prediction is decomposed into relevances of the inputs: one ordinary forward pass, and one
    backward pass in which the few non-linear layers have another slope, times the input. All
    relevance of attention goes to the values (Ali et al. 2022, https://arxiv.org/abs/2202.07304;
    formulated as in Arras et al. 2025, https://arxiv.org/abs/2502.15886, section 2.7 and
    appendix D). The relevances of the inputs and of the biases sum to the explained value.

    The model is left as it was, also after an error.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        model: nn.Module | None = None,
        *,
        recipe: Recipe | None = None,
        checkpointing: bool = False,
        strict: bool = True,
        fast: bool = True,
    ) -> None:
        r"""Find the model.

        Args:
            forward_func (Callable): The forward function of the model or any modification of it: a
                Hugging Face model (its ``logits`` are explained), a module that contains one, or a
                function, which needs ``model``.
            model (torch.nn.Module, optional): The model that ``forward_func`` runs.
                Default: found in ``forward_func``.
            recipe (Recipe, optional): The rules, see :mod:`captum_lrpx.recipes`.
                Default: the recipe of the class.
            checkpointing (bool, optional): Whether each block keeps only its input and is
                recomputed in the backward pass: the same relevances with less memory and more time,
                for long inputs. Default: False
            strict (bool, optional): Whether ``attribute`` refuses a model with a non-linear
                operation that no rule covers, which would make its relevances wrong. Otherwise it
                warns, and uses the ordinary gradient there. Default: True
            fast (bool, optional): Whether to skip storing tensors that no rule reads, and
                multiplying zeros. Otherwise the same relevances take more time and memory.
                Default: True

        Raises:
            ValueError: If ``model`` is needed and not given, or an option does not fit.
        """
        GradientAttribution.__init__(self, forward_func)
        self.set_rules(
            forward_func,
            model,
            recipe,
            checkpointing=checkpointing,
            strict=strict,
            fast=fast,
        )

    @typing.overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object | None = None,
        *,
        return_convergence_delta: Literal[True],
    ) -> tuple[TensorOrTupleOfTensorsGeneric, Tensor]: ...

    @typing.overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object | None = None,
        return_convergence_delta: Literal[False] = False,
    ) -> TensorOrTupleOfTensorsGeneric: ...

    @entry_point
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object | None = None,
        return_convergence_delta: bool = False,
    ) -> TensorOrTupleOfTensorsGeneric | tuple[TensorOrTupleOfTensorsGeneric, Tensor]:
        r"""Compute the relevances of the inputs for the explained output.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Input for which relevances are computed. Floating
                inputs (embeddings ``[B, T, D]``) get relevances of their shape. Token ids
                ``[B, T]`` get the relevance of each token: its embedding's, summed over the
                embedding dimension. The first dimension is the batch.
            target (int, tuple, Tensor, or list, optional): Output indices that are explained, in
                every form that Captum takes: None for outputs of one value per example, an integer
                or a tensor of integers for 2-D outputs, a tuple or a list of tuples for more
                dimensions (``(position, token)`` for logits ``[B, T, V]``).
                Default: None
            additional_forward_args (Any, optional): Arguments of ``forward_func`` after the
                inputs, given by position. Default: None
            return_convergence_delta (bool, optional): Whether to return the convergence delta too.
                Default: False

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, or 2-element tuple of
            **attributions**, **delta**:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*):
                Relevances, of the shape of the inputs; a tuple for a tuple.
            - **delta** (*Tensor*, returned if return_convergence_delta=True):
                Explained output minus the sum of the relevances, one number per example: the
                share of biases, position embeddings and (AttnLRP) softmax.

        Raises:
            AssertionError: Captum's errors for inputs and targets that do not fit.
            MemoryError: If the inputs are too large for the memory (see
                :mod:`captum_lrpx.memory`).
            ValueError: If a non-linear operation has no rule (see ``strict``), or the explained
                value is infinite or NaN.
            RuntimeError: Under ``torch.inference_mode``, where no gradient exists.

        Examples::

            >>> model = AutoModelForCausalLM.from_pretrained(path).eval()
            >>> ids = tokenizer("the keys to the cabinet", return_tensors="pt").input_ids
            >>> lrp = LRPx(model)
            >>> # relevance of each token for the logit of "are" at the last position
            >>> relevance = lrp.attribute(ids, target=(-1, tokenizer.convert_tokens_to_ids("are")))
        """
        require_gradients()
        is_inputs_tuple = _captum.is_tuple(inputs)
        tensors = tensors_of(cast("Tensor | tuple[Tensor, ...]", inputs))
        relevances, output = self._explained(tensors, target, additional_forward_args)
        attributions = _captum.format_output(is_inputs_tuple, relevances)
        if not return_convergence_delta:
            return cast("TensorOrTupleOfTensorsGeneric", attributions)
        return attributions, self.compute_convergence_delta(attributions, output)

    @entry_point
    def attribute_targets(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        targets: Sequence[TargetType] | None = None,
        additional_forward_args: object | None = None,
        *,
        targets_per_backward: int | None = None,
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""Compute relevances for several outputs with one forward pass.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As for :meth:`attribute`.
            targets (Sequence, optional): Targets, each in a form that :meth:`attribute` takes.
                Default: None, each output of a forward function that returns ``[B, C]``
            additional_forward_args (Any, optional): As for :meth:`attribute`. Default: None
            targets_per_backward (int, optional): How many targets one backward pass explains.
                More is faster on short inputs and accelerators, and takes memory in
                proportion; apart from it only the relevances grow with the number of targets. With
                1 the backward pass is an ordinary one, as it always is for outputs of more than two
                dimensions.
                Default: None, up to 8, fewer for long inputs

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, as from :meth:`attribute` for
            each target, stacked: ``[K, B, T]`` for token ids ``[B, T]``, ``[K, B, T, D]`` for
            embeddings.

        Raises:
            AssertionError: As :meth:`attribute`.
            ValueError: If there is no target, or an argument does not fit.
            RuntimeError: Under ``torch.inference_mode``, or if the backward pass cannot be batched.

        Examples::

            >>> by_class = LRPx(ClassLogits(classifier)).attribute_targets(ids)  # [C, B, T]
            >>> tokens = [are, is_, were]
            >>> by_token = LRPx(TokenLogits(model)).attribute_targets(ids, tokens)  # [3, B, T]
        """
        require_gradients()
        is_inputs_tuple = _captum.is_tuple(inputs)
        tensors = tensors_of(cast("Tensor | tuple[Tensor, ...]", inputs))
        if targets is not None:
            targets = check_targets(targets)
        arguments = _captum.format_additional_forward_args(additional_forward_args)
        relevances = relevances_by_target(self, tensors, targets, arguments, targets_per_backward)
        return cast(
            "TensorOrTupleOfTensorsGeneric", _captum.format_output(is_inputs_tuple, relevances)
        )

    def _explained(
        self, inputs: tuple[Tensor, ...], target: TargetType, arguments: object | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Compute the relevances and the explained output."""
        with forward_pass(self, inputs, arguments, targets=[target]) as passed:
            finite = self.finite(inputs, arguments)
            selected = passed.explain(
                lambda run: finite.require(_captum.select_targets(run.output, target))
            )
            found = torch.autograd.grad(
                torch.unbind(selected.reshape(-1)), passed.sources, allow_unused=True
            )
            relevances = passed.relevances(found)
        finite.warn(relevances)
        return relevances, selected.detach()


class AttnLRPx(AttnLRPRules, LRPx):
    r"""AttnLRP: attention's queries, keys and softmax take part in the decomposition.

    Uniform rule at both products of attention and at gates, ordinary gradient of the softmax
    (Achtibat et al. 2024, https://arxiv.org/abs/2402.05602; Arras et al. 2025, appendix D.6).
    Unlike :class:`LRPx` it does not conserve through the softmax: the convergence delta shows how
    much is missing. Everything else is as in :class:`LRPx`.
    """
