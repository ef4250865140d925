"""The attribution classes with Captum's interface."""

from captum_lrpx.attr.alti_logit import ALTILogit
from captum_lrpx.attr.generation import LLMRelevance
from captum_lrpx.attr.generation_result import LLMRelevanceResult
from captum_lrpx.attr.input import AttnLRPx, LRPx
from captum_lrpx.attr.layer import LayerAttnLRPx, LayerLRPx
from captum_lrpx.attr.neuron import NeuronAttnLRPx, NeuronLRPx

__all__ = [
    "ALTILogit",
    "AttnLRPx",
    "LLMRelevance",
    "LLMRelevanceResult",
    "LRPx",
    "LayerAttnLRPx",
    "LayerLRPx",
    "NeuronAttnLRPx",
    "NeuronLRPx",
]
