"""``with propagation(model, recipe):`` attaches rules to everything a model computes in the block.

The forward pass is the model's own. When a call of the model, or of a module in it, returns, its
graph gets the rules of the recipe, for as long as the block is open. Contexts may
be nested, and two models or two threads do not see each other's rules.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx.forms import argument_kind
from captum_lrpx.linear_rules import linear_attachments
from captum_lrpx.models import model_in
from captum_lrpx.module_patches import Patched, not_copied
from captum_lrpx.onlookers import looks_only
from captum_lrpx.recipes import LRP, Recipe
from captum_lrpx.structure import modules_of
from captum_lrpx.trace.graph import node_of
from captum_lrpx.trace.origins import tensors_in
from captum_lrpx.traced import TracedPass, passes_of_this_thread
from captum_lrpx.training import checkpointed, warn_if_training, without_checkpoints

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from torch import nn
    from torch.autograd.graph import Node
    from torch.utils.hooks import RemovableHandle


@contextmanager
def propagation(
    model: nn.Module, recipe: Recipe = LRP, *, freeze_parameters: bool = True, strict: bool = True
) -> Iterator[nn.Module]:
    """Attach the rules of a recipe to everything a model computes inside of a ``with`` block.

    Inside, the forward pass gives its usual values, bit by bit, and the backward pass, which must
    be inside too, follows the recipe: ``value * gradient`` of any tensor is its relevance.

    Args:
        model: Any module; if it contains a transformers model, the rules hold for that.
        recipe: The rules.
        freeze_parameters: Whether parameters need no gradient inside the block, which saves memory.
            Restored afterwards. Without it, ``bias * gradient`` is the relevance of a bias.
        strict: Whether to refuse a forward pass with a non-linear operation that no rule covers.

    Yields:
        The model that the rules are for.

    Raises:
        ValueError: In the forward pass, if a non-linear operation has no rule and ``strict`` is
            set.
        RuntimeError: If the model was created under ``torch.inference_mode``; in a backward pass
            after the block.

    Examples:
        >>> with propagation(model, ATTN_LRP):
        ...     logit = model(inputs_embeds=embeds).logits[0, -1, token]
        ...     (gradient,) = torch.autograd.grad(logit, embeds)
        >>> relevance = (embeds * gradient).sum(-1)
    """
    inner = model_in(model)
    modules = modules_of(inner)
    warn_if_training(modules)
    linear = linear_attachments(inner, modules, recipe)
    calls = _Calls(inner, modules, recipe, freeze=freeze_parameters, strict=strict)
    whole = without_checkpoints(checkpointed(modules))
    with Patched(modules, linear, freeze=freeze_parameters), whole, calls.opened():
        yield inner


_thread = threading.local()


@dataclass(eq=False)
class _Calls:
    """Attaches rules after each outermost call of a model or its modules, in one thread.

    Attributes:
        model: The model.
        modules: All modules in it.
        recipe: The rules.
        freeze: Whether its parameters need no gradient.
        strict: Whether to refuse operations without a rule.
    """

    model: nn.Module
    modules: tuple[nn.Module, ...]
    recipe: Recipe
    freeze: bool
    strict: bool
    _passes: list[TracedPass] = field(default_factory=list)
    _roots: list[Node] = field(default_factory=list)
    _call: ExitStack = field(default_factory=ExitStack)
    _form: tuple[Hashable, ...] = ()
    _outermost: nn.Module | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise not_copied()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Observe the calls of this thread inside of a ``with`` block."""
        hooks: list[RemovableHandle] = []
        stack = _stack()
        try:
            for module in self.modules:
                hooks.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._after, always_call=True))
            stack.append(self)
            yield
        finally:
            self._close(hooks, stack)

    def _close(self, hooks: list[RemovableHandle], stack: list[_Calls]) -> None:
        if self in stack:
            stack.remove(self)
        for hook in hooks:
            hook.remove()
        self._call.close()
        for each in self._passes:
            each.release()
        for node in self._roots:
            node.register_prehook(_refuse)

    def _is_meant(self) -> bool:
        """Whether a call is of this thread, and of neither an inner block nor a backward pass."""
        if passes_of_this_thread():
            return False
        here = [each for each in _stack() if each.model is self.model]
        in_backward = torch._C._current_graph_task_id() != -1  # noqa: SLF001 - no public name
        return here[-1:] == [self] and torch.is_grad_enabled() and not in_backward

    @looks_only
    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        # An earlier outermost call may have been interrupted, so that it never returned.
        if not self._is_meant() or self._outermost not in (None, module):
            return
        self._call.close()
        self._outermost = module
        self._form = (*self._form, weakref.ref(module), argument_kind((*args, kwargs)))
        before = self._passes[-1] if self._passes else None
        passed = TracedPass(self.model, self.recipe, self._form, freeze=self.freeze, before=before)
        self._passes.append(passed)
        self._call.enter_context(passed.watching(module))

    @looks_only
    def _after(self, module: nn.Module, _args: Any, output: Any) -> None:
        if module is not self._outermost or not self._is_meant():
            return
        self._outermost = None
        self._call.close()
        found = [each for each in tensors_in(output) if each.requires_grad]
        if found:  # empty after an error
            self._roots += [node for node in map(node_of, found) if node is not None]
            passed = self._passes[-1]
            passed.attach(*found)
            passed.require_rules((), strict=self.strict)


def _stack() -> list[_Calls]:
    """Open blocks of the calling thread, innermost last."""
    found: list[_Calls] = _thread.__dict__.setdefault("stack", [])
    return found


def _refuse(_gradients: object) -> None:
    raise RuntimeError(
        "The rules have been removed: run the backward pass inside of `with propagation(model)`."
    )
