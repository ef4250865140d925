"""Verdicts, worked out once per model, recipe and forward function."""

from __future__ import annotations

import weakref
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from torch import nn

from captum_lrpx.coverage.judge import judge
from captum_lrpx.coverage.rulebook import Rulebook
from captum_lrpx.coverage.trace import trace
from captum_lrpx.module_tree import modules_of
from captum_lrpx.propagation import sites_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from captum_lrpx.coverage.operations import Coverage
    from captum_lrpx.coverage.trace import Run
    from captum_lrpx.recipes import Recipe
    from captum_lrpx.sites import Sites

__all__ = ["coverage_of", "key_of", "verdict"]

_verdicts: weakref.WeakKeyDictionary[Sites, dict[Hashable, Coverage]] = weakref.WeakKeyDictionary()


def verdict(
    model: nn.Module,
    recipe: Recipe,
    forward_func: Callable[..., Any],
    scope: Hashable,
    run: Callable[[], Run],
) -> Coverage | None:
    """The coverage of a forward function, from a traced pass the first time.

    Args:
        model: The Hugging Face model.
        recipe: The rules.
        forward_func: What runs the model.
        scope: What else the operations depend on: the kind of the inputs, the explained layer.
        run: Runs the forward pass with the rules attached (see :func:`trace`).

    Returns:
        The coverage; None if the forward function gives nothing that has a gradient.
    """
    # A model with other modules has other sites: what was found out before is gone with the old.
    known = _verdicts.setdefault(sites_of(model), {})
    forward = key_of(forward_func, model)
    key = (recipe, forward, scope, _fingerprint(model))
    if forward is None or key not in known:
        found = coverage_of(model, recipe, forward_func, run)
        if found is None or forward is None:
            return found
        known[key] = found
    return known[key]


def coverage_of(
    model: nn.Module,
    recipe: Recipe,
    forward_func: Callable[..., Any],
    run: Callable[[], Run],
) -> Coverage | None:
    """The coverage of a forward function, from a traced pass. Arguments as of :func:`verdict`."""
    rulebook = Rulebook(model, sites_of(model), recipe)
    outer = list(forward_func.modules()) if isinstance(forward_func, nn.Module) else []
    traced = trace(run, rulebook.opaque_modules, [*model.modules(), *outer])
    if not traced.roots:
        return None
    around = getattr(forward_func, "__name__", type(forward_func).__name__)
    return judge(traced, rulebook, type(model).__name__, recipe.name, around)


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
