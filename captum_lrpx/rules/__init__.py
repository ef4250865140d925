"""Backward rules: one formula each, its source, and whether it conserves.

The rules of one role are in one file. They are declarations: the shares of a product's operands,
or whether an operation keeps its own gradient. :mod:`~captum_lrpx.rules.node_rules` applies them
to the nodes of a graph; :mod:`~captum_lrpx.rules.slopes` has the secant slopes of activations,
and :mod:`~captum_lrpx.rules.functional` the formulas of linear layers.
"""

from captum_lrpx.rules.activation import ActivationGradient, ActivationRule, Identity
from captum_lrpx.rules.attention import (
    AttentionGradient,
    AttentionRule,
    AttentionShares,
    ConstantWeights,
    UniformAttention,
)
from captum_lrpx.rules.base import Rule
from captum_lrpx.rules.linear import Alpha1Beta0, Epsilon, Gamma, LinearRule
from captum_lrpx.rules.norm import FrozenScale, NormGradient, NormRule
from captum_lrpx.rules.product import (
    GateRule,
    GateShares,
    ProductGradient,
    SignalTakeAll,
    Uniform,
)
from captum_lrpx.rules.router import ConstantRouter, RouterGradient, RouterRule, UniformRouter

__all__ = [
    "ActivationGradient",
    "ActivationRule",
    "Alpha1Beta0",
    "AttentionGradient",
    "AttentionRule",
    "AttentionShares",
    "ConstantRouter",
    "ConstantWeights",
    "Epsilon",
    "FrozenScale",
    "Gamma",
    "GateRule",
    "GateShares",
    "Identity",
    "LinearRule",
    "NormGradient",
    "NormRule",
    "ProductGradient",
    "RouterGradient",
    "RouterRule",
    "Rule",
    "SignalTakeAll",
    "Uniform",
    "UniformAttention",
    "UniformRouter",
]
