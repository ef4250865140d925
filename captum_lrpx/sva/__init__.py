"""Subject-verb agreement: annotated sentences, and a grammar that generates them."""

from __future__ import annotations

from captum_lrpx.sva.counting import Lengths, Report
from captum_lrpx.sva.grammar import generate
from captum_lrpx.sva.samples import Number, Sample, Span, read_jsonl, write_jsonl
from captum_lrpx.sva.tokenized import TokenizedSample, TokenizedSamples, tokenize

__all__ = [
    "Lengths",
    "Number",
    "Report",
    "Sample",
    "Span",
    "TokenizedSample",
    "TokenizedSamples",
    "generate",
    "read_jsonl",
    "tokenize",
    "write_jsonl",
]
