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
    LRPx,
    NeuronAttnLRPx,
    NeuronLRPx,
)
from captum_lrpx.explainer import explain
from captum_lrpx.explanation import Explanation
from captum_lrpx.propagation import propagation
from captum_lrpx.recipes import ATTN_LRP, LRP, LRP_UNIFORM_GATE, Recipe
from captum_lrpx.targets import (
    AnswerLogits,
    ClassLogits,
    LogitDifference,
    Target,
    TokenLogits,
    last_token,
)

__all__ = [
    "ATTN_LRP",
    "LRP",
    "LRP_UNIFORM_GATE",
    "ALTILogit",
    "AnswerLogits",
    "AttnLRPx",
    "ClassLogits",
    "Explanation",
    "LRPx",
    "LayerAttnLRPx",
    "LayerLRPx",
    "LogitDifference",
    "NeuronAttnLRPx",
    "NeuronLRPx",
    "Recipe",
    "Target",
    "TokenLogits",
    "__version__",
    "explain",
    "last_token",
    "propagation",
    "zoo",
]
