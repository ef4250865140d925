"""Plans: what a recipe patches in one model, worked out once per model and recipe."""

from __future__ import annotations

import weakref
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from captum_lrpx.binding import architecture_of, bind
from captum_lrpx.module_tree import modules_of
from captum_lrpx.rules.activation import Identity
from captum_lrpx.rules.captum_rules import captum_rule, warn_of_unused_rules
from captum_lrpx.rules.gated import Comparison, fused_product
from captum_lrpx.rules.linear import Epsilon
from captum_lrpx.rules.linear_patches import RequireGradient, SparseRows
from captum_lrpx.rules.patches import Attachment
from captum_lrpx.rules.product import Uniform
from captum_lrpx.rules.sparse import is_linear_class
from captum_lrpx.rules.verified import own_linear_layers
from captum_lrpx.sites import ActivationSite, LinearSite

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.rules.base import Rule
    from captum_lrpx.sites import GatedProductSite, Sites

__all__ = ["Bound", "Plan", "bound_for", "linear_attachments", "linear_rules", "plan_for"]


class Bound:
    """The sites of a model as it was when they were bound."""

    def __init__(self, model: nn.Module) -> None:
        # Without the model itself: the cache must not keep it alive.
        self.modules = modules_of(model)[1:]
        self.architecture = architecture_of(model)
        self.sites = bind(model, self.architecture)
        self.products = {id(site): Comparison() for site in self.sites.gated_products}
        self.plans: dict[Hashable, Plan] = {}

    def is_current(self, model: nn.Module) -> bool:
        """Whether the model still has the same modules (an adapter may have been added).

        Likewise the same declaration, which may have been corrected.
        """
        modules = modules_of(model)[1:]
        same = len(modules) == len(self.modules) and all(map(is_, modules, self.modules))
        return same and self.architecture is architecture_of(model)


class Plan:
    """The attachments of one recipe on one model: those of linear rules, then the others.

    Attributes:
        graphs: What was compiled of the model under these rules.
    """

    def __init__(
        self,
        modules: tuple[nn.Module, ...],
        attachments: list[Attachment],
        linear: Iterable[Attachment] = (),
    ) -> None:
        self.modules = modules
        self.graphs: dict[Hashable, Any] = {}
        # Linear rules first: they are innermost where a module has several patches.
        self.linear = list(linear)
        self.attachments = [*self.linear, *attachments]
        owners = (getattr(patch, "__self__", None) for _, patch in attachments)
        self.inline: list[Any] = [owner for owner in owners if hasattr(owner, "forget")]

    def observed(self, inner: list[Attachment], outer: list[Attachment]) -> Plan:
        """The same, with observers around the linear rules and around everything."""
        others = self.attachments[len(self.linear) :]
        return Plan(self.modules, [*others, *outer], [*self.linear, *inner])


_bound: weakref.WeakKeyDictionary[nn.Module, Bound] = weakref.WeakKeyDictionary()


def bound_for(model: nn.Module) -> Bound:
    """The sites of a model, bound once for as long as it has the same modules."""
    known = _bound.get(model)
    if known is None or not known.is_current(model):
        known = _bound[model] = Bound(model)
    return known


def plan_for(
    model: nn.Module, recipe: Recipe, *, fused: bool = True, visible: bool = False
) -> Plan:
    """The plan of a recipe on a model, made once unless modules have rules of their own.

    Args:
        model: A transformers model.
        recipe: The rules.
        fused: Whether rules of several modules may be one operation.
        visible: Whether what such an operation stands for is to be seen in the graph all the same.
    """
    bound = bound_for(model)
    user_rules = list(_user_rules(bound.sites))
    if any("rule" in vars(module) for module in bound.modules):
        warn_of_unused_rules(model, {site.module for site in bound.sites.linear})
    products = tuple(_products(bound, recipe, visible=visible)) if fused else ()
    # What is found out within one propagation holds for the next one: a block that is computed
    # again must do what it did before.
    key = (recipe, products)
    if user_rules or key not in bound.plans:
        linear = _linear_attachments(bound.sites, recipe, dict(user_rules))
        plan = Plan(bound.modules, list(_attachments(bound.sites, recipe, products)), linear)
        if user_rules:  # may be changed between two calls
            return plan
        bound.plans[key] = plan
    return bound.plans[key]


def _linear_attachments(
    sites: Sites, recipe: Recipe, user_rules: dict[str, Rule[Any]]
) -> Iterator[Attachment]:
    mostly_zero = set(_behind_attention(sites))
    for linear in sites.linear:
        own = {
            each: f"{linear.path}.{path}" if path else linear.path
            for path, each in own_linear_layers(linear.module)
        }
        for each, path in own.items():
            yield Attachment(each, RequireGradient(path, each, own=True))
        if not is_linear_class(linear.module) and linear.module not in own:
            yield Attachment(linear.module, RequireGradient(linear.path, linear.module))
        rule = user_rules.get(linear.path) or recipe.rule_for("linear", linear.path)
        attachments = rule.attach(linear)
        if not attachments and linear.module in mostly_zero:
            attachments = [Attachment(linear.module, SparseRows(linear.module))]
        yield from attachments


class _Fusible(NamedTuple):
    """A gated product whose rules may be fused.

    Attributes:
        site: The gated MLP.
        comparison: Whether it is as declared, once known.
        known: Whether it was known when the propagation began.
        activation_path: Where its activation is.
    """

    site: GatedProductSite
    comparison: Comparison
    known: bool
    activation_path: str


def _attachments(
    sites: Sites, recipe: Recipe, products: Iterable[_Fusible]
) -> Iterator[Attachment]:
    roles: list[tuple[str, Iterable[Any]]] = [
        ("norm", sites.norms),
        ("activation", sites.activations),
        ("attention", sites.attentions),
        ("gate", sites.gated_products),
    ]
    fusible = {id(product.site): product for product in products}
    activations = {id(product.site.activation) for product in products}
    for role, places in roles:
        for site in places:
            product = fusible.get(id(site))
            if product is not None:
                yield from fused_product(
                    site,
                    product.comparison,
                    known=product.known,
                    activation_path=product.activation_path,
                )
            elif id(getattr(site, "module", None)) not in activations:
                yield from recipe.rule_for(role, site.path).attach(site)


def _products(bound: Bound, recipe: Recipe, *, visible: bool) -> Iterator[_Fusible]:
    """Gated products whose rules may be fused."""
    paths = {
        id(site.module): site.path
        for site in bound.sites.activations
        if isinstance(site, ActivationSite)
    }
    for site in bound.sites.gated_products:
        path = paths.get(id(site.activation))
        if path is None or recipe.rule_for("activation", path) != Identity():
            continue
        if recipe.rule_for("gate", site.path) == Uniform():
            comparison = bound.products[id(site)]
            yield _Fusible(site, comparison, bool(comparison.equal) and not visible, path)


def _behind_attention(sites: Sites) -> Iterator[nn.Module]:
    """Linear layers whose gradient is zero at all positions that are not explained."""
    yield from sites.language_model_head[-1:]
    last = sites.blocks[-1]
    if last.attention.query.features is None:
        yield last.attention.query.module
    yield from (last.attention.output, *last.mlp_inputs, last.mlp_output)


def linear_rules(model: nn.Module, recipe: Recipe) -> Iterator[tuple[LinearSite, Rule[Any]]]:
    """The linear layers of a model, each with the rule that it has under a recipe."""
    sites = bound_for(model).sites
    user_rules = dict(_user_rules(sites))
    for linear in sites.linear:
        yield linear, user_rules.get(linear.path) or recipe.rule_for("linear", linear.path)


def _user_rules(sites: Sites) -> Iterator[tuple[str, Rule[Any]]]:
    """Captum's ``module.rule`` on linear layers."""
    for linear in sites.linear:
        rule = captum_rule(linear.module, linear.path)
        if rule is not None:
            yield linear.path, rule


def linear_attachments(model: nn.Module, recipe: Recipe) -> list[Attachment]:
    """The rules of linear layers of any module, where they are not the layers' own gradient."""
    attachments: list[Attachment] = [
        Attachment(module, RequireGradient(path, module))
        for path, module in model.named_modules()
        if type(module).__module__.startswith("torch.ao.nn.quantized")  # not all have a gradient
    ]
    plain = recipe.linear == Epsilon() and not recipe.overrides
    if plain and not any("rule" in vars(module) for module in modules_of(model)):
        return attachments
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            site = LinearSite(path, module)
            rule = captum_rule(module, path) or recipe.rule_for("linear", path)
            attachments += rule.attach(site)
    return attachments
