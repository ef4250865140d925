"""Lookup of declarations by ``config.model_type``; users and other packages add their own."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from captum_lrpx.architectures import bert, bloom, gpt2, llama, opt
from captum_lrpx.architectures.schema import Architecture

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ENTRY_POINT_GROUP",
    "architecture_for",
    "is_built_in",
    "model_types",
    "register",
    "unregister",
]

ENTRY_POINT_GROUP = "captum_lrpx.architectures"
"""Entry points of this group name an :class:`Architecture` or an iterable of them."""

_BUILT_IN = (
    *bert.ARCHITECTURES,
    *bloom.ARCHITECTURES,
    *gpt2.ARCHITECTURES,
    *llama.ARCHITECTURES,
    *opt.ARCHITECTURES,
)
_registered: list[Architecture] = []
_from_entry_points: list[Architecture] | None = None


def register(architecture: Architecture) -> Architecture:
    """Add a declaration; it precedes those made before it and the built-in ones.

    Args:
        architecture: The declaration.

    Returns:
        The declaration, so that ``MINE = register(replace(LLAMA, model_types=("mine",)))`` works.

    Raises:
        TypeError: If it is not an :class:`Architecture`.
    """
    if not isinstance(architecture, Architecture):
        raise TypeError(f"register() takes an Architecture, not {type(architecture).__name__}.")
    _registered.insert(0, architecture)
    return architecture


def unregister(architecture: Architecture) -> None:
    """Take back what :func:`register` added.

    Raises:
        ValueError: If the declaration was not registered.
    """
    if architecture not in _registered:
        raise ValueError(f"The declaration of {architecture.model_types} was not registered.")
    _registered.remove(architecture)


def model_types() -> tuple[str, ...]:
    """All model types with a declaration, sorted."""
    return tuple(sorted({name for known in _all() for name in known.model_types}))


def architecture_for(model_type: str, config: Mapping[str, Any] | object = ()) -> Architecture:
    """The declaration for a model type.

    Args:
        model_type: ``config.model_type`` of a transformers model.
        config: The config, for declarations that hold under a condition (``requires``).

    Returns:
        The first declaration that fits; registered ones come first, then those of other packages'
        entry points, then the built-in ones.

    Raises:
        ValueError: If none fits.
    """
    candidates = [known for known in _all() if model_type in known.model_types]
    for candidate in candidates:
        if all(getattr(config, name, None) == value for name, value in candidate.requires):
            return candidate
    if candidates:
        conditions = " or ".join(str(dict(candidate.requires)) for candidate in candidates)
        raise ValueError(
            f"Models of type {model_type!r} are supported only with {conditions} in their config."
        )
    raise ValueError(
        f"No architecture is declared for models of type {model_type!r}. Declared are: "
        f"{', '.join(model_types())}. Declare yours with captum_lrpx.architectures.register()."
    )


def is_built_in(architecture: Architecture) -> bool:
    """Whether a declaration is one of this package, all of which is tested."""
    return any(architecture is known for known in _BUILT_IN)


def _all() -> list[Architecture]:
    return [*_registered, *_entry_points(), *_BUILT_IN]


def _entry_points() -> list[Architecture]:
    global _from_entry_points  # noqa: PLW0603 - read once per process, on first use
    if _from_entry_points is None:
        found: list[Architecture] = []
        for entry_point in entry_points(group=ENTRY_POINT_GROUP):
            loaded = entry_point.load()
            found.extend([loaded] if isinstance(loaded, Architecture) else loaded)
        _from_entry_points = found
    return _from_entry_points
