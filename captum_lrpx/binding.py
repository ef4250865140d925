"""Binding: an architecture's paths become the modules of one model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from captum_lrpx.architectures import (
    Attention,
    FusedAttention,
    GatedMLP,
    architecture_for,
)
from captum_lrpx.rules import slopes
from captum_lrpx.sites import (
    ActivationSite,
    AttentionSite,
    Block,
    GatedProductSite,
    InlineActivationSite,
    LinearSite,
    NormSite,
    Projection,
    Sites,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from captum_lrpx.architectures import MLP, Architecture

__all__ = ["architecture_of", "bind", "find_model", "is_pretrained", "model_in", "not_a_model"]


def find_model(root: nn.Module) -> nn.Module:
    """The Hugging Face model that a module is or contains.

    Args:
        root: A model, or any module around one (a forward module, a PEFT model).

    Returns:
        The outermost module that is a transformers model.

    Raises:
        TypeError: If ``root`` is no module.
        ValueError: If there is none, or if there are several beside each other.
    """
    if not isinstance(root, nn.Module):
        raise not_a_model(root)
    found = dict(_outermost(root, "", set()))
    if not found:
        raise ValueError(
            f"{type(root).__name__} contains no transformers model: give the model as `model=`."
        )
    if len(found) > 1:
        paths = ", ".join(map(repr, found.values()))
        raise ValueError(
            f"{type(root).__name__} contains several transformers models ({paths}): give the "
            "one to explain as `model=`."
        )
    return next(iter(found))


def model_in(root: nn.Module) -> nn.Module:
    """The Hugging Face model that a module is or contains; the module itself if it has none.

    Raises:
        ValueError: If there are several beside each other.
    """
    return find_model(root) if any(True for _ in _outermost(root, "", set())) else root


def not_a_model(value: Any) -> TypeError:
    """The error for something else in the place of a model."""
    if isinstance(value, tuple) and value and isinstance(value[0], nn.Module):
        shown = "a tuple: take the model out of it, `model, tokenizer = zoo.load(name)`"
    else:
        kind = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        shown = f"{value!r}" if isinstance(value, str) else kind
    return TypeError(
        f"The model must be a loaded one, a torch.nn.Module, not {shown}. "
        "`captum_lrpx.zoo.load(name)` loads an embedded one with its tokenizer, and "
        "`AutoModelForCausalLM.from_pretrained(name)` of transformers one of the hub."
    )


def _outermost(root: nn.Module, path: str, seen: set[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """The transformers models in a module that are in no other one, with their paths."""
    seen.add(root)
    if is_pretrained(root):
        yield root, path
        return
    for name, child in root.named_children():
        if child not in seen:  # a wrapper may hold a module that holds the wrapper
            yield from _outermost(child, f"{path}.{name}" if path else name, seen)


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module is a transformers model."""
    # By the attributes of the class, so that transformers need not be imported, and wrappers that
    # forward attribute access to a model inside them do not pass for it.
    return hasattr(type(module), "base_model_prefix") and hasattr(module, "config")


def architecture_of(model: nn.Module) -> Architecture:
    """The declaration that fits a transformers model.

    Raises:
        ValueError: If there is none, or it is no transformers model.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "model_type"):
        raise ValueError(
            f"{type(model).__name__} is no transformers model, so nothing says where it keeps its "
            "blocks: use LRPx, AttnLRPx or their classes for layers and neurons, which need not "
            "know."
        )
    return architecture_for(config.model_type, config)


def bind(model: nn.Module, architecture: Architecture | None = None) -> Sites:
    """Find everything that an architecture declares in a model.

    Args:
        model: A transformers model (see :func:`find_model`).
        architecture: Its declaration; looked up by ``config.model_type`` if not given.

    Returns:
        The sites.

    Raises:
        ValueError: If the model lacks something that the declaration names, or has something that
            the declaration excludes, or an activation or norm that it does not mention.
    """
    if architecture is None:
        architecture = architecture_of(model)
    return _Binder(model, architecture).bind()


def _is_linear_by_name(module: nn.Module) -> bool:
    """Whether a class that is no ``nn.Linear`` is one all the same (quantized, transposed)."""
    name = type(module).__name__
    return "Linear" in name or name == "Conv1D"


def _inputs(mlp: MLP | GatedMLP) -> tuple[str, ...]:
    return (mlp.gate, mlp.up) if isinstance(mlp, GatedMLP) else (mlp.input,)


class _Binder:
    """Looks up the paths of one declaration in one model."""

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self.model = model
        self.architecture = architecture
        self.modules = dict(model.named_modules())
        base = getattr(model, str(type(model).base_model_prefix), model)  # type: ignore[attr-defined]
        self.base = next(path for path, module in self.modules.items() if module is base)

    def bind(self) -> Sites:
        declared = self.architecture
        blocks = tuple(self._block(path) for path in self._block_paths())
        norms = list(self._norms(blocks))
        sites = Sites(
            placement=declared.norms.placement,
            token_embedding=self._required(self._in_base(declared.embeddings.token)),
            position_embedding=self._optional(declared.embeddings.position),
            segment_embedding=self._optional(declared.embeddings.segment),
            blocks=blocks,
            final_norm=self._final_norm(),
            norms=tuple(norms),
            activations=tuple(self._activations(blocks)),
            gated_products=tuple(self._gated_products(blocks)),
            linear=tuple(self._linear()),
            language_model_head=self._language_model_head(),
        )
        self._check_nothing_is_missing(sites)
        return sites

    # Paths -----------------------------------------------------------------------------------

    def _in_base(self, path: str) -> str:
        return f"{self.base}.{path}" if self.base else path

    def _required(self, path: str) -> nn.Module:
        if path not in self.modules:
            raise ValueError(
                f"{self._name()} has no module {path!r}, which the declaration of "
                f"{'/'.join(self.architecture.model_types)} names: register a declaration that "
                "fits this model."
            )
        module: nn.Module = self.modules[path]
        return module

    def _optional(self, path: str | None) -> nn.Module | None:
        return None if path is None else self.modules.get(self._in_base(path))

    def _name(self) -> str:
        return type(self.model).__name__

    def _block_paths(self) -> list[str]:
        pattern = re.escape(self._in_base(self.architecture.blocks)).replace(r"\*", r"\d+")
        paths = [path for path in self.modules if re.fullmatch(pattern, path)]
        if not paths:
            raise ValueError(
                f"{self._name()} has no modules {self._in_base(self.architecture.blocks)!r}, which "
                "the declaration names as its blocks: register one that fits this model."
            )
        return paths

    # Roles -----------------------------------------------------------------------------------

    def _norm(self, path: str) -> NormSite:
        declared = self.architecture.norms
        return NormSite(path, self._required(path), declared.centered, declared.weight_offset)

    def _final_norm(self) -> NormSite | None:
        path = self.architecture.norms.final
        if path is None or self._optional(path) is None:
            return None
        return self._norm(self._in_base(path))

    def _norms(self, blocks: tuple[Block, ...]) -> Iterator[NormSite]:
        declared = self.architecture.norms
        if declared.embedding is not None and self._optional(declared.embedding) is not None:
            yield self._norm(self._in_base(declared.embedding))
        for block in blocks:
            yield block.attention_norm
            yield block.mlp_norm
            yield from (self._norm(f"{block.path}.{path}") for path in declared.others)
        final = self._final_norm()
        if final is not None:
            yield final
        yield from (
            self._norm(path) for path in self.architecture.head.norms if path in self.modules
        )

    def _block(self, path: str) -> Block:
        for name in self.architecture.unsupported:
            if f"{path}.{name}" in self.modules:
                raise ValueError(
                    f"{self._name()} has {path}.{name}, which the declaration of "
                    f"{'/'.join(self.architecture.model_types)} does not cover."
                )
        norms, mlp = self.architecture.norms, self.architecture.mlp
        return Block(
            path=path,
            module=self.modules[path],
            attention=self._attention(path),
            attention_norm=self._norm(f"{path}.{norms.attention}"),
            mlp_norm=self._norm(f"{path}.{norms.mlp}"),
            mlp_inputs=tuple(self._required(f"{path}.{name}") for name in _inputs(mlp)),
            mlp_output=self._required(f"{path}.{mlp.output}"),
        )

    def _attention(self, block: str) -> AttentionSite:
        declared = self.architecture.attention
        path = f"{block}.{declared.module}"
        heads, key_value_heads, head_dim = self._head_sizes(path)
        query, key, value = self._projections(block, declared, heads, key_value_heads, head_dim)
        return AttentionSite(
            path=path,
            module=self._required(path),
            query=query,
            key=key,
            value=value,
            output=self._required(f"{block}.{declared.output}"),
            heads=heads,
            key_value_heads=key_value_heads,
            head_dim=head_dim,
        )

    def _head_sizes(self, path: str) -> tuple[int, int, int]:
        config: Any = self.model.config
        heads = int(config.num_attention_heads)
        key_value_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        module = self._required(path)
        head_dim = getattr(module, "head_dim", None) or getattr(config, "head_dim", None)
        return heads, key_value_heads, int(head_dim or config.hidden_size // heads)

    def _projections(
        self,
        block: str,
        declared: Attention | FusedAttention,
        heads: int,
        key_value_heads: int,
        head_dim: int,
    ) -> list[Projection]:
        if isinstance(declared, Attention):
            names = (declared.query, declared.key, declared.value)
            return [Projection(self._required(f"{block}.{name}")) for name in names]
        module = self._required(f"{block}.{declared.fused}")
        q, kv = heads * head_dim, key_value_heads * head_dim
        order = torch.arange(q + 2 * kv, device="cpu")
        if declared.layout == "concatenated":
            parts = torch.split(order, [q, kv, kv])
        else:
            parts = tuple(order.view(heads, 3, head_dim).transpose(0, 1).reshape(3, -1))
        return [Projection(module, part) for part in parts]

    def _activations(
        self, blocks: tuple[Block, ...]
    ) -> Iterator[ActivationSite | InlineActivationSite]:
        head = self.architecture.head
        paths = [f"{block.path}.{self.architecture.mlp.activation}" for block in blocks]
        optional = [*head.activations]
        if head.pooler_activation is not None:
            optional.append(self._in_base(head.pooler_activation))
        for path in paths:
            yield ActivationSite(path, self._required(path))
        for path in optional:
            if path in self.modules:
                yield ActivationSite(path, self.modules[path])
        for inline in head.inline:
            if inline.before in self.modules and inline.after in self.modules:
                before, after = self.modules[inline.before], self.modules[inline.after]
                yield InlineActivationSite(inline.before, before, after, inline.function)

    def _gated_products(self, blocks: tuple[Block, ...]) -> Iterator[GatedProductSite]:
        mlp = self.architecture.mlp
        if not isinstance(mlp, GatedMLP):
            return
        for block in blocks:
            yield GatedProductSite(
                path=f"{block.path}.{mlp.module}",
                gate=self._required(f"{block.path}.{mlp.gate}"),
                activation=self._required(f"{block.path}.{mlp.activation}"),
                up=self._required(f"{block.path}.{mlp.up}"),
                output=self._required(f"{block.path}.{mlp.output}"),
            )

    def _linear(self) -> Iterator[LinearSite]:
        adapter = ""
        for path, module in self.modules.items():
            if adapter and path.startswith(f"{adapter}."):
                continue  # a part of the sum that the adapter computes, no layer of its own
            if hasattr(module, "base_layer"):
                adapter = path
                yield LinearSite(path, module)
            elif isinstance(module, nn.Linear) or _is_linear_by_name(module):
                yield LinearSite(path, module)

    def _language_model_head(self) -> tuple[nn.Module, ...]:
        paths = self.architecture.head.language_model
        if not all(path in self.modules for path in paths):
            return ()
        return tuple(self.modules[path] for path in paths)

    # Refusal ---------------------------------------------------------------------------------

    def _check_nothing_is_missing(self, sites: Sites) -> None:
        """Refuse a model with an activation or norm module that the declaration does not name."""
        known: set[int] = {id(site.module) for site in sites.norms}
        for site in sites.activations:
            if isinstance(site, ActivationSite):
                known.add(id(site.module))
        inside_norms = tuple(f"{site.path}." for site in sites.norms)  # a norm trained by PEFT
        for path, module in self.modules.items():
            if id(module) in known or any(True for _ in module.children()):
                continue
            if path.startswith(inside_norms):
                continue
            if slopes.is_known_activation(module) or type(module).__name__.endswith("Norm"):
                raise ValueError(
                    f"{self._name()} has {path!r} ({type(module).__name__}), a non-linear layer "
                    f"that the declaration of {'/'.join(self.architecture.model_types)} gives no "
                    "rule: its relevance would be wrong. Register a declaration that names it."
                )
