"""Verdicts, worked out once per model, recipe and forward function."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from captum_lrpx.coverage.judge import judge
from captum_lrpx.coverage.rulebook import Rulebook
from captum_lrpx.coverage.trace import trace, watching
from captum_lrpx.module_tree import modules_of
from captum_lrpx.propagation import sites_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from captum_lrpx.coverage.operations import Coverage
    from captum_lrpx.coverage.trace import Run, Traced, Watch
    from captum_lrpx.recipes import Recipe
    from captum_lrpx.sites import Sites

__all__ = ["Inquiry", "key_of"]

_verdicts: weakref.WeakKeyDictionary[Sites, dict[Hashable, Coverage]] = weakref.WeakKeyDictionary()


class Inquiry:
    """What the coverage of a forward function is: asked often, found out once.

    Args:
        model: The Hugging Face model.
        recipe: The rules.
        forward_func: What runs the model.
        scope: What else the operations depend on: the kind of the inputs, the explained layer.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        forward_func: Callable[..., Any],
        scope: Hashable,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.forward_func = forward_func
        # A model with other modules has other sites: what was found out before goes with the old.
        self._known = _verdicts.setdefault(sites_of(model), {})
        forward = key_of(forward_func, model)
        self._key = None if forward is None else (recipe, forward, scope, _fingerprint(model))

    def known(self) -> Coverage | None:
        """The coverage, if it has been found out before."""
        return None if self._key is None else self._known.get(self._key)

    @contextmanager
    def watching(self) -> Iterator[Watched]:
        """Watch a forward pass that runs within a ``with`` block, with the rules attached."""
        rulebook = Rulebook(self.model, sites_of(self.model), self.recipe)
        with watching(rulebook.opaque_modules) as watch:
            yield Watched(self, rulebook, watch)

    def traced(self, run: Callable[[], Run]) -> Coverage | None:
        """The coverage, from a forward pass that is made for it (see :func:`trace`)."""
        rulebook = Rulebook(self.model, sites_of(self.model), self.recipe)
        whole = self.forward_func
        outer = list(whole.modules()) if isinstance(whole, nn.Module) else []
        modules = list(dict.fromkeys([*self.model.modules(), *outer]))
        return self.keep(trace(run, rulebook.opaque_modules, modules), rulebook)

    def keep(self, traced: Traced, rulebook: Rulebook) -> Coverage | None:
        """Judge what was seen, and remember it; None if nothing that is explained has a graph."""
        if not traced.roots:
            return None
        around = getattr(self.forward_func, "__name__", type(self.forward_func).__name__)
        name = type(self.model).__name__
        found = judge(traced, rulebook, name, self.recipe.name, around)
        if self._key is not None:
            self._known[self._key] = found
        return found


class Watched(NamedTuple):
    """A forward pass that is being watched for an inquiry."""

    inquiry: Inquiry
    rulebook: Rulebook
    watch: Watch

    def coverage(self, found: Run) -> Coverage | None:
        """The coverage of what the forward pass has led to."""
        return self.inquiry.keep(self.watch.traced_to(found), self.rulebook)


# Keys -------------------------------------------------------------------------------------------


def _fingerprint(model: nn.Module) -> int:
    """Changes with what the same modules may do otherwise: classes, forwards, hooks, attention."""
    parts: list[object] = [getattr(model.config, "_attn_implementation", None)]
    for module in modules_of(model):
        attributes = vars(module)
        parts.append(id(type(module)))
        forward = attributes.get("forward")
        # Rules that are attached just now, here or in another thread, are not what it does.
        forward = getattr(forward, "previous", forward)
        if forward is not None:
            parts.append(id(forward))
        if module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001 - no public name
            parts += [*module._forward_hooks, *module._forward_pre_hooks]  # noqa: SLF001
    return hash(tuple(parts))


def key_of(  # noqa: PLR0911 - one for each kind
    value: object, model: nn.Module, depth: int = 0
) -> Hashable:
    """What a forward function is, for a dictionary that must not keep it alive.

    Forward modules of this package are what their classes are; anything else is itself.

    Returns:
        The key; None for what cannot be recognized again.
    """
    if value is model:
        return "model"
    if value is None or isinstance(value, (str, bool, int, float)):
        return (type(value), value)
    if isinstance(value, nn.Module) and type(value).__module__.startswith("captum_lrpx."):
        inner = [key_of(child, model, depth + 1) for child in value.children()]
        return None if None in inner else (type(value), *inner)
    if isinstance(value, MethodType):
        owner = key_of(value.__self__, model, depth + 1)
        return None if owner is None else (owner, value.__func__)
    if isinstance(value, FunctionType) and depth < _DEEPEST:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inside = [key_of(each, model, depth + 1) for each in (*cells, *(value.__defaults__ or ()))]
        return None if None in inside else (value.__code__, *inside)
    try:
        return weakref.ref(value)
    except TypeError:
        return None


_DEEPEST = 3
"""So many functions inside each other are looked into."""
