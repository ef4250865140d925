"""Explanations as objects to keep, print, draw, subtract and compare."""

from captum_lrpx.explanation.certificate import Certificate
from captum_lrpx.explanation.record import Explanation, TokenRelevance
from captum_lrpx.explanation.segment_sums import Segment, Segments

__all__ = ["Certificate", "Explanation", "Segment", "Segments", "TokenRelevance"]
