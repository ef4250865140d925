"""Metrics for attributions of tokens, in the form of ``captum.metrics``.

Against a ground truth: :mod:`captum_lrpx.metrics.ground_truth`. Against the model itself:
:mod:`captum_lrpx.metrics.faithfulness`.
"""

from captum_lrpx.metrics.agreement import Agreement, agreement
from captum_lrpx.metrics.correlation import pearson, spearman
from captum_lrpx.metrics.faithfulness import (
    Alignment,
    PerturbationCurve,
    abpc,
    leave_one_out,
    leave_one_out_alignment,
    perturbation_curve,
)
from captum_lrpx.metrics.ground_truth import (
    ground_truth_metric,
    mean_reciprocal_rank,
    per_token_accuracy,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
)
from captum_lrpx.metrics.tokens import token_relevances

__all__ = [
    "Agreement",
    "Alignment",
    "PerturbationCurve",
    "abpc",
    "agreement",
    "ground_truth_metric",
    "leave_one_out",
    "leave_one_out_alignment",
    "mean_reciprocal_rank",
    "pearson",
    "per_token_accuracy",
    "perturbation_curve",
    "pointing_game",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "spearman",
    "token_relevances",
]
