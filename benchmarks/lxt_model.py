"""LXT's rules on the models of this process, which they stay on: one process per set of rules.

LXT ("LRP eXplains Transformers") is the reference implementation of AttnLRP. It replaces methods
and modules of transformers, and of torch (``LayerNorm``, ``Dropout``), once and for all, so a
process that has patched one family measures this family under these rules and nothing else. A
family is patched before a model of it is built.

LXT 2.1 imports torchvision for its vision transformers. Where there is none, an empty module of
that name stands in while LXT is imported; language models need nothing of it.
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
    from collections.abc import Iterator

__all__ = ["RULES", "offered", "patch", "relevance"]

RULES = {"AttnLRP": "attnLRP", "CP-LRP": "cp_LRP"}
"""LXT's two sets of rules, and the names of their tables in its modules."""


def patch(model_type: str, rules: str) -> None:
    """Put rules on a family, for the rest of this process.

    Args:
        model_type: ``"bert"``, ``"gpt2"`` or ``"llama"``.
        rules: A key of :data:`RULES`.

    Raises:
        LookupError: LXT has no such rules for this family.
        ImportError: LXT is not installed, or not for this version of transformers.
        UserWarning: Something was patched before in this process.
    """
    tables = _tables(model_type)
    if rules not in tables:
        raise LookupError(f"LXT has no {rules} for {model_type}: it has {list(tables)}.")
    name = f"transformers.models.{model_type}.modeling_{model_type}"
    lxt = importlib.import_module("lxt.efficient")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Failed to patch")
        lxt.monkey_patch(importlib.import_module(name), tables[rules])


def offered(model_type: str) -> list[str]:
    """The sets of rules that LXT has for a family. Raises ImportError without LXT."""
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
    embeds = embeds.detach().requires_grad_()
    logits = model(inputs_embeds=embeds).logits
    logits[:, -1, token].sum().backward()
    return embeds.detach() * embeds.grad  # type: ignore[operator]


def _tables(model_type: str) -> dict[str, Any]:
    with _vision_optional(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zennit, for vision transformers
        module = importlib.import_module(f"lxt.efficient.models.{model_type}")
    return {rules: getattr(module, name) for rules, name in RULES.items() if hasattr(module, name)}


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
