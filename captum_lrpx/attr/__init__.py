"""Captum-facing classes."""

from captum_lrpx.attr.input import AttnLRPx, LRPx

__all__ = ["AttnLRPx", "LRPx"]
