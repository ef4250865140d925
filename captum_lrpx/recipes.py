"""Recipes: the rule of each role of an architecture. A method is a recipe, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from captum_lrpx import rules

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ATTN_LRP",
    "ATTN_LRP_SIGNAL_GATE",
    "GRADIENT",
    "LRP",
    "LRP_MIRRORED_GATE",
    "LRP_UNIFORM_GATE",
    "NAMED_RECIPES",
    "PUBLISHED",
    "Override",
    "Recipe",
]


@dataclass(frozen=True)
class Override:
    """A rule for the modules whose path matches a pattern.

    Attributes:
        pattern: Path of a module in the model, with shell wildcards: ``"model.layers.3.mlp"``,
            ``"*.layers.0.*"``.
        rule: The rule, for operations of its own role.
    """

    pattern: str
    rule: rules.Rule


_OF_OPERATIONS: Final = ("norm", "activation", "attention", "gate")
"""Roles without which the operations of a module, except for a router's, have no rule."""


@dataclass(frozen=True)
class Recipe:
    """Maps roles to rules, with overrides per module path: zennit's composite.

    Recipes are values: equal ones are interchangeable, and a variant is made by
    ``dataclasses.replace(LRP, name="mine", gate=Uniform())``.

    Attributes:
        name: Name that results carry.
        norm: Rule of LayerNorm and RMSNorm.
        activation: Rule of element-wise activations.
        attention: Rule of attention's products and softmax.
        gate: Rule of the product in a gated MLP.
        router: Rule of the product of experts with the weights of their router.
        linear: Rule of linear layers; epsilon = 0 leaves them alone.
        overrides: Exceptions, first match wins.
    """

    name: str
    norm: rules.NormRule = rules.FrozenScale()  # noqa: RUF009 - frozen, like the recipe
    activation: rules.ActivationRule = rules.Identity()  # noqa: RUF009 - frozen, like the recipe
    attention: rules.AttentionRule = rules.ConstantWeights()  # noqa: RUF009 - frozen, like the recipe
    gate: rules.GateRule = rules.SignalTakeAll()  # noqa: RUF009 - frozen, like the recipe
    router: rules.RouterRule = rules.ConstantRouter()  # noqa: RUF009 - frozen, like the recipe
    linear: rules.LinearRule = rules.Epsilon()  # noqa: RUF009 - frozen, like the recipe
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        kinds = {
            "norm": rules.NormRule,
            "activation": rules.ActivationRule,
            "attention": rules.AttentionRule,
            "gate": rules.GateRule,
            "router": rules.RouterRule,
            "linear": rules.LinearRule,
        }
        for role, kind in kinds.items():
            rule = getattr(self, role)
            if not isinstance(rule, kind):
                raise TypeError(
                    f"The rule for the role {role!r} must be of the kind {kind.__name__}, "
                    f"not {rule!r}."
                )

    def override(self, pattern: str, rule: rules.Rule) -> Recipe:
        """A copy of the recipe in which ``rule`` holds for the modules that ``pattern`` matches.

        Args:
            pattern: Path of a module with shell wildcards, see :class:`Override`. An override
                precedes those made before it.
            rule: Any rule; it applies to operations of its own role.

        Returns:
            The new recipe, with ``*`` after its name.
        """
        overrides = (Override(pattern, rule), *self.overrides)
        return replace(self, name=f"{self.name.rstrip('*')}*", overrides=overrides)

    def rule_for(self, role: str, path: str) -> rules.Rule:
        """The rule of an operation, by its role and path.

        Args:
            role: ``"norm"``, ``"activation"``, ``"attention"``, ``"gate"``, ``"router"`` or
                ``"linear"``.
            path: Full path of the module in the model.
        """
        for override in self.overrides:
            if override.rule.role == role and fnmatchcase(path, override.pattern):
                return override.rule
        rule: rules.Rule = getattr(self, role)
        return rule

    def is_gradient_at(self, path: str) -> bool:
        """Whether the operations of a module keep their ordinary gradients.

        A router has a rule of its own, and so have linear layers.

        Args:
            path: Full path of the module in the model.
        """
        return all(self.rule_for(role, path).own_gradient for role in _OF_OPERATIONS)


LRP = Recipe("lrp")
"""LRP for transformers: values only in attention, ``up`` as the signal of a gate (Ali et al.
2022; Arras et al. 2025). Conserves exactly, biases counted as inputs."""

LRP_UNIFORM_GATE = replace(LRP, name="lrp-uniform-gate", gate=rules.Uniform())
"""LRP with the uniform rule at gates (as in Jafari et al. 2024, MambaLRP). Conserves exactly."""

ATTN_LRP = replace(LRP, name="attnlrp", attention=rules.UniformAttention(), gate=rules.Uniform())
"""AttnLRP (Achtibat et al. 2024). Conserves up to the leak of the softmax."""

ATTN_LRP_SIGNAL_GATE = replace(ATTN_LRP, name="attnlrp-signal-gate", gate=rules.SignalTakeAll())
"""AttnLRP's attention with LRP's gate: the fourth combination of the two rules in question."""

LRP_MIRRORED_GATE = replace(LRP, name="lrp-mirrored-gate", gate=rules.SignalTakeAll("activation"))
"""LRP with the other conserving choice at gates: the activation is the signal, ``up`` constant."""

GRADIENT = Recipe(
    "gradient",
    rules.NormGradient(),
    rules.ActivationGradient(),
    rules.AttentionGradient(),
    rules.ProductGradient(),
    rules.RouterGradient(),
)
"""No rule: the ordinary gradient, for comparison."""

NAMED_RECIPES = {
    recipe.name: recipe for recipe in (LRP, LRP_UNIFORM_GATE, ATTN_LRP, ATTN_LRP_SIGNAL_GATE)
}
"""The combinations of attention rule and gate rule, by name."""


def _shared(name: str, values: float, up: float) -> Recipe:
    return Recipe(name, attention=rules.AttentionShares(values), gate=rules.GateShares(up))


PUBLISHED: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        each.name: each
        for each in (
            _shared("cp-lrp", values=1.0, up=1.0),
            _shared("mambalrp", values=1.0, up=0.5),
            _shared("libragrad", values=1.0, up=0.5),
            _shared("relp", values=1.0, up=0.5),
            _shared("attnlrp", values=0.5, up=0.5),
            _shared("dpa", values=0.5, up=0.5),
            replace(GRADIENT, name="gradient-x-input"),
        )
    }
)
"""Published methods by name: norms with a constant scale, activations with their secant slope,
and shares of the values in attention and of ``up`` in a gated MLP.

- ``"cp-lrp"``: Ali et al. 2022, named CP-LRP by Achtibat et al. 2024; equals :data:`LRP`.
- ``"mambalrp"``: Jafari et al. 2024, https://arxiv.org/abs/2406.07592, section 4; ``"libragrad"``:
  Mehri et al. 2025, https://arxiv.org/abs/2411.16760; ``"relp"``: Jafari et al. 2025,
  https://arxiv.org/abs/2508.21258, whose coefficients are the relevances without the factor of the
  input. All three equal :data:`LRP_UNIFORM_GATE`.
- ``"attnlrp"``: Achtibat et al. 2024, https://arxiv.org/abs/2402.05602; ``"dpa"``: Jantsch et al.
  2026, https://arxiv.org/abs/2603.19742. Both equal :data:`ATTN_LRP`.
- ``"gradient-x-input"``: no rule, :data:`GRADIENT`.
"""
