"""``with propagation(model, recipe):`` attaches rules to one model and takes them off again.

Rules are attached to module *instances*: inside the context the ``forward`` of each concerned
module is a dispatcher that looks up, for the calling thread, which propagation is the innermost one
on that module. Hence contexts may be nested, two models or two threads do not see each other's
rules, and a plain forward pass of another thread stays plain. The original is put back when the
last context on the module is left, however it is left.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from captum_lrpx.binding import find_model
from captum_lrpx.checkpointing import Checkpointed
from captum_lrpx.compilation import without_compiler
from captum_lrpx.compiled import compiled_blocks
from captum_lrpx.frozen import FrozenParameters
from captum_lrpx.plans import Plan, bound_for, plan_for
from captum_lrpx.recipes import LRP, Recipe
from captum_lrpx.rules.linear_patches import SparseRows
from captum_lrpx.rules.patches import Attachment
from captum_lrpx.training import warn_if_training

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn

    from captum_lrpx.rules.patches import Forward, Patch
    from captum_lrpx.sites import Sites

__all__ = [
    "Active",
    "attached",
    "gradient_scale",
    "innermost",
    "is_plain",
    "observed",
    "plain_propagation",
    "propagation",
    "sites_of",
]


@contextmanager
def propagation(
    model: nn.Module,
    recipe: Recipe = LRP,
    *,
    freeze_parameters: bool = True,
    checkpointing: bool = False,
    compile: bool = False,  # noqa: A002 - what PyTorch calls it
) -> Iterator[nn.Module]:
    """Attach the rules of a recipe to a model for the duration of a ``with`` block.

    Inside, the forward pass gives its usual values, bit by bit, and the backward pass is that of
    the recipe: ``value * gradient`` of any tensor is its relevance.

    Args:
        model: A transformers model, or a module that contains one.
        recipe: The rules.
        freeze_parameters: Whether parameters need no gradient inside the block, which saves memory.
            Restored afterwards. Without it, ``bias * gradient`` is the relevance of a bias.
        checkpointing: Whether each block keeps its input only and is computed once more in the
            backward pass, which has to be inside of the ``with`` block: less memory, more time.
        compile: Whether the blocks but the last are compiled together with their rules, once for
            each shape of the inputs. Values and gradients are then equal up to rounding.

    Yields:
        The transformers model that the rules are attached to.

    Raises:
        ValueError: If the model's architecture is not declared, or does not fit its declaration;
            if it cannot be compiled where that is asked for. The model is as it was.
        RuntimeError: If the model was created under ``torch.inference_mode``; in the forward pass,
            if a block cannot be compiled.

    Examples:
        >>> with propagation(model, ATTN_LRP):
        ...     logit = model(inputs_embeds=embeds).logits[0, -1, token]
        ...     (gradient,) = torch.autograd.grad(logit, embeds)
        >>> relevance = (embeds * gradient).sum(-1)
    """
    hugging_face = find_model(model)
    plan = plan_for(hugging_face, recipe)
    if compile:
        rules = partial(propagation, recipe=recipe, freeze_parameters=freeze_parameters)
        whole = compiled_blocks(hugging_face, sites_of(hugging_face), plan, rules)
        plan = Plan(plan.modules, [*plan.attachments, *whole])
    if checkpointing:
        plan = _checkpointed(hugging_face, plan)
    active = Active(hugging_face, plan, narrowable=freeze_parameters)
    with active.opened_for(freeze_parameters=freeze_parameters):
        yield hugging_face


@contextmanager
def plain_propagation(
    model: nn.Module,
    recipe: Recipe,
    *,
    checkpointing: bool = False,
    compile: bool = False,  # noqa: A002 - what PyTorch calls it
) -> Iterator[nn.Module]:
    """The same with a graph of all operations: what ``compile`` would refuse is only refused."""
    hugging_face = find_model(model)
    plan = plan_for(hugging_face, recipe, visible=True)
    if compile:
        compiled_blocks(hugging_face, sites_of(hugging_face), plan, nullcontext)
    if checkpointing:
        plan = _checkpointed(hugging_face, plan)
    with Active(hugging_face, plan, narrowable=True).opened_for(freeze_parameters=True):
        yield hugging_face


def _checkpointed(model: nn.Module, plan: Plan) -> Plan:
    # The backward pass begins in the last block: to compute it once more would save nothing.
    blocks = [block.module for block in sites_of(model).blocks[:-1]]
    again = [Attachment(block, Checkpointed(_TheseRules)) for block in blocks]
    return Plan(plan.modules, [*plan.attachments, *again])


@contextmanager
def observed(
    model: nn.Module, recipe: Recipe, *, inner: Iterable[Attachment], outer: Iterable[Attachment]
) -> Iterator[None]:
    """The rules of a recipe, with observers attached to the same modules, for a ``with`` block.

    Args:
        model: A transformers model.
        recipe: The rules.
        inner: Patches that see each layer as its own linear rule leaves it, inside of what other
            rules have attached to it.
        outer: Patches that see each module as its callers do.
    """
    plan = plan_for(model, recipe, fused=False).observed(list(inner), list(outer))
    with Active(model, plan).opened_for(freeze_parameters=True):
        yield


@contextmanager
def attached(
    model: nn.Module, attachments: Iterable[Attachment], *, freeze_parameters: bool = True
) -> Iterator[None]:
    """Attach given patches instead of a recipe's, in the same way, for a ``with`` block.

    Args:
        model: A transformers model.
        attachments: The patches; the first on a module is the innermost.
        freeze_parameters: As for :func:`propagation`.
    """
    plan = Plan(bound_for(model).modules, list(attachments))
    with Active(model, plan).opened_for(freeze_parameters=freeze_parameters):
        yield


def gradient_scale(module: nn.Module, *, at_input: bool = False) -> float | Tensor:
    """What the gradient that a hook on a module sees has to be multiplied by, under open rules.

    The rule of a product without a module of its own is attached to the modules around it. A hook
    on one of these sees the gradient on the other side of the rule.

    Args:
        module: A module of a model with an open propagation.
        at_input: Whether the hook is on the module's input.

    Returns:
        A number, or a tensor ``[features]``; 0 where the module is constant.
    """
    scale: float | Tensor = 1.0
    active = innermost(module)
    for patch in [] if active is None else active.patches_of(module):
        scale *= getattr(patch, "input_scale" if at_input else "output_scale", 1.0)
    return scale


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module is just its forward: no rule, no hooks, nothing wrapped around it.

    Then a part of what it computes (some rows of an output matrix) may be computed beside it.
    """
    if "_old_forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001
        return False
    forward = vars(module).get("forward")
    if forward is None:
        return True
    if not isinstance(forward, _Dispatcher) or forward.previous is not None:
        return False
    active = innermost(module)
    patches = [] if active is None else active.patches_of(module)
    return all(isinstance(patch, SparseRows) for patch in patches)


def sites_of(model: nn.Module) -> Sites:
    """The sites of a transformers model, bound once per model.

    Raises:
        ValueError: As :func:`captum_lrpx.binding.bind`.
    """
    return bound_for(model).sites


# Attaching ------------------------------------------------------------------------------------

_lock = threading.RLock()
_thread = threading.local()


def _stack() -> list[Active]:
    """The propagations that the calling thread has open, innermost last."""
    stack: list[Active] | None = getattr(_thread, "stack", None)
    if stack is None:
        stack = _thread.stack = []
    return stack


def innermost(module: nn.Module) -> Active | None:
    """The innermost propagation that the calling thread has open on a module."""
    for active in reversed(_stack()):
        if id(module) in active.covered:
            return active
    return None


class _TheseRules:
    """A context with the rules of now, for a block that runs again and again in any thread."""

    def __init__(self) -> None:
        self._stack = list(_stack())
        self._before: list[list[Active]] = []

    def __enter__(self) -> None:
        self._before.append(_stack())
        _thread.stack = self._stack

    def __exit__(self, *_: object) -> None:
        _thread.stack = self._before.pop()


class _Dispatcher:
    """The forward of a module while some propagation is open on it."""

    def __init__(self, module: nn.Module, slot: str) -> None:
        self.module_id = id(module)
        self.slot = slot
        self.previous = vars(module).get(slot)
        self.original: Forward = getattr(module, slot)
        self.__wrapped__ = self.original  # inspect.signature looks through
        self.patched: dict[Active, Forward] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        active = self._innermost()
        call = self.original if active is None else self.patched.get(active, self.original)
        return call(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(
            "A model cannot be copied or pickled while rules are attached to it (inside of "
            "`with propagation(model)`): do it before or behind that block."
        )

    def _innermost(self) -> Active | None:
        for active in reversed(_stack()):
            if self.module_id in active.covered:
                return active
        if isinstance(threading.current_thread(), threading._DummyThread):  # noqa: SLF001
            return self._of_autograd_thread()
        return None

    def _of_autograd_thread(self) -> Active | None:
        """On an accelerator, checkpointed blocks are recomputed in a thread of autograd's own."""
        candidates = list(self.patched)
        if len(candidates) > 1:
            raise RuntimeError(
                "Several explanations of one model are open, and autograd recomputes a "
                "checkpointed block in a thread that belongs to none of them: open one at a "
                "time, or turn gradient checkpointing off."
            )
        return candidates[0] if candidates else None


class Active:
    """One open propagation.

    Attributes:
        plan: What it patches.
        narrowable: Whether only relevances of tensors before the last block are read, so that it
            may compute explained positions only.
    """

    def __init__(self, model: nn.Module, plan: Plan, *, narrowable: bool = False) -> None:
        self.plan = plan
        self.narrowable = narrowable
        self.modules = (model, *plan.modules)
        self.covered = frozenset(map(id, self.modules))
        self.frozen = FrozenParameters()
        self.opened = False

    @contextmanager
    def opened_for(self, *, freeze_parameters: bool) -> Iterator[None]:
        """Attach for a ``with`` block, however that is left."""
        warn_if_training(self.modules)
        try:
            self.attach(freeze_parameters=freeze_parameters)
            yield
        finally:
            self.detach()

    def attach(self, *, freeze_parameters: bool) -> None:
        """Put the patches on, and make this the innermost propagation of the calling thread."""
        with _lock:
            self.opened = True
            without_compiler(1)
            for module, patch in self.plan.attachments:
                self._wrap(module, patch)
            if freeze_parameters:
                self.frozen.freeze(self.modules)
        _stack().append(self)

    def _wrap(self, module: nn.Module, patch: Patch) -> None:
        dispatcher = _dispatcher(module)
        inner = dispatcher.patched.get(self, dispatcher.original)
        dispatcher.patched[self] = partial(patch, inner)

    def patches_of(self, module: nn.Module) -> list[Patch]:
        """The patches on a module, the innermost first."""
        return [patch for patched, patch in self.plan.attachments if patched is module]

    @contextmanager
    def also(self, *, inside: list[Attachment], outside: list[Attachment]) -> Iterator[None]:
        """Attach more patches for a ``with`` block.

        Args:
            inside: Patches that wrap a module's own forward, inside of those that it has.
            outside: Patches that wrap those that a module has.
        """
        modules = [module for module, _ in (*inside, *outside)]
        with _lock:
            before = {module: _dispatcher(module).patched.get(self) for module in modules}
        try:
            with _lock:
                for module, patch in inside:
                    _dispatcher(module).patched.pop(self, None)
                    for each in (patch, *self.patches_of(module)):
                        self._wrap(module, each)
                for module, patch in outside:
                    self._wrap(module, patch)
            yield
        finally:
            with _lock:
                for module, forward in before.items():
                    if forward is None:
                        _release(module, self)
                    else:
                        _dispatcher(module).patched[self] = forward

    def detach(self) -> None:
        """Take everything off again; once more does no harm."""
        stack = _stack()
        if self in stack:
            stack.remove(self)
        with _lock:
            for module, _ in self.plan.attachments:
                _release(module, self)
            self.frozen.thaw()
            if self.opened:
                without_compiler(-1)
                self.opened = False
        for inline in self.plan.inline:
            inline.forget()


def _slot(module: nn.Module) -> str:
    """Where the module's own forward is: accelerate puts it beside a wrapper of its own."""
    return "_old_forward" if "_old_forward" in vars(module) else "forward"


def _dispatcher(module: nn.Module) -> _Dispatcher:
    slot = _slot(module)
    current = vars(module).get(slot)
    if not isinstance(current, _Dispatcher):
        current = vars(module)[slot] = _Dispatcher(module, slot)
    return current


def _release(module: nn.Module, active: Active) -> None:
    dispatcher = vars(module).get(_slot(module))
    if not isinstance(dispatcher, _Dispatcher):
        return
    dispatcher.patched.pop(active, None)
    if not dispatcher.patched:
        if dispatcher.previous is None:
            del vars(module)[dispatcher.slot]
        else:
            vars(module)[dispatcher.slot] = dispatcher.previous
