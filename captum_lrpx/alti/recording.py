r"""One forward pass, recorded for ALTI-Logit, with every block cut where its branches end.

Between the inputs of a branch (attention, MLP) and its output there is no gradient: the output of
each branch, and the input of the first block, are the sources of a graph in which only residual
adds, norms with a frozen scale, and the head are left. The explained value is an affine function of
them, and its gradient at each is the direction in which that branch moves it:

.. math:: f = \sum_i <u^0_i, x^0_i> + \sum_l <u^{A,l}_i, o^l_i> + <u^{M,l}_i, m^l_i> + biases

This holds with the norm before a branch (where all directions are the same) and behind its residual
add (where each norm turns them). Roles of the architecture say where things are; nothing here is
about a family.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import get_gradient_edge

from captum_lrpx.alti.attention_weights import WeightCapture
from captum_lrpx.alti.linear import constant_part, is_plain
from captum_lrpx.alti.records import BiasRecord, BlockRecord
from captum_lrpx.rules import FrozenScale, Identity
from captum_lrpx.rules.linear_patches import RequireGradient, weight_and_bias
from captum_lrpx.rules.own_backward import OwnBackward
from captum_lrpx.rules.patches import Attachment, Constant
from captum_lrpx.rules.sparse import row_sparse_linear
from captum_lrpx.rules.verified import own_linear_layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn
    from torch.autograd.graph import GradientEdge

    from captum_lrpx.rules.patches import Forward
    from captum_lrpx.sites import Block, NormSite, Projection, Sites

__all__ = ["Recording", "select_features", "tolerance"]

_CHECKED_ROWS = 8


@dataclass(eq=False)
class Recording:
    """Patches that record a forward pass, and what they have recorded.

    Attributes:
        model: The transformers model.
        sites: Its sites.
        blocks: One record for each block.
        biases: Biases outside of the branches, in the order of the forward pass.
        start_edge: Where the gradient at the input of the first block arrives.
        strict: Whether to check that each block does what its architecture says; dropout does not.
        sealed: Whether the forward pass is over; blocks may run again for a checkpointed backward.
    """

    model: nn.Module
    sites: Sites
    blocks: list[BlockRecord] = field(init=False)
    biases: list[BiasRecord] = field(default_factory=list)
    start_edge: GradientEdge = field(init=False)
    strict: bool = True
    sealed: bool = False

    def __post_init__(self) -> None:
        paths = {id(site.module): site.path for site in self.sites.linear}
        self.blocks = [_empty_record(block, paths) for block in self.sites.blocks]
        self._root = torch.zeros((), device="cpu", requires_grad=True)

    # What is attached where -----------------------------------------------------------------

    def attachments(self) -> list[Attachment]:
        """The patches, for :func:`captum_lrpx.propagation.attached`."""
        attachments = [
            Attachment(module, RequireGradient(linear.path, module, own=True))
            for linear in self.sites.linear
            for _, module in own_linear_layers(linear.module)
        ]
        attachments += [patch for record in self.blocks for patch in self._of_block(record)]
        inside = tuple(f"{block.path}." for block in self.sites.blocks)
        # Linear layers first: an activation between two modules looks at what the first returns.
        for linear in self.sites.linear:
            if not linear.path.startswith(inside):
                if not is_plain(linear.module):
                    check = RequireGradient(linear.path, linear.module)
                    attachments.append(Attachment(linear.module, check))
                patch = partial(self._head_linear, linear.module)
                attachments.append(Attachment(linear.module, patch))
                attachments += self._biased(linear.module, f"{linear.path}.bias")
        for norm in self.sites.norms:
            if not norm.path.startswith(inside):
                attachments += self._frozen(norm)
        for activation in self.sites.activations:
            if not activation.path.startswith(inside):
                attachments += Identity().attach(activation)
        return attachments

    def _of_block(self, record: BlockRecord) -> Iterator[Attachment]:
        block = record.block
        attention = block.attention
        yield Attachment(block.module, partial(self._enter, record))
        if self.sites.placement == "pre":
            yield Attachment(block.attention_norm.module, Constant())
            yield Attachment(block.mlp_norm.module, partial(self._before_mlp, record))
        else:
            cut = {attention.query.module, attention.key.module, *block.mlp_inputs}
            for module in cut - {attention.value.module}:
                yield Attachment(module, Constant())
            yield from self._frozen(block.attention_norm)
            patch = partial(self._behind_attention, record)
            yield Attachment(block.attention_norm.module, patch)
            yield from self._frozen(block.mlp_norm)
        yield Attachment(attention.value.module, partial(self._value, record))
        yield Attachment(attention.module, partial(self._attention, record))
        yield Attachment(attention.output, partial(self._attention_output, record))
        yield Attachment(block.mlp_output, partial(self._mlp_output, record))

    def _frozen(self, norm: NormSite) -> Iterator[Attachment]:
        yield from FrozenScale().attach(norm)
        yield from self._biased(norm.module, f"{norm.path}.bias")

    def _biased(self, module: nn.Module, name: str) -> Iterator[Attachment]:
        if isinstance(getattr(module, "bias", None), torch.Tensor):
            yield Attachment(module, partial(self._bias, name, module))

    # Patches: each gets the forward that it wraps behind what is bound to it ----------------

    def _source(self, value: Tensor) -> tuple[Tensor, GradientEdge]:
        """The value as a source of the graph, and the edge on which its gradient arrives."""
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "The forward function runs the model without gradients (torch.no_grad), which the "
                "direction of the explained value needs: let it run with them."
            )
        source: Tensor = _Source.apply(self._root, value.detach())
        return source, get_gradient_edge(source)

    def _enter(self, record: BlockRecord, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """A block: its input; that of the first block is a source."""
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        if not self.sealed:
            if hasattr(record, "residual"):
                raise ValueError(
                    "The forward function runs the model more than once, so there is no one "
                    "decomposition: let it run the model once, or explain each run for itself."
                )
            record.residual = x.detach()
        if record is self.blocks[0]:
            x, edge = self._source(x)
            if not self.sealed:
                self.start_edge = edge
            if args:
                args = (x, *args[1:])
            else:
                kwargs["hidden_states"] = x
        return forward(*args, **kwargs)

    def _before_mlp(self, record: BlockRecord, forward: Forward, x: Tensor) -> Any:
        """Norm before the MLP: its input is the middle of the residual stream."""
        if not self.sealed:
            record.resultant = self._checked_sum(record, x)
        with torch.no_grad():
            return forward(x)

    def _behind_attention(self, record: BlockRecord, forward: Forward, x: Tensor) -> Any:
        """Norm behind the residual add of the attention."""
        y: Tensor = forward(x)
        if not self.sealed:
            record.norm_input = self._checked_sum(record, x)
            weight: Any = getattr(record.block.attention_norm.module, "weight", None)
            record.norm_weight = None if weight is None else weight.detach()
            record.resultant = y.detach().view_as(record.residual)
        return y

    def _value(self, record: BlockRecord, forward: Forward, x: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = forward(x)
        if not self.sealed:
            record.values = select_features(output, record.block.attention.value)
        return output

    def _attention(self, record: BlockRecord, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        attention = record.block.attention
        with WeightCapture(attention.heads) as capture:
            output = forward(*args, **kwargs)
        if not self.sealed:
            if len(capture.found) != 1:
                raise ValueError(
                    f"The attention weights of {attention.path!r} cannot be had: it made "
                    f"{len(capture.found)} calls of softmax or scaled_dot_product_attention, not "
                    'one. Load the model with attn_implementation="sdpa" or "eager".'
                )
            record.weights = capture.found[0]
        return output

    def _attention_output(self, record: BlockRecord, forward: Forward, x: Tensor) -> Tensor:
        with torch.no_grad():
            value: Tensor = forward(x)
        output, edge = self._source(value)
        if not self.sealed:
            residual = record.residual
            tokens = residual.shape[1]
            checked = torch.linspace(0, tokens - 1, min(tokens, _CHECKED_ROWS), device="cpu").long()
            record.checked = checked
            record.mixed = x.detach().reshape(*residual.shape[:2], -1)[:, checked.to(x.device)]
            record.update = value.view_as(residual)
            record.attention_edge = edge
        return output

    def _mlp_output(self, record: BlockRecord, forward: Forward, x: Tensor) -> Tensor:
        with torch.no_grad():
            value: Tensor = forward(x)
        output, edge = self._source(value)
        if not self.sealed:
            record.mlp = value.view_as(record.residual)
            record.mlp_edge = edge
        return output

    def _head_linear(self, module: nn.Module, forward: Forward, x: Tensor) -> Tensor:
        if not x.requires_grad or not is_plain(module):
            output: Tensor = forward(x)
            return output
        with torch.no_grad():
            value: Tensor = forward(x)
        return row_sparse_linear(x, value, weight_and_bias(module)[0])

    def _bias(
        self, name: str, module: nn.Module, forward: Forward, *args: Any, **kwargs: Any
    ) -> Any:
        output = forward(*args, **kwargs)
        if not self.sealed and output.requires_grad:
            bias: Any = module.bias  # read while the module runs, it may be offloaded otherwise
            self.biases.append(BiasRecord(name, bias.detach(), get_gradient_edge(output)))
        return output

    # Checks ---------------------------------------------------------------------------------

    def _checked_sum(self, record: BlockRecord, total: Tensor) -> Tensor:
        """The middle of the residual stream, which must be ``x + o``."""
        if not (hasattr(record, "residual") and hasattr(record, "update")):
            raise ValueError(
                f"The modules of {record.block.path!r} did not run in the order that its "
                "architecture implies: the declaration does not fit this model."
            )
        residual, update = record.residual, record.update
        del record.update
        total = total.detach().view_as(residual)
        if self.strict:
            rounding = total.abs().mul_(2 * torch.finfo(total.dtype).eps)
            difference = (total - residual).sub_(update).abs_().sub_(rounding).clamp_(min=0).norm()
            if difference.isnan():
                raise ValueError(
                    f"The residual stream of {record.block.path!r} is not finite. (With padding on "
                    "the left, eager attention of some families gives NaN in float64: use sdpa, or "
                    "float32.)"
                )
            if not difference <= tolerance(total) * update.norm():
                raise ValueError(
                    f"In {record.block.path!r} the output of the attention is not simply added to "
                    "the residual stream (a multiplier, a parallel MLP?): ALTI-Logit does not know "
                    "what this model does there."
                )
        return total

    def seal(self, inputs: Tensor) -> None:
        """End the recording, and refuse one in which some block was not seen whole.

        Args:
            inputs: Token ids ``[B, T]`` or embeddings ``[B, T, D]`` that are explained.

        Raises:
            ValueError: If the model, or a part that the architecture declares, did not run, or ran
                on something of another shape than the inputs.
        """
        self.sealed = True
        for record in self.blocks:
            for part in ("residual", "values", "weights", "resultant", "mixed", "mlp"):
                if not hasattr(record, part):
                    raise ValueError(
                        f"The {part} of {record.block.path!r} were not seen: the forward function "
                        f"did not run all blocks of {type(self.model).__name__}."
                    )
        seen = tuple(self.blocks[0].residual.shape[:2])
        if tuple(inputs.shape[:2]) != seen:
            raise ValueError(
                f"The forward function was given inputs of shape {tuple(inputs.shape)}, but ran "
                f"the model on {seen[0]} examples of {seen[1]} tokens: give token ids or "
                "embeddings as they are."
            )


class _Source(OwnBackward):
    """A tensor at which a graph begins, without keeping its value alive as a leaf would."""

    @staticmethod
    def forward(_root: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is needed backward."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:  # noqa: ARG004
        return None, None


def _empty_record(block: Block, paths: dict[int, str]) -> BlockRecord:
    output = block.attention.output
    path = paths.get(id(output), f"{block.attention.path}.output")
    return BlockRecord(block, bias_name=f"{path}.bias", bias=constant_part(output))


def tolerance(x: Tensor) -> float:
    """How far two ways to compute a tensor of this precision may be apart, relatively."""
    return max(1e-3, 4 * torch.finfo(x.dtype).eps)


def select_features(output: Tensor, projection: Projection) -> Tensor:
    """The output features of a projection, ``[..., n]``; a view where they lie together."""
    features = projection.features
    if features is None:
        return output
    start, count = int(features[0]), features.numel()
    if int(features[-1]) - start + 1 == count:
        return output.narrow(-1, start, count)
    return output[..., features.to(output.device)]
