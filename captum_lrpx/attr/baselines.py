"""Baselines missing from Captum: attention rollout, information flow, random numbers."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from captum.attr._utils.attribution import Attribution

from captum_lrpx import _captum
from captum_lrpx.attr.alti_logit import ALTILogit
from captum_lrpx.attr.alti_pass import explained_pass
from captum_lrpx.attr.keywords import entry_point
from captum_lrpx.attr.protocol import WithoutFuture, only_input, require_gradients, tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from captum_lrpx._captum import TargetType, TensorOrTupleOfTensorsGeneric
    from captum_lrpx.alti.attention_weights import AttentionWeights
    from captum_lrpx.attr.alti_pass import Explained


class _Rollout(WithoutFuture, Attribution):
    """Rollout: the product of all layers' mixing matrices, from a position down to the tokens."""

    def __init__(self, forward_func: Callable[..., Any], model: nn.Module | None = None) -> None:
        r"""Find the model.

        Args:
            forward_func (Callable): The forward function of the model or any modification of it: a
                Hugging Face model, a module that contains one, or a function, which needs
                ``model``.
            model (torch.nn.Module, optional): The Hugging Face model that ``forward_func`` runs.
                Default: found in ``forward_func``.

        Raises:
            ValueError: If no model is found.
        """
        Attribution.__init__(self, forward_func)
        # ALTI-Logit's reading of the model, of which only the attentions are used.
        self._reader = ALTILogit(forward_func, model)
        self.model = self._reader.model

    @entry_point
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object | None = None,
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""Shares of the explained position's representation, by token.

        Args:
            inputs (Tensor or tuple[Tensor]): The one input of the model: token ids ``[B, T]`` or
                embeddings ``[B, T, D]``. The first dimension is the batch.
            target (int, tuple, Tensor, or list, optional): Output indices, in every form that
                Captum takes. Only the position at which the output is read matters: the one at
                which the last attention has a gradient (the mean, if there are several).
                Default: None
            additional_forward_args (Any, optional): Arguments of ``forward_func`` after the
                inputs, given by position. Default: None

        Returns:
            *Tensor* or *tuple[Tensor]* of **attributions**:

            - **attributions** (*Tensor* or *tuple[Tensor]*):
                Of the shape of the input; for embeddings a token's share is spread evenly over
                ``D``.
                The sum over an example is 1.

        Raises:
            AssertionError: Captum's errors for inputs and targets that do not fit.
            ValueError: If there is more than one input, the attention weights are not available, or
                the output depends on no position.
            RuntimeError: Under ``torch.inference_mode``, where no gradient exists.

        Examples::

            >>> AttentionRollout(model).attribute(ids, target=(-1, are))  # [B, T]
        """
        tensor = only_input(inputs, self.get_name())
        require_gradients()
        with explained_pass(self._reader, (tensor,), [target], additional_forward_args) as found:
            tokens = self._rolled_out(found, _read(found, tensor))
        if tensor.ndim == 3:
            tokens = (tokens / tensor.shape[-1]).unsqueeze(-1).expand(tensor.shape).contiguous()
        if torch.is_floating_point(tensor):
            tokens = tokens.to(tensor.dtype)
        return _captum.format_output(_captum.is_tuple(inputs), (tokens,))

    @abstractmethod
    def _rolled_out(self, found: Explained, rows: Tensor) -> Tensor:
        """Token shares ``[B, T]`` of the positions read, which are weighted by ``rows [B, T]``."""


def _read(found: Explained, inputs: Tensor) -> Tensor:
    """Positions at which the explained value is read, weighted equally ``[B, T]``."""
    batch, count = inputs.shape[:2]
    (directions,) = found.directions
    last = found.reader.part(found.layout.attentions[-1], batch, count, count)
    gradient = directions.at_heads(last)
    if gradient is None:
        raise ValueError(
            "The explained output depends on no position after the last attention, so there is no "
            "position to roll attention out from."
        )
    read = (gradient != 0).any(-1).any(1)  # [B, T]
    shares = read.to(torch.promote_types(directions.value.dtype, torch.float32))
    return shares / shares.sum(-1, keepdim=True)


class AttentionRollout(_Rollout):
    r"""Attention rollout: how much each token is attended to over all layers, seen from a position.

    Each layer is assumed to mix tokens with half its attention weights, averaged over the heads,
    and half the identity, for the residual connection; the layers are multiplied (Abnar & Zuidema
    2020, https://arxiv.org/abs/2005.00928, section 3):

    .. math:: \tilde A_l = \frac{1}{2} (\bar A_l + I), \qquad r = e_p \tilde A_L \cdots \tilde A_1

    The result is positive, sums to 1, and is the same for every target read at position ``p``:
    rollout does not depend on the target. It serves as a baseline.

    The weights are the model's own, under any attention implementation, and the model is left as
    it was.
    """

    def _rolled_out(self, found: Explained, rows: Tensor) -> Tensor:
        batch, count = rows.shape
        parts = [
            found.reader.part(attention, batch, count, count)
            for attention in found.layout.attentions
        ]
        weights = [part.weights for part in parts]
        return torch.stack([_rollout(weights, each, row) for each, row in enumerate(rows)])


def _rollout(weights: list[AttentionWeights], example: int, row: Tensor) -> Tensor:
    """Roll out one example ``[T]``, starting from the shares of the positions read ``[T]``."""
    for layer in reversed(weights):
        mean = layer.of(example, slice(None)).mean(0).to(row.dtype)  # [T, T]
        # A padding row attends to nothing: only the residual connection remains.
        mixed = mean + torch.eye(mean.shape[0], dtype=mean.dtype, device=mean.device)
        row = row.to(mean.device) @ (mixed / mixed.sum(-1, keepdim=True))
    return row


class InformationFlow(_Rollout):
    r"""Information flow routes: how much of a position's representation comes from each token.

    After each attention the residual stream is the sum of its previous value and of the vectors
    that each head carries there from each token. A part ``z`` of a sum ``y`` is the more important
    the nearer it is to ``y``, and the importances of successive layers are multiplied (Ferrando &
    Voita 2024, https://arxiv.org/abs/2403.00824, section 2):

    .. math:: \frac{\max(\|y\|_1 - \|z - y\|_1, 0)}{\sum_{z'} \max(\|y\|_1 - \|z' - y\|_1, 0)}

    All edges are kept: the paper's threshold is 0. An MLP mixes no tokens. With
    ``by_head=False`` the heads and the residual of a token are added up first, which is ALTI
    (Ferrando et al. 2022, https://arxiv.org/abs/2203.04212). :class:`ALTILogit` goes from a block
    down to the tokens in the same way, after weighting the block by the logit, which plays no role
    here. The result is positive, sums to 1, and is the same for every target at a position.

    The model is left as it was.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        model: nn.Module | None = None,
        *,
        by_head: bool = True,
    ) -> None:
        r"""Find the model.

        Args:
            forward_func (Callable): As for :class:`ALTILogit`.
            model (torch.nn.Module, optional): As for :class:`ALTILogit`.
                Default: found in ``forward_func``.
            by_head (bool, optional): Whether each head is a separate part; otherwise the matrices
                are ALTI's. Default: True

        Raises:
            ValueError: If no model is found.
        """
        super().__init__(forward_func, model)
        self.by_head = by_head

    def _rolled_out(self, found: Explained, rows: Tensor) -> Tensor:
        for _, matrices in found.blocks(keep_alti=True, alti_by_head=self.by_head):
            assert matrices is not None  # noqa: S101 - all are kept
            rows = (rows.to(matrices).unsqueeze(1) @ matrices).squeeze(1)
        return rows


class RandomAttribution(WithoutFuture, Attribution):
    r"""Uniform random numbers in [-1, 1): the baseline of any method (Arras et al. 2025).

    They are a function of the seed and of the example: the same example gets the same numbers in
    every call and in every batch; different examples get independent ones. The random state of
    PyTorch is neither read nor changed, and the model does not run.
    """

    def __init__(self, forward_func: Callable[..., Any], seed: int = 0) -> None:
        r"""Store the seed.

        Args:
            forward_func (Callable): Not used; present in all attributions.
            seed (int, optional): Seed. Default: 0
        """
        Attribution.__init__(self, forward_func)
        self.seed = seed

    @entry_point
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,  # noqa: ARG002 - Captum's signature
        additional_forward_args: object | None = None,  # noqa: ARG002
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""Draw random attributions.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Inputs to attribute; the first dimension is the
                batch.
            target (optional): Not used.
            additional_forward_args (optional): Not used.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*):
                Uniform in [-1, 1), of the shape of the inputs.

        Examples::

            >>> RandomAttribution(model, seed=1).attribute(ids)  # [B, T]
        """
        tensors = tensors_of(inputs)
        drawn = tuple(
            torch.stack([self._draw(number, row) for row in tensor])
            for number, tensor in enumerate(tensors)
        )
        return _captum.format_output(_captum.is_tuple(inputs), drawn)

    def _draw(self, number: int, row: Tensor) -> Tensor:
        content = row.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(f"{self.seed} {number} ".encode() + content).digest()
        generator = torch.Generator("cpu").manual_seed(
            int.from_bytes(digest[:8], "big", signed=True)
        )
        dtype = row.dtype if row.is_floating_point() else torch.float32
        # Drawn in their own dtype: rounding a number of higher precision could give 1.
        drawn = torch.rand(row.shape, generator=generator, dtype=dtype, device="cpu")
        return (2 * drawn - 1).to(row.device)
