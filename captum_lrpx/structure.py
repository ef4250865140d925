"""Parts of a model that its operations do not name: modules, tables of embeddings, blocks."""

from __future__ import annotations

from torch import nn


def modules_of(root: nn.Module) -> tuple[nn.Module, ...]:
    """A module and all modules in it, each once, in the order of ``root.modules()``.

    ``torch.nn.Module.modules`` uses one generator per level for each module, and is tens of times
    slower; this walk is needed at every explanation.
    """
    found: dict[nn.Module, None] = {}
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            children = module._modules  # noqa: SLF001 - children() is slow
            if children:
                waiting += [child for child in reversed(children.values()) if child is not None]
    return tuple(found)


def input_embeddings_of(model: nn.Module) -> nn.Module | None:
    """Table of token embeddings of a transformers model; None if it has none."""
    get = getattr(model, "get_input_embeddings", None)
    try:
        module = None if get is None else get()
    except (NotImplementedError, AttributeError):
        return None
    return module if isinstance(module, nn.Module) else None


def token_embedding_of(model: nn.Module) -> nn.Module:
    """Table of token embeddings of a transformers model.

    Raises:
        ValueError: If it has none.
    """
    module = input_embeddings_of(model)
    if module is None:
        raise ValueError(
            f"{type(model).__name__} has no table of token embeddings (get_input_embeddings): give "
            "embeddings instead of token ids."
        )
    return module


def position_table_of(model: nn.Module) -> nn.Embedding | None:
    """Table of absolute positions, whose size limits the input; None if there is none."""
    for module in modules_of(model):
        for name, child in module._modules.items():  # noqa: SLF001 - named_modules() is slow
            if isinstance(child, nn.Embedding) and (name == "wpe" or "position" in name):
                return child
    return None


def positions_after_padding(model: nn.Module) -> bool:
    """Whether positions are counted from the padding id on, as in RoBERTa."""
    return getattr(position_table_of(model), "padding_idx", None) is not None


def blocks_of(model: nn.Module) -> list[list[nn.Module]]:
    """Blocks of a model, for each of its trunks.

    A trunk is a ``torch.nn.ModuleList`` of composite modules, all of one class or of a few
    alternating classes, that is not inside of a block; an encoder-decoder has two. Members of a
    ``torch.nn.Sequential`` are blocks if they are all of one class.

    Args:
        model: Any module.

    Returns:
        The blocks of each trunk, in order; empty for a module without any.
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
