"""LXT's rules on the models of this process, which they stay on: one process per set of rules.

LXT ("LRP eXplains Transformers") is the reference implementation of AttnLRP. It replaces methods
and modules of transformers, and of torch (``LayerNorm``, ``Dropout``), once and for all, so a
process that has patched one family measures this family under these rules and nothing else. A
family is patched before a model of it is built.

LXT 2.1 imports torchvision for its vision transformer, whose modules of ``torch.nn`` it patches.
Where there is none, a module of that name that holds ``torch.nn`` alone stands in while LXT is
imported: vision transformers made of these modules are patched all the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BORROWED", "RULES", "gradient_x_input", "offered", "patch", "relevance"]

RULES = {"AttnLRP": "attnLRP", "CP-LRP": "cp_LRP"}
"""LXT's two sets of rules, and the names of their tables in its modules."""

BORROWED = {"qwen3_moe": "qwen3"}
"""Families that LXT has no table for -> one whose rules are put on the classes of the same name."""


def patch(model_type: str, rules: str) -> None:
    """Put rules on a family, for the rest of this process.

    Args:
        model_type: A module of ``lxt.efficient.models`` (``"bert"``, ``"vit_torch"``), or a key of
            :data:`BORROWED`.
        rules: A key of :data:`RULES`.

    Raises:
        LookupError: LXT has no such rules for this family.
        ImportError: LXT is not installed, or not for this version of transformers.
        UserWarning: Something was patched before in this process.
    """
    tables = _tables(model_type)
    if rules not in tables:
        raise LookupError(f"LXT has no {rules} for {model_type}: it has {list(tables)}.")
    lxt = importlib.import_module("lxt.efficient")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Failed to patch")
        lxt.monkey_patch(None, tables[rules])


def offered(model_type: str) -> list[str]:
    """The sets of rules for a family. Raises ImportError without LXT."""
    return list(_tables(model_type))


def relevance(model: Any, embeds: torch.Tensor, token: int) -> torch.Tensor:
    """Gradient x Input of one logit at the last position, the way LXT's examples do it.

    Args:
        model: A model of a patched family whose parameters take no gradient.
        embeds: ``[B, T, D]``.
        token: Id of the explained token.

    Returns:
        ``[B, T, D]``.
    """

    def values(embeds: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(inputs_embeds=embeds).logits[:, -1, token]
        return found

    return gradient_x_input(values, embeds)


def gradient_x_input(
    values: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
) -> torch.Tensor:
    """Gradient x Input of a value for each example.

    Args:
        values: Inputs ``[B, ...]`` -> values ``[B]``.
        inputs: ``[B, ...]``.

    Returns:
        Of the shape of the inputs.
    """
    inputs = inputs.detach().requires_grad_()
    values(inputs).sum().backward()
    return inputs.detach() * inputs.grad  # type: ignore[operator]


def _tables(model_type: str) -> dict[str, Any]:
    source = BORROWED.get(model_type, model_type)
    with _vision_optional(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zennit, for vision transformers
        module = importlib.import_module(f"lxt.efficient.models.{source}")
    found = {rules: getattr(module, name) for rules, name in RULES.items() if hasattr(module, name)}
    if source == model_type:
        return found
    return {
        rules: {_namesake(target, source, model_type): rule for target, rule in table.items()}
        for rules, table in found.items()
    }


def _namesake(target: Any, source: str, model_type: str) -> Any:
    """A module or class of a family, in another one; what is of neither stays."""
    here, there = (f"transformers.models.{name}.modeling_{name}" for name in (source, model_type))
    if isinstance(target, ModuleType):
        return importlib.import_module(there)
    if target.__module__ != here:
        return target
    prefixes = (name.title().replace("_", "") for name in (source, model_type))
    return getattr(importlib.import_module(there), target.__name__.replace(*prefixes))


@contextmanager
def _vision_optional() -> Iterator[None]:
    """An empty torchvision, where there is no other."""
    importlib.import_module("transformers")  # looks for torchvision once, when it is imported
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    vision = ModuleType("torchvision.models.vision_transformer")
    models, top = ModuleType("torchvision.models"), ModuleType("torchvision")
    vision.nn = torch.nn  # type: ignore[attr-defined]
    models.vision_transformer = vision  # type: ignore[attr-defined]
    empty = {module.__name__: module for module in (top, models, vision)}
    sys.modules.update(empty)
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]
