"""The embeddings of token ids, wherever a model looks them up."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["embedded_ids"]


@contextmanager
def embedded_ids(model: nn.Module, ids: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
    """Make leaves of the embeddings of given ids, for a forward pass inside a ``with`` block.

    The embedding of an input is the call that is indexed by a view of this very tensor, or, in the
    model's own table of tokens, by a tensor equal to it. Other calls (positions, segments, a second
    table that is added) are what the model adds to it.

    Args:
        model: A module with ``torch.nn.Embedding`` somewhere inside.
        ids: Inputs of integers, each ``[B, T]``.

    Yields:
        For each input a list that fills with the embeddings ``[B, T, D]`` of it.
    """
    found: list[list[Tensor]] = [[] for _ in ids]
    thread = threading.get_ident()
    tables: list[nn.Module] = [
        module for module in model.modules() if isinstance(module, nn.Embedding)
    ]
    own = _token_weight(model)

    def after(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple) and output:
            first = after(module, args, output[0])
            return None if first is None else (first, *output[1:])
        if threading.get_ident() != thread or not isinstance(output, Tensor) or not args:
            return None
        index = args[0]
        of_tokens = own is not None and getattr(module, "weight", None) is own
        for given, leaves in zip(ids, found, strict=True):
            if not isinstance(index, Tensor):
                continue
            first = of_tokens and not leaves
            if _same(index, given, equal=first):
                return None if leaves and not of_tokens else _with_leaf(output, leaves)
            start = _start_in(index, given) if first else None
            if start is not None:
                end = start + given.shape[1]
                inside = _with_leaf(output[:, start:end], leaves)
                return torch.cat([output[:, :start], inside, output[:, end:]], dim=1)
        return None

    embedding = _input_embeddings(model)
    if embedding is not None and embedding not in tables:
        tables.append(embedding)
    handles = [table.register_forward_hook(after) for table in tables]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _with_leaf(output: Tensor, leaves: list[Tensor]) -> Tensor:
    """Embeddings as a function of a new leaf."""
    leaves.append(output.detach().contiguous().requires_grad_())
    return leaves[-1].clone()


def _start_in(index: Tensor, given: Tensor) -> int | None:
    """Where ids begin in longer ones: a model that adds a prompt or padding at one end of them."""
    if index.is_floating_point() or (index.ndim, given.ndim) != (2, 2) or len(index) != len(given):
        return None
    length, longer = given.shape[1], index.shape[1]
    if longer <= length:
        return None
    wide = given.to(index)
    ends = (0, longer - length)
    starts = [start for start in ends if torch.equal(index[:, start : start + length], wide)]
    return starts[0] if len(starts) == 1 else None


def _same(index: Tensor, given: Tensor, *, equal: bool) -> bool:
    if index.numel() != given.numel() or index.is_floating_point():
        return False
    if index.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
        return index.storage_offset() == given.storage_offset()
    return equal and torch.equal(index.reshape(-1).to(given), given.reshape(-1))


def _input_embeddings(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_input_embeddings", None)
    try:
        module = get() if get is not None else None
    except (NotImplementedError, AttributeError):
        return None
    return module if isinstance(module, nn.Module) else None


def _token_weight(model: nn.Module) -> Any:
    return getattr(_input_embeddings(model), "weight", None)
