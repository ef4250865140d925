"""Parts of a model that its operations do not name: tables of embeddings and blocks."""

from __future__ import annotations

from torch import nn

from captum_lrpx.module_tree import modules_of


def token_embedding_of(model: nn.Module) -> nn.Module:
    """Table of token embeddings of a transformers model.

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
