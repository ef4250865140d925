"""The places in one model where rules apply: roles of an architecture, bound to modules.

An architecture (:mod:`captum_lrpx.architectures`) says by path where a family keeps things; binding
it to a model (:mod:`captum_lrpx.binding`) gives the sites defined here, and a rule
(:mod:`captum_lrpx.rules`) is attached to a site. ``path`` is always the full path in the model that
was bound, so that messages and overrides speak of the names that users see.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "ActivationSite",
    "AttentionSite",
    "Block",
    "GatedProductSite",
    "InlineActivationSite",
    "LinearSite",
    "NormSite",
    "Projection",
    "Site",
    "Sites",
]


@dataclass(frozen=True, eq=False)
class Site:
    """A place in a model that a rule can be attached to.

    Attributes:
        path: Path of the module in the bound model.
    """

    path: str


@dataclass(frozen=True, eq=False)
class NormSite(Site):
    """A normalization.

    Attributes:
        module: The norm.
        centered: Whether it subtracts the mean (LayerNorm) or not (RMSNorm).
        weight_offset: What the family adds to the stored weight (1 in Gemma).
    """

    module: nn.Module
    centered: bool
    weight_offset: float


@dataclass(frozen=True, eq=False)
class ActivationSite(Site):
    """An element-wise activation with a module of its own."""

    module: nn.Module


@dataclass(frozen=True, eq=False)
class InlineActivationSite(Site):
    """An element-wise activation that the family writes as a function between two modules.

    Attributes:
        before: The module whose output is the pre-activation.
        after: The module whose input is the activated value.
        function: Name of the function, as in a model's config (``"gelu"``).
    """

    before: nn.Module
    after: nn.Module
    function: str


@dataclass(frozen=True, eq=False)
class Projection:
    """The query, key or value projection of an attention: a module or some of its features.

    Attributes:
        module: The linear layer.
        features: Which output features ``[n]`` (in the order ``head, head_dim``), or None for all.
    """

    module: nn.Module
    features: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AttentionSite(Site):
    """A self-attention: the softmax of query and key weighs the values.

    Attributes:
        module: The module that computes it.
        query: Query projection.
        key: Key projection.
        value: Value projection.
        output: The linear layer that mixes the heads.
        heads: Number of query heads.
        key_value_heads: Number of key/value heads; each is shared by ``heads / key_value_heads``.
        head_dim: Size of one head.
    """

    module: nn.Module
    query: Projection
    key: Projection
    value: Projection
    output: nn.Module
    heads: int
    key_value_heads: int
    head_dim: int


@dataclass(frozen=True, eq=False)
class GatedProductSite(Site):
    """The product ``activation(gate(x)) * up(x)`` of a gated MLP.

    Attributes:
        gate: Linear layer of the gate.
        activation: The activation on the gate.
        up: The other linear layer.
        output: The linear layer that takes the product.
    """

    gate: nn.Module
    activation: nn.Module
    up: nn.Module
    output: nn.Module


@dataclass(frozen=True, eq=False)
class LinearSite(Site):
    """A linear layer."""

    module: nn.Module


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block.

    Attributes:
        path: Path of the block.
        module: The block.
        attention: Its attention.
        attention_norm: The norm before the attention (pre-norm) or after its residual (post-norm).
        mlp_norm: The same for the MLP.
        mlp_inputs: The linear layers that the MLP starts with (two in a gated one).
        mlp_output: The last linear layer of the MLP.
    """

    path: str
    module: nn.Module
    attention: AttentionSite
    attention_norm: NormSite
    mlp_norm: NormSite
    mlp_inputs: tuple[nn.Module, ...]
    mlp_output: nn.Module


@dataclass(frozen=True, eq=False)
class Sites:
    """Everything of one model that an architecture declares.

    Attributes:
        placement: Whether norms stand before a branch (``"pre"``) or after its residual add.
        token_embedding: The embedding of token ids.
        position_embedding: The embedding of absolute positions, if the family has one.
        segment_embedding: The embedding of token types, if the family has one.
        blocks: The transformer blocks in order.
        final_norm: The norm after the last block, if the family has one.
        norms: All norms, those of heads and embeddings included.
        activations: All activations, inline ones included.
        gated_products: All gated products.
        linear: All linear layers.
        language_model_head: The chain of modules from the last hidden state to the logits, where
            nothing else happens on the way; empty if the model has no such head.
    """

    placement: Literal["pre", "post"]
    token_embedding: nn.Module
    position_embedding: nn.Module | None
    segment_embedding: nn.Module | None
    blocks: tuple[Block, ...]
    final_norm: NormSite | None
    norms: tuple[NormSite, ...]
    activations: tuple[ActivationSite | InlineActivationSite, ...]
    gated_products: tuple[GatedProductSite, ...]
    linear: tuple[LinearSite, ...]
    language_model_head: tuple[nn.Module, ...] = field(default=())

    @property
    def attentions(self) -> tuple[AttentionSite, ...]:
        """The attention of every block."""
        return tuple(block.attention for block in self.blocks)
