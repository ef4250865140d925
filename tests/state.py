"""Everything about a model that an explanation must leave as it was, as one comparable value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """The state of a model: bytes of its tensors, flags, hooks, attributes, config."""
    state: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        data = tensor.detach().contiguous().flatten().view(dtype=_byte(tensor)).tolist()
        state[f"value of {name}"] = data
        state[f"storage of {name}"] = tensor.data_ptr()
        state[f"requires_grad of {name}"] = tensor.requires_grad
        state[f"has grad {name}"] = tensor.grad is not None
    for name, module in model.named_modules():
        attributes = vars(module)
        state[f"class of {name}"] = type(module)
        state[f"training of {name}"] = module.training
        state[f"attributes of {name}"] = sorted(attributes)
        state[f"forward of {name}"] = id(attributes.get("forward"))
        state[f"hooks of {name}"] = [list(attributes[hook]) for hook in _HOOKS]
        config = attributes.get("config")
        if config is not None:
            state[f"config of {name}"] = (
                id(config),
                config._attn_implementation,
                str(config.to_dict()),
            )
    return state


def _byte(tensor: Any) -> Any:
    import torch

    return torch.uint8 if tensor.dtype is not torch.bool else torch.bool


def flags_of(state: dict[str, Any], *, attached: bool) -> dict[str, Any]:
    """A state, without what an open propagation is allowed to change if rules are attached."""
    if not attached:
        return state
    theirs = ("requires_grad of ", "forward of ", "attributes of ", "hooks of ")
    return {name: value for name, value in state.items() if not name.startswith(theirs)}
