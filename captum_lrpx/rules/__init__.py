"""Backward rules: one formula each, its source, and what it conserves.

:mod:`~captum_lrpx.rules.functional` holds the formulas as pure functions on tensors;
:mod:`~captum_lrpx.rules.slopes` the secant slopes of activations; the other files hold the rules of
one role each, which attach a formula to a place in a model.
"""

from captum_lrpx.rules.activation import ActivationGradient, ActivationRule, Identity
from captum_lrpx.rules.attention import (
    AttentionGradient,
    AttentionRule,
    ConstantWeights,
    UniformAttention,
)
from captum_lrpx.rules.base import Rule
from captum_lrpx.rules.linear import Alpha1Beta0, Epsilon, Gamma, LinearRule
from captum_lrpx.rules.norm import FrozenScale, NormGradient, NormRule
from captum_lrpx.rules.patches import Attachment
from captum_lrpx.rules.product import GateRule, ProductGradient, SignalTakeAll, Uniform

__all__ = [
    "ActivationGradient",
    "ActivationRule",
    "Alpha1Beta0",
    "Attachment",
    "AttentionGradient",
    "AttentionRule",
    "ConstantWeights",
    "Epsilon",
    "FrozenScale",
    "Gamma",
    "GateRule",
    "Identity",
    "LinearRule",
    "NormGradient",
    "NormRule",
    "ProductGradient",
    "Rule",
    "SignalTakeAll",
    "Uniform",
    "UniformAttention",
]
