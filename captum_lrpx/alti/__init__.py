"""ALTI-Logit: its mathematics, and the recording of a forward pass that it uses."""

from captum_lrpx.alti.formulas import (
    alti_matrix,
    contributions,
    contributions_by_head,
    fold_frozen_norm,
    logit_update,
    normalize,
    rollout,
    rollout_by_layer,
)

__all__ = [
    "alti_matrix",
    "contributions",
    "contributions_by_head",
    "fold_frozen_norm",
    "logit_update",
    "normalize",
    "rollout",
    "rollout_by_layer",
]
