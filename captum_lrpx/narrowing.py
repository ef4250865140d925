"""The last block computes only the positions that are explained, where nobody looks at the others.

Behind the last attention every operation of a transformer works on each position alone, so what is
read at some positions needs nothing there at the others: no query, no attention output, no MLP.
The keys and values of all positions are needed. Forward modules that read logits at chosen
positions open :func:`only_positions` around the model's forward pass. It takes effect where rules
are attached and the result cannot be told from that of the whole block; else it does nothing.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from torch import nn

from captum_lrpx.plans import bound_for
from captum_lrpx.propagation import Active, innermost
from captum_lrpx.rules.observers import hooked_everywhere
from captum_lrpx.rules.patches import Attachment
from captum_lrpx.rules.rows import AttentionRowsPatch, Rows, RowsPatch
from captum_lrpx.rules.sparse import is_linear_class

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from captum_lrpx.plans import Bound
    from captum_lrpx.sites import Sites

__all__ = ["only_positions"]

_WORTH_IT: Final = 0.5
"""Share of the positions up to which picking them saves anything."""

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def only_positions(model: nn.Module, positions: Tensor, length: int) -> Iterator[None]:
    """Say that of a model's last hidden states only those at some positions will be read.

    Args:
        model: A transformers model.
        positions: ``[B, P]``.
        length: Number of all positions.
    """
    active = innermost(model)
    if active is None or positions.shape[1] > _WORTH_IT * length:
        yield
        return
    last = _last_block_of(model)
    if not last.may_be_narrowed(active):
        yield
        return
    rows = Rows(positions, length)
    attention = [Attachment(last.attention, AttentionRowsPatch(rows))]
    others = [Attachment(module, RowsPatch(rows)) for module in last.per_position]
    # The kernel of an attention sees its rows before a rule takes it over; any other module is
    # narrowed with its rule.
    with active.also(inside=attention, outside=others):
        yield


class _LastBlock:
    """What of a model's last block can be narrowed.

    Attributes:
        attention: The attention.
        per_position: Largest modules that hold nothing but declared parts that stand behind the
            attention's keys and values.
        watched: Modules in and around the block, whose outputs a hook would see.
    """

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        block = sites.blocks[-1]
        self.block = block.module
        self.attention = block.attention.module
        self.per_position = tuple(_per_position(sites))
        around = [path for path, _ in model.named_modules() if block.path.startswith(f"{path}.")]
        final = [] if sites.final_norm is None else [sites.final_norm.module]
        self.watched = (*map(model.get_submodule, around), *block.module.modules(), *final)
        prefix = f"{block.path}."
        linear = [site.module for site in sites.linear if site.path.startswith(prefix)]
        self.is_plain = all(map(is_linear_class, linear))  # an adapter is none

    def may_be_narrowed(self, active: Active) -> bool:
        """Whether nobody sees the block, and it runs once."""
        return (
            active.narrowable
            and self.is_plain
            and not active.patches_of(self.block)  # it might be computed again in backward
            and not getattr(self.block, "gradient_checkpointing", False)
            and not hooked_everywhere()
            and all(map(_is_unseen, self.watched))
        )


def _is_unseen(module: nn.Module) -> bool:
    """Whether a module has no hooks, nothing wrapped around it, and no dropout now."""
    own = vars(module)
    forward = own.get("forward")
    wrapped = forward is not None and getattr(forward, "previous", forward) is not None
    hooked = any(own.get(hooks) for hooks in _HOOKS)
    return not (module.training or wrapped or hooked or "_old_forward" in own)


def _per_position(sites: Sites) -> Iterator[nn.Module]:
    block = sites.blocks[-1]
    attention = block.attention
    behind = {attention.output, *block.mlp_inputs, block.mlp_output, block.mlp_norm.module}
    behind |= {
        site.module
        for site in sites.activations
        if site.path.startswith(f"{block.path}.") and hasattr(site, "module")
    }
    if sites.placement == "post":
        behind.add(block.attention_norm.module)
    else:
        behind.discard(block.attention_norm.module)  # the keys and values need it everywhere
    if attention.query.features is None:
        yield attention.query.module
    yield from _largest(block.module, behind)
    if sites.final_norm is not None:
        yield sites.final_norm.module


def _largest(module: nn.Module, allowed: set[nn.Module]) -> Iterator[nn.Module]:
    for child in module.children():
        parts = [part for part in child.modules() if not any(True for _ in part.children())]
        known = [part for part in parts if part in allowed]
        if known and all(part in allowed or isinstance(part, nn.Dropout) for part in parts):
            yield child
        elif known:
            yield from _largest(child, allowed)


_known: weakref.WeakKeyDictionary[nn.Module, tuple[Bound, _LastBlock]] = weakref.WeakKeyDictionary()


def _last_block_of(model: nn.Module) -> _LastBlock:
    bound = bound_for(model)
    known = _known.get(model)
    if known is None or known[0] is not bound:
        known = _known[model] = (bound, _LastBlock(model, bound.sites))
    return known[1]
