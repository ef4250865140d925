"""Captum-facing classes."""

from captum_lrpx.attr.alti_logit import ALTILogit
from captum_lrpx.attr.input import AttnLRPx, LRPx
from captum_lrpx.attr.layer import LayerAttnLRPx, LayerLRPx
from captum_lrpx.attr.neuron import NeuronAttnLRPx, NeuronLRPx

__all__ = [
    "ALTILogit",
    "AttnLRPx",
    "LRPx",
    "LayerAttnLRPx",
    "LayerLRPx",
    "NeuronAttnLRPx",
    "NeuronLRPx",
]
