"""Readers of agreement data: each returns samples, and counts of dropped ones by reason."""

from __future__ import annotations

from captum_lrpx.sva.counting import Collected
from captum_lrpx.sva.sources.blimp import read_blimp
from captum_lrpx.sva.sources.goldberg import read_goldberg
from captum_lrpx.sva.sources.linzen import read_linzen
from captum_lrpx.sva.sources.spacy_pipeline import spacy_parser
from captum_lrpx.sva.sources.universal_dependencies import read_conllu

__all__ = [
    "Collected",
    "read_blimp",
    "read_conllu",
    "read_goldberg",
    "read_linzen",
    "spacy_parser",
]
