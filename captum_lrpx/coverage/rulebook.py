"""Which rule holds in which module of one model, as the judge needs to know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrpx.rules import ConstantWeights
from captum_lrpx.rules.captum_rules import captum_rule
from captum_lrpx.rules.patches import Constant
from captum_lrpx.sites import AttentionSite, GatedProductSite, InlineActivationSite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.rules.base import Rule
    from captum_lrpx.sites import Site, Sites

__all__ = ["ProductSite", "Rulebook"]

ProductSite = AttentionSite | GatedProductSite


class Rulebook:
    """The rules of a recipe, by module.

    Args:
        model: The Hugging Face model.
        sites: Its sites; None for a model whose architecture is not declared.
        recipe: The rules; None likewise.
    """

    def __init__(self, model: nn.Module, sites: Sites | None, recipe: Recipe | None) -> None:
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._opaque: dict[int, str] = {}
        self._attached: dict[int, str] = {}
        self._parts: dict[int, tuple[ProductSite, str]] = {}
        self._consumers: dict[int, GatedProductSite] = {}
        self._rules: dict[int, Rule[Any]] = {}
        self.opaque_modules: list[nn.Module] = []
        if sites is not None and recipe is not None:
            for site, rule in _rules_by_site(sites, recipe):
                self._enter(site, rule)

    def _enter(self, site: Site, rule: Rule[Any]) -> None:
        self._rules[id(site)] = rule
        text = _in_words(rule)
        attachments = rule.attach(site)
        for module, patch in attachments:
            self._attached.setdefault(id(module), text)
            if isinstance(patch, Constant):
                self._close(module, text)
        if isinstance(site, AttentionSite):
            self._enter_attention(site, rule)
        elif isinstance(site, GatedProductSite):
            if not any(isinstance(patch, Constant) for _, patch in attachments):
                self._mark(site.activation, site, "activation")
                self._mark(site.up, site, "up")
                self._consumers |= dict.fromkeys(map(id, site.output.modules()), site)
        elif not isinstance(site, InlineActivationSite) and (rule.role != "linear" or attachments):
            self._close(site.module, text)  # type: ignore[attr-defined]

    def _enter_attention(self, site: AttentionSite, rule: Rule[Any]) -> None:
        modules = {"query": site.query.module, "key": site.key.module, "value": site.value.module}
        if isinstance(rule, ConstantWeights) and site.query.features is None:
            return  # query and key have no graph at all, and the values are scaled by nothing
        for role, module in modules.items():
            shared = sum(module is other for other in modules.values()) > 1
            self._mark(module, site, "fused" if shared else role)

    def _mark(self, module: nn.Module, site: ProductSite, role: str) -> None:
        self._parts |= dict.fromkeys(map(id, module.modules()), (site, role))

    def _close(self, module: nn.Module, text: str) -> None:
        self.opaque_modules.append(module)
        self._opaque |= dict.fromkeys(map(id, module.modules()), text)

    # Questions --------------------------------------------------------------------------------

    def path_of(self, module: nn.Module | None) -> str | None:
        """Path in the model; None for what is not part of it."""
        return self._paths.get(id(module))

    def opaque_rule(self, module: nn.Module | None) -> str | None:
        """The rule of a module whose inside is that rule's affair."""
        return self._opaque.get(id(module))

    def rule_at(self, module: nn.Module | None) -> str:
        """The rule that is attached to a module."""
        return self._attached.get(id(module), "")

    def rule_of(self, site: ProductSite) -> str:
        """The rule of a site."""
        return _in_words(self._rules[id(site)])

    def is_constant(self, site: ProductSite) -> bool:
        """Whether the attention weights of a site are held constant."""
        return isinstance(self._rules[id(site)], ConstantWeights)

    def part_of(self, module: nn.Module | None) -> tuple[ProductSite, str] | None:
        """What the output of a module is in a site with a product."""
        return self._parts.get(id(module))

    def consumer(self, module: nn.Module | None) -> GatedProductSite | None:
        """The gated product whose gradient the rule scales where this module takes it."""
        return self._consumers.get(id(module))

    def inside(self, module: nn.Module | None, site: Site) -> bool:
        """Whether a module is, or is part of, the one that a site is."""
        path = self._paths.get(id(module))
        return path is not None and (path == site.path or path.startswith(f"{site.path}."))


def _rules_by_site(sites: Sites, recipe: Recipe) -> Iterator[tuple[Any, Rule[Any]]]:
    for linear in sites.linear:
        rule = captum_rule(linear.module, linear.path)
        yield linear, rule or recipe.rule_for("linear", linear.path)
    for norm in sites.norms:
        yield norm, recipe.rule_for("norm", norm.path)
    for activation in sites.activations:
        yield activation, recipe.rule_for("activation", activation.path)
    for attention in sites.attentions:
        yield attention, recipe.rule_for("attention", attention.path)
    for gate in sites.gated_products:
        yield gate, recipe.rule_for("gate", gate.path)


def _in_words(rule: Rule[Any]) -> str:
    """A rule by its class, with what its parameters are if it has any."""
    return repr(rule).removesuffix("()")
