"""An explanation that one can keep, print, draw, subtract and compare."""

from captum_lrpx.explanation.record import Explanation, TokenRelevance

__all__ = ["Explanation", "TokenRelevance"]
