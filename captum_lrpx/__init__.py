"""Captum attributions that decompose the predictions of transformer language models.

Replace ``InputXGradient`` by :class:`LRPx` or :class:`AttnLRPx`; start with :func:`explain` if
there is no Captum code yet.
"""

from captum_lrpx import zoo
from captum_lrpx._version import __version__
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
    MetaAttributions,
    ReferenceIndex,
    RelevanceFlow,
    RelevanceGraph,
    RelevancePatching,
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
