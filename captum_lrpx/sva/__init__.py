"""Subject-verb agreement: annotated sentences and a grammar that makes them."""

from __future__ import annotations

from captum_lrpx.sva.grammar import generate
from captum_lrpx.sva.samples import Number, Sample, Span, read_jsonl, write_jsonl

__all__ = ["Number", "Sample", "Span", "generate", "read_jsonl", "write_jsonl"]
