"""What is known of a model beside its operations: a declaration, a table of token embeddings."""

from __future__ import annotations

from torch import nn

from captum_lrpx.plans import bound_for

__all__ = ["blocks_of", "is_declared", "token_embedding_of"]


def is_declared(model: nn.Module) -> bool:
    """Whether a declaration says where a model keeps its parts, so that rules have fast forms."""
    if not hasattr(model, "config"):
        return False
    try:
        bound_for(model)
    except ValueError:
        return False
    return True


def token_embedding_of(model: nn.Module) -> nn.Module:
    """The table of token embeddings of a transformers model.

    Raises:
        ValueError: If it has none.
    """
    if is_declared(model):
        return bound_for(model).sites.token_embedding
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
