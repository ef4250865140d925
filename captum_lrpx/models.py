"""Finds the transformers model inside of a module, or takes the module itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator


def find_model(root: nn.Module) -> nn.Module:
    """Find the Hugging Face model that a module is or contains.

    Args:
        root: A model, or any module around one (a forward module, a PEFT model).

    Returns:
        The outermost module that is a transformers model.

    Raises:
        TypeError: If ``root`` is no module.
        ValueError: If there is none, or there are several side by side.
    """
    if not isinstance(root, nn.Module):
        raise not_a_model(root)
    found = dict(_outermost(root, "", set()))
    if not found:
        raise ValueError(
            f"{type(root).__name__} contains no transformers model, which explain() and the "
            "forward modules need: give the module itself to LRPx, AttnLRPx or ALTILogit, with a "
            "target."
        )
    if len(found) > 1:
        paths = ", ".join(map(repr, found.values()))
        raise ValueError(
            f"{type(root).__name__} contains several transformers models ({paths}): give the "
            "one to explain as `model=`."
        )
    return next(iter(found))


def model_in(root: nn.Module) -> nn.Module:
    """The Hugging Face model that a module is or contains; otherwise the module itself.

    Raises:
        TypeError: If ``root`` is no module.
        ValueError: If there are several side by side.
    """
    if not isinstance(root, nn.Module):
        raise not_a_model(root)
    return find_model(root) if any(True for _ in _outermost(root, "", set())) else root


def base_of(model: nn.Module) -> nn.Module | None:
    """The part of a transformers model below its head; None if it has none."""
    base = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
    return base if isinstance(base, nn.Module) and base is not model else None


def device_of(model: nn.Module) -> torch.device:
    """Device for the inputs of a model; Accelerate moves inputs for offloaded weights."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def not_a_model(value: Any) -> TypeError:
    """Error for a value that is no model."""
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
    """Transformers models in a module that are inside of no other one, with their paths."""
    seen.add(root)
    if is_pretrained(root):
        yield root, path
        return
    for name, child in root.named_children():
        if child not in seen:  # a wrapper may hold a module that holds the wrapper
            yield from _outermost(child, f"{path}.{name}" if path else name, seen)


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module is a transformers model."""
    # By attributes of the class: transformers need not be imported, and wrappers that
    # forward attribute access to a model inside them are not mistaken for it.
    return hasattr(type(module), "base_model_prefix") and hasattr(module, "config")
