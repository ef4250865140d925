"""Captum attributions that decompose the predictions of transformer language models.

Replace ``InputXGradient`` by :class:`LRPx` or :class:`AttnLRPx`; start with :func:`explain` if
there is no Captum code yet.

Importing the package loads next to nothing: a public name is imported from its module at first
use.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from captum_lrpx._version import __version__

if TYPE_CHECKING:
    from captum_lrpx import zoo
    from captum_lrpx.attr import (
        ALTILogit,
        AttnLRPx,
        LayerAttnLRPx,
        LayerLRPx,
        LLMRelevance,
        LLMRelevanceResult,
        LRPx,
        NeuronAttnLRPx,
        NeuronLRPx,
    )
    from captum_lrpx.attr.baselines import AttentionRollout, InformationFlow, RandomAttribution
    from captum_lrpx.chat import explain_chat, leave_one_out_of_chat
    from captum_lrpx.compare import Comparison, compare
    from captum_lrpx.components import (
        ActivationPatching,
        ConceptRelevance,
        ExpertRelevance,
        MetaAttributions,
        ReferenceIndex,
        RelevanceFlow,
        RelevanceGraph,
        RelevancePatching,
        Routing,
        build_references,
        meta_attributions,
        prune,
        steer,
    )
    from captum_lrpx.conservation import Ledger, ledger
    from captum_lrpx.draw import draw
    from captum_lrpx.explainer import explain
    from captum_lrpx.explanation import Explanation, Segment, Segments
    from captum_lrpx.leave_one_out import leave_one_out
    from captum_lrpx.propagation import propagation
    from captum_lrpx.recipes import (
        ATTN_LRP,
        GRADIENT,
        LRP,
        LRP_MIRRORED_GATE,
        LRP_UNIFORM_GATE,
        Recipe,
    )
    from captum_lrpx.segments import Region
    from captum_lrpx.targets import (
        AnswerLogits,
        ClassDifference,
        ClassLogits,
        DecoderLogits,
        LogitDifference,
        LogProbabilities,
        OutputFunction,
        OutputSum,
        Probabilities,
        Target,
        Token,
        TokenLogits,
        TokenSum,
        ask_batch,
        last_token,
    )
    from captum_lrpx.view import view

__all__ = [
    "ATTN_LRP",
    "GRADIENT",
    "LRP",
    "LRP_MIRRORED_GATE",
    "LRP_UNIFORM_GATE",
    "ALTILogit",
    "ActivationPatching",
    "AnswerLogits",
    "AttentionRollout",
    "AttnLRPx",
    "ClassDifference",
    "ClassLogits",
    "Comparison",
    "ConceptRelevance",
    "DecoderLogits",
    "ExpertRelevance",
    "Explanation",
    "InformationFlow",
    "LLMRelevance",
    "LLMRelevanceResult",
    "LRPx",
    "LayerAttnLRPx",
    "LayerLRPx",
    "Ledger",
    "LogProbabilities",
    "LogitDifference",
    "MetaAttributions",
    "NeuronAttnLRPx",
    "NeuronLRPx",
    "OutputFunction",
    "OutputSum",
    "Probabilities",
    "RandomAttribution",
    "Recipe",
    "ReferenceIndex",
    "Region",
    "RelevanceFlow",
    "RelevanceGraph",
    "RelevancePatching",
    "Routing",
    "Segment",
    "Segments",
    "Target",
    "Token",
    "TokenLogits",
    "TokenSum",
    "__version__",
    "ask_batch",
    "build_references",
    "compare",
    "draw",
    "explain",
    "explain_chat",
    "last_token",
    "leave_one_out",
    "leave_one_out_of_chat",
    "ledger",
    "meta_attributions",
    "propagation",
    "prune",
    "steer",
    "view",
    "zoo",
]

_NAMES = {
    "attr": (
        "ALTILogit",
        "AttnLRPx",
        "LayerAttnLRPx",
        "LayerLRPx",
        "LLMRelevance",
        "LLMRelevanceResult",
        "LRPx",
        "NeuronAttnLRPx",
        "NeuronLRPx",
    ),
    "attr.baselines": ("AttentionRollout", "InformationFlow", "RandomAttribution"),
    "chat": ("explain_chat", "leave_one_out_of_chat"),
    "compare": ("Comparison", "compare"),
    "components": (
        "ActivationPatching",
        "ConceptRelevance",
        "ExpertRelevance",
        "MetaAttributions",
        "ReferenceIndex",
        "RelevanceFlow",
        "RelevanceGraph",
        "RelevancePatching",
        "Routing",
        "build_references",
        "meta_attributions",
        "prune",
        "steer",
    ),
    "conservation": ("Ledger", "ledger"),
    "draw": ("draw",),
    "explainer": ("explain",),
    "explanation": ("Explanation", "Segment", "Segments"),
    "leave_one_out": ("leave_one_out",),
    "propagation": ("propagation",),
    "recipes": ("ATTN_LRP", "GRADIENT", "LRP", "LRP_MIRRORED_GATE", "LRP_UNIFORM_GATE", "Recipe"),
    "segments": ("Region",),
    "targets": (
        "AnswerLogits",
        "ClassDifference",
        "ClassLogits",
        "DecoderLogits",
        "LogitDifference",
        "LogProbabilities",
        "OutputFunction",
        "OutputSum",
        "Probabilities",
        "Target",
        "Token",
        "TokenLogits",
        "TokenSum",
        "ask_batch",
        "last_token",
    ),
    "view": ("view",),
}
"""Modules of the package, and the public names that they define."""

_MODULES = {name: module for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # otherwise a misspelt name would have the type object

    def __getattr__(name: str) -> object:
        """Import a public name or a module, which then is an ordinary attribute (PEP 562)."""
        if name in _MODULES:
            value = getattr(import_module(f"captum_lrpx.{_MODULES[name]}"), name)
            globals()[name] = value
            return value
        missing = AttributeError(f"module 'captum_lrpx' has no attribute {name!r}")
        if name.startswith("__"):
            raise missing
        try:
            return import_module(f"captum_lrpx.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"captum_lrpx.{name}":
                raise  # an existing module that lacks another one
            raise missing from None


def __dir__() -> list[str]:
    """Names of the module, with public names whether imported or not."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose functions keep their names although modules have the same names.

    Importing ``captum_lrpx.compare`` binds the module to its package, where ``compare`` is the
    function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
