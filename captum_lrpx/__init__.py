"""Captum attributions that decompose the predictions of transformer language models."""

from captum_lrpx._version import __version__
from captum_lrpx.attr import AttnLRPx, LRPx
from captum_lrpx.propagation import propagation
from captum_lrpx.recipes import ATTN_LRP, LRP, Recipe

__all__ = [
    "ATTN_LRP",
    "LRP",
    "AttnLRPx",
    "LRPx",
    "Recipe",
    "__version__",
    "propagation",
]
