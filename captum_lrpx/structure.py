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


def blocks_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The blocks of a model: the members of its longest list of modules of one class.

    Raises:
        ValueError: If it has none.
    """
    lists = [tuple(each) for each in modules_of(model) if isinstance(each, nn.ModuleList)]
    alike = [each for each in lists if len({type(block) for block in each}) == 1]
    if not alike:
        raise ValueError(f"{type(model).__name__} has no list of blocks (torch.nn.ModuleList).")
    return max(alike, key=len)
