"""Backward rules: one formula each, its source, and whether it conserves.

Rules of operations are declarations: the shares of a product's operands, or whether an operation
keeps its own gradient. :mod:`~captum_lrpx.rules.node_rules` applies them to the nodes of a graph;
:mod:`~captum_lrpx.rules.slopes` has the secant slopes of activations, and
:mod:`~captum_lrpx.rules.functional` the formulas of linear layers.
"""

from captum_lrpx.rules.declarations import (
    ActivationGradient,
    ActivationRule,
    AttentionGradient,
    AttentionRule,
    AttentionShares,
    ConstantRouter,
    ConstantWeights,
    FrozenScale,
    GateRule,
    GateShares,
    Identity,
    NormGradient,
    NormRule,
    ProductGradient,
    RouterGradient,
    RouterRule,
    Rule,
    SignalTakeAll,
    Uniform,
    UniformAttention,
    UniformRouter,
)
from captum_lrpx.rules.linear import Alpha1Beta0, Epsilon, Gamma, LinearRule

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
