"""Rules for the two products and the softmax of attention.

All of them act on the outputs of the query, key and value projections, which every attention
implementation goes through, so each attention kernel (eager, SDPA, flash) stays in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from captum_lrpx.rules.base import Rule
from captum_lrpx.rules.functional import CONSTANT_WEIGHTS, UNIFORM_ATTENTION, AttentionShares
from captum_lrpx.rules.linear_patches import ScaleFeatureGradients, ScaleOutputGradient
from captum_lrpx.rules.patches import Attachment, Constant, ConstantWeightsPatch, Patch
from captum_lrpx.sites import AttentionSite, Projection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

__all__ = ["AttentionGradient", "AttentionRule", "ConstantWeights", "UniformAttention"]


class AttentionRule(Rule[AttentionSite]):
    """A rule for a self-attention."""

    role: ClassVar[str] = "attention"


@dataclass(frozen=True)
class ConstantWeights(AttentionRule):
    """The attention weights are constant, all relevance goes to the values.

    Signal-take-all for ``A V`` (Ali et al. 2022; Arras et al. 2025, D.4); the query and key
    projections get no graph at all. Formula:
    :data:`captum_lrpx.rules.functional.CONSTANT_WEIGHTS`.
    """

    conserves: ClassVar[bool] = True

    def attach(self, site: AttentionSite) -> Sequence[Attachment]:
        """Hold queries and keys constant."""
        projections = scale_projections(site, CONSTANT_WEIGHTS)
        detached = site.query.features is None and site.key.features is None
        return [*projections, Attachment(site.module, ConstantWeightsPatch(detached))]


@dataclass(frozen=True)
class UniformAttention(AttentionRule):
    """AttnLRP: uniform products at ``A V`` and ``Q K^T``, softmax by its gradient.

    Achtibat et al. 2024; Arras et al. 2025, D.6. The softmax does not conserve. Formula:
    :data:`captum_lrpx.rules.functional.UNIFORM_ATTENTION`.
    """

    conserves: ClassVar[bool] = False

    def attach(self, site: AttentionSite) -> Sequence[Attachment]:
        """Scale the gradients of query, key and value by 1/4, 1/4 and 1/2."""
        return scale_projections(site, UNIFORM_ATTENTION)


@dataclass(frozen=True)
class AttentionGradient(AttentionRule):
    """The ordinary gradient of attention; for ablations, does not conserve."""

    conserves: ClassVar[bool] = False

    def attach(self, site: AttentionSite) -> Sequence[Attachment]:  # noqa: ARG002 - nothing to do
        """Leave the attention alone."""
        return []


def scale_projections(site: AttentionSite, shares: AttentionShares) -> Sequence[Attachment]:
    """Patches that multiply the gradients of the three projections; 0 cuts the graph."""
    by_module: dict[nn.Module, list[tuple[Projection, float]]] = {}
    for projection, factor in zip((site.query, site.key, site.value), shares, strict=True):
        by_module.setdefault(projection.module, []).append((projection, factor))
    attachments = []
    for module, parts in by_module.items():
        whole = parts[0][0].features is None
        patch = _whole(module, parts[0][1]) if whole else _by_feature(module, parts)
        if patch is not None:
            attachments.append(Attachment(module, patch))
    return attachments


def _whole(module: nn.Module, factor: float) -> Patch | None:
    if factor == 0:
        return Constant()
    return None if factor == 1 else ScaleOutputGradient(factor, module)


def _by_feature(module: nn.Module, parts: list[tuple[Projection, float]]) -> Patch:
    """The patch of a fused projection: each feature has the factor of the part it belongs to."""
    features = [part.features for part, _ in parts if part.features is not None]
    factors = torch.ones(sum(index.numel() for index in features), device="cpu")
    for part, factor in parts:
        factors[part.features] = factor
    return ScaleFeatureGradients(factors, module)
