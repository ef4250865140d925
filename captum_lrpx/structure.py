"""Parts of a model that the operations alone do not name: its tables of embeddings, its blocks."""

from __future__ import annotations

from torch import nn

from captum_lrpx.module_tree import modules_of

__all__ = ["blocks_of", "position_table_of", "positions_after_padding", "token_embedding_of"]


def token_embedding_of(model: nn.Module) -> nn.Module:
    """The table of token embeddings of a transformers model.

    Raises:
        ValueError: If it has none.
    """
    get = getattr(model, "get_input_embeddings", None)
    try:
        module = None if get is None else get()
    except NotImplementedError:
        module = None
    if not isinstance(module, nn.Module):
        raise ValueError(  # noqa: TRY004 - the model lacks something, its type is right
            f"{type(model).__name__} has no table of token embeddings (get_input_embeddings): give "
            "embeddings instead of token ids."
        )
    return module


def position_table_of(model: nn.Module) -> nn.Embedding | None:
    """The table of absolute positions, which has an end; None if a model has none."""
    for module in modules_of(model):
        for name, child in module._modules.items():  # noqa: SLF001 - named_modules() is slow
            if isinstance(child, nn.Embedding) and (name == "wpe" or "position" in name):
                return child
    return None


def positions_after_padding(model: nn.Module) -> bool:
    """Whether positions are counted from the padding token's number on, as in RoBERTa."""
    return getattr(position_table_of(model), "padding_idx", None) is not None


def blocks_of(model: nn.Module) -> list[list[nn.Module]]:
    """The blocks of a model: of its trunk, or of each if it has several.

    A trunk is a ``torch.nn.ModuleList`` of modules that are made of others, alike or of a few
    classes that take turns, and is in no block itself; an encoder-decoder has two. What a
    ``torch.nn.Sequential`` holds are blocks if they are all alike.

    Args:
        model: Any module.

    Returns:
        For each trunk its blocks, in their order; nothing for a module without any.
    """
    found: list[list[nn.Module]] = []
    waiting, seen = [model], {model}
    while waiting:
        module = waiting.pop()
        children = list(module.children())
        if _is_trunk(module, children):
            found.append(children)
        else:
            waiting += [child for child in reversed(children) if child not in seen]
            seen.update(children)
    return found


def _is_trunk(module: nn.Module, children: list[nn.Module]) -> bool:
    classes = len(set(map(type, children)))
    if isinstance(module, nn.ModuleList):
        alike = classes == 1 or classes < len(children)
    else:
        alike = isinstance(module, nn.Sequential) and classes == 1
    return alike and all(any(True for _ in child.children()) for child in children)
