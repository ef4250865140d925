"""Checks a lower bound of the memory needed before running.

The estimate counts tensors that the graph of a forward pass keeps for the backward pass, and what
the MLP of one block holds while it runs, from the shapes of the model and the rules. It leaves out
needs of particular kernels, so that a refused input would not have fitted.
"""

from __future__ import annotations

import math
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from captum_lrpx.parallel import is_spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from captum_lrpx.recipes import Recipe


SWITCH: Final = "CAPTUM_LRPX_MEMORY_CHECK"
"""Environment variable; ``0`` turns the check off."""

_NEGLIGIBLE: Final = 2**28
"""Skip the check below this size; querying free memory costs more than it saves."""

_MEMINFO: Final = Path("/proc/meminfo")
_CONTROL_GROUPS: Final = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""Limit and usage of the process's control group, as in a container: versions 2 and 1."""


def estimate(
    model: nn.Module,
    recipe: Recipe,
    batch: int,
    length: int,
    *,
    checkpointing: bool = False,
    logit_positions: int = 1,
) -> int:
    """Estimate a lower bound of the memory that one explanation needs besides the model.

    Per token and block: tensors that the rules keep of attention and MLP; with eager attention the
    weights too. With checkpointing the input of each block, and one block. In addition, what one
    MLP holds during the backward pass, or the logits with their gradient if these are more. The
    first call of a form keeps everything, and takes more.

    Args:
        model: Any module.
        recipe: The rules.
        batch: Number of rows.
        length: Number of tokens of a row, padding included.
        checkpointing: Whether blocks are recomputed in the backward pass.
        logit_positions: Number of positions of a row at which logits are computed.

    Returns:
        Bytes; 0 for a model whose config does not declare its shape.
    """
    shape = _shape_of(model)
    if shape is None:
        return 0
    constant = recipe.attention.constant_weights
    # Some other models with eager attention use a window only.
    eager = getattr(model.config, "_attn_implementation", None) == "eager"
    if eager and getattr(model, "_supports_sdpa", False):
        attended = shape.heads * length
    else:
        attended = (1 if constant else 2) * (shape.queries + shape.keys)
    # Of a gate both factors are kept unless one is constant; of another MLP the slope, at least.
    gated = _is_gated(model, shape)
    factors = 2 if gated and recipe.gate.shares[0] is not None else 1
    block = attended + factors * shape.wide
    # Going back through an MLP: a gradient and its product with the slope; with a gate one product
    # more, or two if both factors are kept.
    working = (2 + factors if gated else 2) * shape.wide if shape.blocks else 0
    if checkpointing:
        kept, working = shape.blocks * shape.hidden, block + working
    else:
        kept = shape.blocks * block
    logits = 2 * logit_positions * shape.vocabulary  # gone by the time that blocks go back
    return batch * (length * kept + max(length * working, logits)) * _item_size(model)


class _Shape(NamedTuple):
    """Sizes of a model that decide about memory: numbers of features, except blocks and heads.

    Attributes:
        blocks: Number of blocks.
        heads: Number of query heads.
        hidden: Width of the residual stream.
        queries: Width of all query heads.
        keys: Width of all key heads.
        wide: Inner width of an MLP.
        vocabulary: Number of logits.
    """

    blocks: int
    heads: int
    hidden: int
    queries: int
    keys: int
    wide: int
    vocabulary: int


def _shape_of(model: Any) -> _Shape | None:
    """Sizes declared by a transformers model's config; None if it does not."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else None
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    found = [_field(config, name) for name in names]
    if not all(isinstance(each, int) and each > 0 for each in found):
        return None
    blocks, heads, hidden = (int(each) for each in found if each is not None)
    others = _blocks_without_attention(config)
    size = _field(config, "head_dim") or hidden // heads
    groups = _field(config, "num_key_value_heads") or heads
    wide = next((each for name in _WIDE if isinstance(each := _field(config, name), int)), hidden)
    if others:  # the config does not tell which blocks have an MLP
        wide = 0
    elif hasattr(config, "ffn_dim"):
        wide //= 2  # a gated MLP uses half of it at a time
    vocabulary = int(_field(config, "vocab_size") or 0) if _has_logits(model) else 0
    return _Shape(
        max(blocks - others, 0), heads, hidden, heads * size, groups * size, wide, vocabulary
    )


_gated: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
"""For each model whether its MLPs are gated."""


def _is_gated(model: nn.Module, shape: _Shape) -> bool:
    """Whether the MLP of each block has three matrices, or one that is two of them and another."""
    if model not in _gated:
        sizes = {(shape.wide, shape.hidden), (2 * shape.wide, shape.hidden)}
        matrices = [tuple(each.shape) for each in model.parameters() if each.ndim == 2]
        numbers = sum(math.prod(each) for each in matrices if sizes & {each, each[::-1]})
        _gated[model] = numbers == 3 * shape.blocks * shape.wide * shape.hidden
    return _gated[model]


def _field(config: Any, name: str) -> Any:
    """A field of a config; None if there is none, or if it differs by layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # noqa: BLE001 - transformers raises its own errors
        return None


_WIDE: Final = ("intermediate_size", "ffn_dim", "hidden_dim", "n_inner", "d_ff")
"""Names in configs for the width of an MLP."""


def _blocks_without_attention(config: Any) -> int:
    """Number of blocks that have, or may have, another mixer than attention."""
    kinds = getattr(config, "layer_types", None) or ()
    return sum("attention" not in each or "linear" in each for each in kinds)


def _has_logits(model: Any) -> bool:
    try:
        return model.get_output_embeddings() is not None
    except (AttributeError, NotImplementedError):
        return False


def _item_size(model: nn.Module) -> int:
    """Bytes per number in the precision of the model."""
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), None)
    size = 2 if dtype is None else dtype.itemsize
    return min(size, 2) if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled() else size


def available(device: torch.device) -> int | None:
    """Bytes available on a device, as far as the system reports them.

    Args:
        device: A CPU (the machine's memory with its swap space, and the limit of a container) or a
            CUDA device.

    Returns:
        Bytes, or None if unknown.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    fields = dict(line.split(":") for line in _MEMINFO.read_text(encoding="ascii").splitlines())
    if "MemAvailable" not in fields:
        return None
    swap = int(fields.get("SwapFree", "0 kB").split()[0])
    found = [(int(fields["MemAvailable"].split()[0]) + swap) * 1024]
    for limit, usage in _CONTROL_GROUPS:
        if limit.exists() and usage.exists():
            text = limit.read_text(encoding="ascii").strip()
            if text.isdigit():
                # File caches within the group's usage can be reclaimed.
                used = int(usage.read_text(encoding="ascii")) - _file_cache(limit.parent)
                found.append(max(0, int(text) - used))
    return min(found)


def _file_cache(group: Path) -> int:
    """Bytes of file caches in a control group."""
    statistics = group / "memory.stat"
    if not statistics.exists():
        return 0
    fields = dict(line.split() for line in statistics.read_text(encoding="ascii").splitlines())
    names = ("total_active_file", "total_inactive_file")
    if names[0] not in fields:
        names = ("active_file", "inactive_file")
    return sum(int(fields.get(name, 0)) for name in names)


def require_memory(
    model: nn.Module, recipe: Recipe, inputs: Tensor, *, checkpointing: bool, full_head: bool
) -> None:
    """Refuse an explanation that will not fit, before it runs.

    Args:
        model: A transformers model.
        recipe: The rules.
        inputs: Token ids ``[B, T]`` or embeddings ``[B, T, D]``; others are not checked.
        checkpointing: Whether blocks are recomputed in the backward pass.
        full_head: Whether logits are computed at every position.

    Raises:
        MemoryError: If more memory is needed than is available.
    """
    if inputs.ndim not in (2, 3) or inputs.is_floating_point() != (inputs.ndim == 3):
        return
    devices = set(getattr(model, "hf_device_map", {}).values())
    if len(devices) > 1:
        return  # spread over devices
    batch, length = inputs.shape[:2]
    positions = length if full_head else 1

    def needed(*, checkpointing: bool) -> int:
        return estimate(
            model,
            recipe,
            batch,
            length,
            checkpointing=checkpointing,
            logit_positions=positions,
        )

    wanted = needed(checkpointing=checkpointing)
    if wanted < _NEGLIGIBLE or os.environ.get(SWITCH) == "0":
        return
    if any(map(is_spread, model.parameters())):
        return  # sharded over processes, which would wait for one that refuses
    free = available(inputs.device)
    if free is None or wanted <= free:
        return
    ways = []
    if not checkpointing:
        ways.append(f"`checkpointing=True` ({_gigabytes(needed(checkpointing=True))})")
    if batch > 1:
        ways.append(f"fewer than {batch} rows at a time")
    if full_head:
        ways.append("TokenLogits(model) instead of the model")
    ways.append("a lower precision or a shorter input")
    raise MemoryError(
        f"Explaining inputs of {batch} x {length} tokens takes at least {_gigabytes(wanted)} of "
        f"memory, and {_gigabytes(free)} are free on {inputs.device}: use {', '.join(ways)}. "
        f"{SWITCH}=0 in the environment tries it anyway."
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
