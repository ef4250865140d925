"""The benchmark: models x methods x samples, and tables of the results."""

from __future__ import annotations

from captum_lrpx.sva.evaluation.ablation import ablation
from captum_lrpx.sva.evaluation.contenders import (
    DEFAULT_METHODS,
    PAPER_METHODS,
    RANDOM_DRAWS,
    Contender,
    contenders,
)
from captum_lrpx.sva.evaluation.paper import PaperLayout
from captum_lrpx.sva.evaluation.processes import Processes, processes
from captum_lrpx.sva.evaluation.reference import Reference, paper_reference, read_reference
from captum_lrpx.sva.evaluation.report import Report
from captum_lrpx.sva.evaluation.results import ModelResults
from captum_lrpx.sva.evaluation.run import Evaluation, Settings, evaluate

__all__ = [
    "DEFAULT_METHODS",
    "PAPER_METHODS",
    "RANDOM_DRAWS",
    "Contender",
    "Evaluation",
    "ModelResults",
    "PaperLayout",
    "Processes",
    "Reference",
    "Report",
    "Settings",
    "ablation",
    "contenders",
    "evaluate",
    "paper_reference",
    "processes",
    "read_reference",
]
