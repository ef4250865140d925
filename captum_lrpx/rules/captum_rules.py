"""Captum's ``module.rule = EpsilonRule()`` convention, honoured for linear layers.

Captum's own rules are applied with Captum's own formulas, which clamp weights only (they assume
non-negative inputs). :class:`~captum_lrpx.rules.linear.Gamma` and
:class:`~captum_lrpx.rules.linear.Alpha1Beta0` are the versions for signed inputs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from captum.attr._utils.lrp_rules import (
    Alpha1_Beta0_Rule,
    EpsilonRule,
    GammaRule,
    IdentityRule,
    PropagationRule,
)

from captum_lrpx.rules import functional
from captum_lrpx.rules.linear import LinearRule, damped, with_weights

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor, nn

    from captum_lrpx.rules.functional import Apply
    from captum_lrpx.rules.linear import Forward, Patch


def captum_rule(module: nn.Module, path: str) -> CaptumRule | None:
    """The rule that a user set as ``module.rule``; None if there is none.

    Raises:
        TypeError: If ``module.rule`` is not one of Captum's propagation rules.
    """
    rule = vars(module).get("rule")
    if rule is None:
        return None
    if not isinstance(rule, PropagationRule):
        raise TypeError(
            f"The rule of module {path!r} is a {type(rule).__name__}. Please select "
            "propagation rules inherited from class PropagationRule."
        )
    return CaptumRule(rule)


def warn_of_unused_rules(model: nn.Module, linear: Collection[nn.Module]) -> None:
    """Warn about ``module.rule`` on modules that are no linear layers.

    Args:
        model: The model.
        linear: Its linear layers, where the convention is honoured.
    """
    for path, module in model.named_modules():
        if isinstance(vars(module).get("rule"), PropagationRule) and module not in linear:
            warnings.warn(
                f"The rule of module {path!r} has no effect: {type(module).__name__} is not a "
                "linear layer, and Captum's `module.rule` is honoured on linear layers only. Use a "
                "recipe with an override for this module.",
                stacklevel=2,
            )


@dataclass(frozen=True)
class CaptumRule(LinearRule):
    """One of Captum's propagation rules, in Gradient x Input form.

    ``g_in = W'^T (g_out * z / (z' + eps sign(z')))`` where ``W'`` are the weights as Captum's rule
    manipulates them and ``z' = W' x + b'`` (``captum.attr._utils.lrp_rules``).

    Attributes:
        rule: Captum's rule object.
    """

    conserves: ClassVar[bool] = True

    rule: PropagationRule

    def patch(self, module: nn.Module, path: str) -> Patch:
        """Replace the layer's slope by the slope of Captum's rule."""
        if isinstance(self.rule, IdentityRule):
            return _identity(path)
        if isinstance(self.rule, (GammaRule, Alpha1_Beta0_Rule)):
            return with_weights(module, path, self._manipulated)
        if isinstance(self.rule, EpsilonRule):
            return damped(self.rule.STABILITY_FACTOR)
        raise TypeError(
            f"Captum's {type(self.rule).__name__} on {path!r} has no Gradient x Input form "
            "here: use EpsilonRule, GammaRule, Alpha1_Beta0_Rule or IdentityRule."
        )

    def _manipulated(
        self, apply: Apply, x: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        positive = weight.clamp(min=0)
        if isinstance(self.rule, GammaRule):
            positive = weight + self.rule.gamma * positive
        z = apply(x, positive, None if self.rule.set_bias_to_zero else bias)
        ratio = functional.signed_ratio(value, z.detach(), self.rule.STABILITY_FACTOR)
        return functional.relay(z, value, ratio)


def _identity(path: str) -> Patch:
    def patch(forward: Forward, x: Tensor) -> Tensor:
        with torch.no_grad():
            value: Tensor = forward(x)
        if value.shape != x.shape:
            raise ValueError(
                f"Captum's IdentityRule on {path!r} needs inputs and outputs of one shape, not "
                f"{tuple(x.shape)} and {tuple(value.shape)}."
            )
        return functional.relay(x, value, functional.signed_ratio(value, x.detach()))

    return patch
