"""Modules around a transformers model: which of them leave its inputs and outputs unchanged."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from captum_lrpx.models import is_pretrained
from captum_lrpx.onlookers import is_hooked

_INSIDE_OF_MODULES: Final = frozenset(
    {
        "ADALORA",
        "BOFT",
        "IA3",
        "LN_TUNING",
        "LOHA",
        "LOKR",
        "LORA",
        "OFT",
        "TRAINABLE_TOKENS",
        "VERA",
    }
)
"""PEFT adapters that change layers of the model and nothing else."""


def unwrapped(root: nn.Module) -> nn.Module | None:
    """The transformers model with the same inputs and outputs as a module around it.

    Transparent are wrappers that are known to pass their arguments and outputs
    on: ``DataParallel``, ``torch.compile``, and PEFT's adapters inside of layers.

    Args:
        root: A model, or any module around one.

    Returns:
        The model. None if the module may compute something else: a module of the user's own,
        prompt or prefix tuning, a model with hooks or a forward of its own.
    """
    if not is_untouched(root):
        return None
    if is_pretrained(root):
        forward: Any = type(root).forward
        return root if forward.__module__.startswith("transformers.") else None
    inner = _handed_on(root)
    return None if inner is None else unwrapped(inner)


def is_untouched(module: nn.Module) -> bool:
    """Whether a module has no hooks and no other forward, apart from moving its tensors."""
    return not (is_hooked(module) or _has_own_forward(module))


def _has_own_forward(module: nn.Module) -> bool:
    """Whether a module itself has another forward than its class."""
    forward = vars(module).get("forward")
    if forward is None or _is_compiled(module):
        return False
    if "_old_forward" in vars(module):  # accelerate's forward only moves tensors
        return False
    # Rules attached at the moment leave all values as they are.
    return getattr(forward, "previous", forward) is not None


def _handed_on(module: nn.Module) -> nn.Module | None:
    """The inner module that a transparent wrapper calls."""
    if type(module) is nn.DataParallel:
        inner: nn.Module = module.module
        return inner
    if _is_compiled(module):
        return module.get_submodule("_orig_mod")
    if _is_of_peft(module) and all(map(_changes_layers_only, _adapters(module))):
        base: nn.Module = module.get_base_model()  # type: ignore[operator]
        return base
    return None


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch._dynamo.") and "_orig_mod" in module._modules  # noqa: SLF001


def _is_of_peft(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.") and hasattr(type(module), "get_base_model")


def _adapters(module: nn.Module) -> list[Any]:
    """The configs of a PEFT model's adapters."""
    return list(getattr(module, "peft_config", {}).values())


def _changes_layers_only(adapter: Any) -> bool:
    kind = getattr(adapter.peft_type, "value", adapter.peft_type)
    # An activated LoRA searches for its invocation among the token ids.
    return kind in _INSIDE_OF_MODULES and not getattr(adapter, "alora_invocation_tokens", None)


def has_virtual_tokens(root: object) -> bool:
    """Whether a PEFT model prepends tokens, or keys and values, of its own.

    Args:
        root: Any forward function; also one that contains such a model.
    """
    if not isinstance(root, nn.Module):
        return False
    return any(
        getattr(adapter, "is_prompt_learning", False)
        for module in root.modules()
        if _is_of_peft(module)
        for adapter in _adapters(module)
    )


def called_module(module: nn.Module) -> nn.Module:
    """The module whose signature a wrapper has."""
    if isinstance(module, nn.DataParallel):
        return called_module(module.module)
    if _is_compiled(module):
        return called_module(module.get_submodule("_orig_mod"))
    if hasattr(type(module), "get_base_model"):  # PEFT
        base: nn.Module = module.get_base_model()  # type: ignore[operator]
        return called_module(base)
    return module
