"""Declarations of architectures, no longer needed: deprecated.

The structure of a model is read from the graph of its forward pass. A declaration is still
accepted, with a warning, and read as a hint: whether the family needs ``position_ids``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "MLP",
    "Architecture",
    "Attention",
    "Embeddings",
    "FusedAttention",
    "GatedMLP",
    "Head",
    "Inline",
    "Norms",
    "needs_position_ids",
    "register",
    "unregister",
]

_registered: list[Architecture] = []


def register(architecture: Architecture) -> Architecture:
    """Accept a declaration; deprecated, as no model needs one.

    Args:
        architecture: The declaration.

    Returns:
        The declaration.

    Raises:
        TypeError: If it is not an :class:`Architecture`.
    """
    if not isinstance(architecture, Architecture):
        raise TypeError(f"register() takes an Architecture, not {type(architecture).__name__}.")
    warnings.warn(
        "Architectures need no declaration any more: the structure of a model is read from its "
        "forward pass. register() will be removed; only `position_ids` of a declaration is read.",
        DeprecationWarning,
        stacklevel=2,
    )
    _registered.insert(0, architecture)
    return architecture


def unregister(architecture: Architecture) -> None:
    """Undo :func:`register`.

    Raises:
        ValueError: If the declaration was not registered.
    """
    if architecture not in _registered:
        raise ValueError(f"The declaration of {architecture.model_types} was not registered.")
    _registered.remove(architecture)


def needs_position_ids(model_type: str) -> bool | None:
    """Whether a declaration requires position ids for padding; None without a declaration."""
    known = (each.position_ids for each in _registered if model_type in each.model_types)
    return next(known, None)


@dataclass(frozen=True)
class Embeddings:
    """The embeddings, by paths of the base model.

    Attributes:
        token: Embedding of token ids, which gets relevance.
        position: Embedding of absolute positions, where the family has one.
        segment: Embedding of token types, where the family has one.
        positions_after_padding: Whether positions are counted from the padding id on, which
            shortens the longest input by that many (RoBERTa).
    """

    token: str
    position: str | None = None
    segment: str | None = None
    positions_after_padding: bool = False


@dataclass(frozen=True)
class Norms:
    """The norms of the base model.

    Attributes:
        attention: Path in a block of the norm that belongs to the attention.
        mlp: Path in a block of the norm that belongs to the MLP.
        final: Path in the base model of the norm after the last block.
        embedding: Path in the base model of the norm after the embeddings.
        placement: ``"pre"``: a norm comes before its branch; ``"post"``: after the residual add.
        centered: LayerNorm subtracts the mean, RMSNorm does not.
        weight_offset: Offset that the family adds to the stored weight (1 in Gemma).
        others: Paths in a block of further norms (such as of queries and keys).
    """

    attention: str
    mlp: str
    final: str | None = None
    embedding: str | None = None
    placement: Literal["pre", "post"] = "pre"
    centered: bool = True
    weight_offset: float = 0.0
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attention:
    """A self-attention with three projections.

    Attributes:
        module: Path in a block.
        query: Path of the query projection, relative to the block.
        key: Path of the key projection.
        value: Path of the value projection.
        output: Path of the linear layer that mixes the heads.
    """

    module: str
    query: str
    key: str
    value: str
    output: str


@dataclass(frozen=True)
class FusedAttention:
    """A self-attention with one projection for query, key and value.

    Attributes:
        module: Path in a block.
        fused: Path of the projection, relative to the block.
        output: Path of the linear layer that mixes the heads.
        layout: Order of the output features: ``"concatenated"``: all queries, all keys, all values;
            ``"per_head"``: query, key and value of the first head, of the second head, ...
    """

    module: str
    fused: str
    output: str
    layout: Literal["concatenated", "per_head"]


@dataclass(frozen=True)
class MLP:
    """An MLP ``output(activation(input(x)))``, by paths in a block."""

    input: str
    activation: str
    output: str


@dataclass(frozen=True)
class GatedMLP:
    """A gated MLP ``output(activation(gate(x)) * up(x))``, by paths in a block.

    Attributes:
        module: Path of the MLP itself.
        gate: Linear layer of the gate.
        activation: The activation on the gate.
        up: The other linear layer.
        output: The linear layer that takes the product.
    """

    module: str
    gate: str
    activation: str
    up: str
    output: str


@dataclass(frozen=True)
class Inline:
    """An activation that is a function call between two modules.

    Attributes:
        before: Path of the module whose output is the pre-activation.
        after: Path of the module that takes the activated value.
        function: Name of the function (``"gelu"``, ``"tanh"``).
    """

    before: str
    after: str
    function: str


@dataclass(frozen=True)
class Head:
    """Contents of a family's heads; a path that a model does not have is skipped.

    Attributes:
        language_model: The chain of modules from the last hidden state to the logits of the
            language model, if nothing else happens in between. It allows computing logits at one
            position only.
        norms: Norms, by paths in the whole model; centered as the family's.
        activations: Activation modules, by paths in the whole model.
        inline: Inline activations, by paths in the whole model.
        pooler_activation: Activation of the base model's pooler, by path in the base model.
    """

    language_model: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    inline: tuple[Inline, ...] = ()
    pooler_activation: str | None = None


@dataclass(frozen=True)
class Architecture:
    """Places of a model family's parts.

    In a declared block, only attention carries information from one position to another;
    modules after the attention of the last block are read at the explained positions only.

    Attributes:
        model_types: The values of ``config.model_type`` that the declaration is for.
        embeddings: Embeddings.
        blocks: Path in the base model of the transformer blocks, ``*`` for the number.
        norms: Norms.
        attention: Attention of a block.
        mlp: MLP of a block.
        head: Heads.
        unsupported: Paths in a block (or in the base model) of modules that, if present, make the
            declaration invalid for a model (cross-attention).
        requires: ``(config attribute, value)`` pairs that a model's config must have.
        position_ids: Whether the family counts positions from the left edge unless it gets
            ``position_ids``, so that a batch padded on the left needs them.
    """

    model_types: tuple[str, ...]
    embeddings: Embeddings
    blocks: str
    norms: Norms
    attention: Attention | FusedAttention
    mlp: MLP | GatedMLP
    head: Head = Head()
    unsupported: tuple[str, ...] = ()
    requires: tuple[tuple[str, object], ...] = ()
    position_ids: bool = True
