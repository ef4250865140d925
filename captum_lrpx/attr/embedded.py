"""Embeddings of token ids, wherever a model looks them up."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_lrpx.module_tree import modules_of
from captum_lrpx.onlookers import hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def apart(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs, with a copy of ids that share the memory of others, to tell them apart."""
    found: list[Tensor] = []
    for each in inputs:
        shared = not each.is_floating_point() and any(_is_view(each, other) for other in found)
        found.append(each.clone() if shared else each)
    return tuple(found)


@contextmanager
def embedded_ids(model: nn.Module, ids: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
    """Turn the embeddings of given ids into leaves, for a forward pass inside a ``with`` block.

    The embedding of an input is the call that is indexed by a view of this very tensor, or, in the
    model's own table of tokens, by a tensor equal to it, transposed or padded.
    Other calls (positions, segments, a second table) are additions of the model.

    Args:
        model: A module with ``torch.nn.Embedding`` somewhere inside.
        ids: Inputs of integers, each ``[B, T]``.

    Yields:
        For each input a list that fills with its embeddings ``[B, T, D]``.

    In the block, an embedding of ids that several inputs hold is a ValueError.
    """
    found: list[list[Tensor]] = [[] for _ in ids]
    if not ids:
        yield found
        return
    tables: list[nn.Module] = [
        module for module in modules_of(model) if isinstance(module, nn.Embedding)
    ]
    own = _token_weight(model)

    def embedded(module: Any, args: tuple[Any, ...], output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or not args:
            return None
        index = args[0]
        of_tokens = own is not None and getattr(module, "weight", None) is own
        ways: list[tuple[int, _Way]] = []
        for number, (given, leaves) in enumerate(zip(ids, found, strict=True)):
            seen = isinstance(index, Tensor) and (of_tokens or _is_view(index, given))
            way = _way_to(index, given) if seen and (of_tokens or not leaves) else None
            if way is not None:
                ways.append((number, way))
        if not ways:
            return None
        number, way = ways[0] if len(ways) == 1 else _way_of_one(index, ids, ways)
        leaf = way.leaf(output).detach().contiguous().requires_grad_()
        found[number].append(leaf)
        return way.back(leaf, output)

    embedding = _input_embeddings(model)
    if embedding is not None and embedding not in tables:
        inside = set(embedding.modules())  # the table inside of an adapter
        tables = [*(table for table in tables if table not in inside), embedding]
    with hooked(tables, after=_of_values(embedded)):
        yield found


def _of_values(hook: Callable[[Any, Any, Any], Tensor | None]) -> Callable[[Any, Any, Any], Any]:
    """A hook for the values of an output: the first of a quantized embedding's, with its factor."""

    def after(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple) or not output:
            return hook(module, args, output)
        first = hook(module, args, output[0])
        return None if first is None else (first, *output[1:])

    return after


class _Way(NamedTuple):
    """Maps between the output of a table and embeddings in the order of the given ids.

    Attributes:
        leaf: Takes ``[B, T, D]`` out of the output.
        back: Puts it back, as a new tensor.
    """

    leaf: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]


def _is_view(index: Tensor, given: Tensor) -> bool:
    return index.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()


def _way_of_one(
    index: Tensor, ids: Sequence[Tensor], ways: Sequence[tuple[int, _Way]]
) -> tuple[int, _Way]:
    """Of several inputs with the ids of an index, the one that it is a view of.

    Raises:
        ValueError: If there is none.
    """
    own = [each for each in ways if _is_view(index, ids[each[0]])]
    whole = [each for each in own or ways if index.numel() == ids[each[0]].numel()]
    if len(whole) == 1:
        return whole[0]
    several = " and ".join(str(number + 1) for number, _ in ways)
    raise ValueError(
        f"Inputs {several} hold the same token ids, and it cannot be told which of them is "
        "embedded: give embeddings instead of ids."
    )


def _way_to(index: Tensor, given: Tensor) -> _Way | None:
    """Find given ids in an index: as they are, transposed, or padded."""
    if index.is_floating_point():
        return None
    if index.numel() == given.numel() and torch.equal(index.reshape(given.shape), given):
        return _Way(
            lambda output: output.reshape(*given.shape, -1),
            lambda leaf, output: leaf.reshape(output.shape).clone(),
        )
    if index.ndim != 2 or given.ndim != 2:
        return None
    if index.shape == given.T.shape and torch.equal(index, given.T):
        return _Way(
            lambda output: output.transpose(0, 1),
            lambda leaf, _: leaf.transpose(0, 1).contiguous(),
        )
    return _way_around(index, given) if len(index) == len(given) else None


def _way_around(index: Tensor, given: Tensor) -> _Way | None:
    length, longer = given.shape[1], index.shape[1]
    if longer <= length:
        return None
    ends = (slice(0, length), slice(longer - length, longer))  # padding after, a prompt before
    found = [here for here in ends if torch.equal(index[:, here], given)]
    return _within(found[0]) if len(found) == 1 else None


def _within(here: slice) -> _Way:
    def back(leaf: Tensor, output: Tensor) -> Tensor:
        return torch.cat([output[:, : here.start], leaf, output[:, here.stop :]], dim=1)

    return _Way(lambda output: output[:, here], back)


def _input_embeddings(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_input_embeddings", None)
    try:
        module = get() if get is not None else None
    except (NotImplementedError, AttributeError):
        return None
    return module if isinstance(module, nn.Module) else None


def _token_weight(model: nn.Module) -> Any:
    return getattr(_input_embeddings(model), "weight", None)
