"""ALTI-Logit as a Captum attribution of a model's input tokens."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from captum.attr._utils.attribution import GradientAttribution

from captum_lrpx import _captum
from captum_lrpx.alti.formulas import rollout
from captum_lrpx.attr.alti_pass import Explained, explained_pass
from captum_lrpx.attr.forward_function import model_given, model_of
from captum_lrpx.attr.keywords import entry_point
from captum_lrpx.attr.protocol import (
    RelevanceProtocol,
    only_input,
    require_gradients,
    tensors_of,
)
from captum_lrpx.attr.selection import check_targets
from captum_lrpx.recipes import LRP
from captum_lrpx.targets.decoder import DecoderLogits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from captum_lrpx._captum import TargetType, TensorOrTupleOfTensorsGeneric
    from captum_lrpx.alti.decomposition import ALTILogitDecomposition
    from captum_lrpx.coverage import Coverage


class ALTILogit(RelevanceProtocol, GradientAttribution):
    r"""ALTI-Logit: token contributions to a logit through the attention of every layer.

    The explained logit is a sum over what each attention block, each MLP and each bias adds to the
    residual stream. What an attention block adds is split into the tokens that it reads, and
    carried back to the input by the ALTI matrices of the blocks below (Ferrando et al. 2023,
    https://arxiv.org/abs/2305.12535; Arras et al. 2025, https://arxiv.org/abs/2502.15886, section
    2.1). The flow is cut at the MLPs: their updates are not part of any token's score, unlike in
    :class:`captum_lrpx.LRPx`. The method is defined for models with the norm before a
    branch; for those with the norm after it (BERT) it is extended by the direction in which each
    branch moves the explained value.

    The model is left as it was, also after an error.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        model: nn.Module | None = None,
        *,
        value_bias: Literal["tokens", "apart"] = "tokens",
        memory_budget: int = 256 * 2**20,
        strict: bool = True,
    ) -> None:
        r"""Find the model, and check the options.

        Args:
            forward_func (Callable): The forward function of the model or any modification of it: a
                Hugging Face model (its ``logits`` are explained), a module that contains one, or a
                function, which needs ``model``.
            model (torch.nn.Module, optional): The Hugging Face model that ``forward_func`` runs.
                Default: found in ``forward_func``.
            value_bias (str, optional): Whether the constant part of the value vectors belongs to
                the tokens that are read (``"tokens"``, as in the published results) or is reported
                among the biases (``"apart"``).
                Default: "tokens"
            memory_budget (int, optional): Bytes that temporary tensors of the decomposition may
                take beside the recorded forward pass. Default: 256 MiB
            strict (bool, optional): Whether ``attribute`` refuses a non-linear operation without a
                rule between the outputs of the branches and the explained output; the inside of a
                branch is not decomposed, or is checked separately. Default: True

        Raises:
            ValueError: If no model is found, or an option is invalid.
        """
        if value_bias not in ("tokens", "apart"):
            raise ValueError(f'`value_bias` must be "tokens" or "apart", not {value_bias!r}.')
        GradientAttribution.__init__(self, forward_func)
        self.model = model_of(forward_func, model)
        self.value_bias = value_bias
        self.memory_budget = memory_budget
        self.strict = strict
        self.recipe = LRP

    @typing.overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object | None = None,
        *,
        return_convergence_delta: Literal[True],
        include_start: bool = True,
        return_input_shape: bool = True,
    ) -> tuple[TensorOrTupleOfTensorsGeneric, Tensor]: ...

    @typing.overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object | None = None,
        return_convergence_delta: Literal[False] = False,
        include_start: bool = True,
        return_input_shape: bool = True,
    ) -> TensorOrTupleOfTensorsGeneric: ...

    @entry_point
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object | None = None,
        return_convergence_delta: bool = False,
        include_start: bool = True,
        return_input_shape: bool = True,
    ) -> TensorOrTupleOfTensorsGeneric | tuple[TensorOrTupleOfTensorsGeneric, Tensor]:
        r"""Contributions of the input tokens to the explained output.

        Args:
            inputs (Tensor or tuple[Tensor]): The one input of the model: token ids ``[B, T]`` or
                embeddings ``[B, T, D]``. The first dimension is the batch.
            target (int, tuple, Tensor, or list, optional): Output indices that are explained, in
                every form that Captum takes (see :meth:`captum_lrpx.LRPx.attribute`). The explained
                position is the one whose logits the output was computed from.
                Default: None
            additional_forward_args (Any, optional): Arguments of ``forward_func`` after the
                inputs, given by position. Default: None
            return_convergence_delta (bool, optional): Whether to return the convergence delta too.
                Default: False
            include_start (bool, optional): Whether the contribution of the explained position's own
                embedding along the residual stream is counted as part of that token's contribution.
                Default: True
            return_input_shape (bool, optional): Whether embeddings get attributions of their shape,
                the contribution of a token spread evenly over ``D``, so that the sum over ``D`` is
                the token's; otherwise ``[B, T]``. Default: True

        Returns:
            *Tensor* or *tuple[Tensor]* of **attributions**, or 2-element tuple of **attributions**,
            **delta**:

            - **attributions** (*Tensor* or *tuple[Tensor]*):
                Contributions, of the shape of the input; a tuple for a tuple.
            - **delta** (*Tensor*, returned if return_convergence_delta=True):
                Explained output minus the sum of the contributions, one number per example: the
                contributions of MLPs and biases, large by construction. :meth:`decompose` lists
                them.

        Raises:
            AssertionError: Captum's errors for inputs and targets that do not fit.
            ValueError: If there is more than one input, or the method does not cover the model.
            RuntimeError: Under ``torch.inference_mode``, where no gradient exists.

        Examples::

            >>> model = AutoModelForCausalLM.from_pretrained(path).eval()
            >>> ids = tokenizer("the keys to the cabinet", return_tensors="pt").input_ids
            >>> alti_logit = ALTILogit(model)
            >>> # contribution of each token to the logit of "are" at the last position
            >>> are = tokenizer.convert_tokens_to_ids("are")
            >>> contributions = alti_logit.attribute(ids, target=(-1, are))
        """
        found, (value,) = self._tokens(
            inputs, [target], additional_forward_args, include_start=include_start
        )
        attributions = []
        for tensor, (tokens,) in zip(tensors_of(inputs), found, strict=True):
            shaped = _in_shape_of(tensor, tokens) if return_input_shape else tokens
            attributions.append(shaped.to(tensor.dtype) if tensor.is_floating_point() else shaped)
        formatted = _captum.format_output(_captum.is_tuple(inputs), tuple(attributions))
        if not return_convergence_delta:
            return cast("TensorOrTupleOfTensorsGeneric", formatted)
        return formatted, self.compute_convergence_delta(tuple(attributions), value)

    @entry_point
    def attribute_targets(
        self,
        inputs: Tensor | tuple[Tensor],
        targets: Sequence[TargetType],
        additional_forward_args: object | None = None,
        *,
        include_start: bool = True,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""Contributions of the input tokens to several outputs of one forward pass.

        Args:
            inputs (Tensor or tuple[Tensor]): As for :meth:`attribute`.
            targets (Sequence): Targets, each in a form that :meth:`attribute` takes.
            additional_forward_args (Any, optional): As for :meth:`attribute`. Default: None
            include_start (bool, optional): As for :meth:`attribute`. Default: True

        Returns:
            *Tensor* of **attributions**: one row of tokens per target and example ``[K, B, T]``;
            for several inputs a tuple.

        Raises:
            AssertionError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`, and if there is no target.

        Examples::

            >>> by_token = ALTILogit(model).attribute_targets(ids, [(-1, are), (-1, is_)])
        """
        targets = check_targets(targets)
        tokens, _ = self._tokens(
            inputs, targets, additional_forward_args, include_start=include_start
        )
        return tokens[0] if len(tokens) == 1 else tokens

    def decompose(
        self,
        inputs: Tensor | tuple[Tensor],
        target: TargetType = None,
        additional_forward_args: object | None = None,
        *,
        return_alti: bool = False,
    ) -> ALTILogitDecomposition:
        r"""Decompose the explained output into all of its terms.

        Args:
            inputs (Tensor or tuple[Tensor]): As for :meth:`attribute`.
            target (int, tuple, Tensor, or list, optional): As for :meth:`attribute`.
                Default: None
            additional_forward_args (Any, optional): As for :meth:`attribute`. Default: None
            return_alti (bool, optional): Whether to return the ALTI matrices ``[B, L, T, T]``.
                Default: False

        Returns:
            *ALTILogitDecomposition*: The terms; their sum is the explained output.

        Raises:
            AssertionError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`.

        Examples::

            >>> parts = ALTILogit(model).decompose(ids, target=(-1, are))
            >>> parts.layers  # [B, L, T]: contributions of the tokens through each block
            >>> parts.mlps  # [B, L]: what the MLPs contribute
        """
        (decomposition,) = self.decompose_targets(
            inputs, [target], additional_forward_args, return_alti=return_alti
        )
        return decomposition

    def decompose_targets(
        self,
        inputs: Tensor | tuple[Tensor],
        targets: Sequence[TargetType],
        additional_forward_args: object | None = None,
        *,
        return_alti: bool = False,
    ) -> tuple[ALTILogitDecomposition, ...]:
        r"""Decompositions of several outputs of one forward pass, which share most of the work.

        Args:
            inputs (Tensor or tuple[Tensor]): As for :meth:`attribute`.
            targets (Sequence): Targets, each in a form that :meth:`attribute` takes.
            additional_forward_args (Any, optional): As for :meth:`attribute`. Default: None
            return_alti (bool, optional): As for :meth:`decompose`; the matrices do not depend on
                the target. Default: False

        Returns:
            *tuple[ALTILogitDecomposition, ...]*: One for each target.

        Raises:
            AssertionError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`, and if there is no target.

        Examples::

            >>> good, bad = ALTILogit(model).decompose_targets(ids, [(-1, are), (-1, is_)])
            >>> contrast = good.tokens() - bad.tokens()
        """
        targets = check_targets(targets)
        with self._explained(inputs, targets, additional_forward_args, terms=True) as found:
            return found.decompositions(return_alti=return_alti)

    def coverage(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
    ) -> Coverage:
        r"""Operations on the paths of the directions of an explained output.

        They belong to the residual streams, the head, and the way from attention to stream.

        Args:
            inputs (Tensor or tuple[Tensor]): As for :meth:`attribute`.
            target (int, tuple, Tensor, or list, optional): As for :meth:`attribute`.
                Default: None
            additional_forward_args (Any, optional): As for :meth:`attribute`. Default: None

        Returns:
            *Coverage*: The operations with their rules.

        Raises:
            AssertionError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`.

        Examples::

            >>> print(ALTILogit(model).coverage(ids, target=(-1, are)))
        """
        with self._explained(inputs, [target], additional_forward_args) as found:
            return found.coverage

    def _tokens(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Sequence[TargetType],
        additional_forward_args: object | None,
        *,
        include_start: bool,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Contributions of each input's tokens to each target ``[K, B, T]``, and their values."""
        with self._explained(inputs, targets, additional_forward_args) as found:
            tokens = rollout(found.blocks()).transpose(0, 1)
            if include_start:
                tokens = tokens + torch.stack([each.start for each in found.directions])
            values = torch.stack([each.value for each in found.directions])
            return torch.split(tokens.detach(), found.tokens, -1), values

    def _explained(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Sequence[TargetType],
        additional_forward_args: object | None,
        *,
        terms: bool = False,
    ) -> AbstractContextManager[Explained]:
        """Run one forward pass and compute the direction of each target."""
        require_gradients()
        tensors = tensors_of(inputs)
        reads_two = isinstance(self.forward_func, DecoderLogits)
        if model_given(self.forward_func, self.model) and not reads_two:
            only_input(inputs, "ALTI-Logit")  # its second argument is a mask
        return explained_pass(self, tensors, targets, additional_forward_args, terms=terms)


def _in_shape_of(inputs: Tensor, tokens: Tensor) -> Tensor:
    """Contributions ``[B, T]`` spread evenly over the features of inputs ``[B, T, D]``."""
    if inputs.ndim != 3:
        return tokens
    spread = (tokens / inputs.shape[-1]).unsqueeze(-1)
    return spread.expand(inputs.shape).contiguous()
