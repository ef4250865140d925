"""Which modules of a model have to be watched under a recipe, and for which lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from captum_lrpx.conservation.tally import Line
from captum_lrpx.plans import linear_rules
from captum_lrpx.propagation import sites_of
from captum_lrpx.rules import Epsilon, Identity, UniformAttention
from captum_lrpx.rules.verified import own_linear_layers
from captum_lrpx.sites import ActivationSite, NormSite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.sites import AttentionSite, Sites

__all__ = ["AttentionLines", "EmbeddingLine", "Outlook", "layer_of"]

Lines = list[tuple[Line, float]]

# The uniform rule at A V halves the gradient of the weights A too. That half is applied behind the
# softmax, at the query and key projections (1/4 there, not 1/2), so the gradients at weights and
# scores are twice those of the rule.
_SHARE_OF_WEIGHTS = 0.5


@dataclass(frozen=True)
class EmbeddingLine:
    """The line of an embedding, and the one of its further calls."""

    line: Line
    otherwise: Line


@dataclass(frozen=True)
class AttentionLines:
    """The lines of an attention through whose softmax relevance goes.

    Attributes:
        softmax: For what the softmax keeps.
        constant: For constants added to the scores.
        share: What the gradients at weights and scores have to be multiplied by.
    """

    softmax: Line
    constant: Line
    share: float


def layer_of(path: str, sites: Sites) -> int | None:
    """The number of the block that a path lies in, or None."""
    for number, block in enumerate(sites.blocks):
        if path == block.path or path.startswith(f"{block.path}."):
            return number
    return None


@dataclass(eq=False)
class Outlook:
    """What to watch in one model under one recipe.

    A line of a rule that does not conserve is what goes in from above minus what comes out below:
    it has the factor +1 at the one end and -1 at the other, and -1 at each bias inside.

    Attributes:
        inputs: Modules whose input counts, with lines and factors.
        outputs: Modules whose output counts.
        biases: Modules with a bias, seen from outside.
        rule_biases: Linear layers with a bias and a linear rule.
        linear_rules: Linear layers with a linear rule that may absorb relevance.
        embeddings: Embeddings of tokens, positions and token types.
        attentions: Attentions through whose softmax relevance goes.
        heads: Linear layers outside of the blocks.
        shares: Factors on the gradients at modules inside an attention.
    """

    model: nn.Module
    recipe: Recipe
    inputs: dict[nn.Module, Lines] = field(default_factory=dict)
    outputs: dict[nn.Module, Lines] = field(default_factory=dict)
    biases: dict[nn.Module, Lines] = field(default_factory=dict)
    rule_biases: dict[nn.Module, Lines] = field(default_factory=dict)
    linear_rules: dict[nn.Module, Line] = field(default_factory=dict)
    embeddings: dict[nn.Module, EmbeddingLine] = field(default_factory=dict)
    attentions: dict[nn.Module, AttentionLines] = field(default_factory=dict)
    heads: set[nn.Module] = field(init=False)
    shares: dict[nn.Module, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sites = sites_of(self.model)
        self._inside: set[str] = set()  # norms whose line is that of their attention
        self._paths = {module: path for path, module in self.model.named_modules()}
        self._find_embeddings()
        self._find_biases()
        self._find_attentions()
        self._find_norms()
        self._find_activations()
        self._find_gates()
        self._find_linear_rules()

    def watched(self) -> Iterator[nn.Module]:
        """The modules that need a patch from outside."""
        yield from dict.fromkeys([*self.inputs, *self.outputs, *self.biases, *self.heads])

    def _line(self, kind: str, path: str) -> Line:
        return Line(kind, path, layer_of(path, self.sites))  # type: ignore[arg-type]

    # What there is --------------------------------------------------------------------------

    def _find_embeddings(self) -> None:
        modules = {
            "tokens": self.sites.token_embedding,
            "positions": self.sites.position_embedding,
            "token_types": self.sites.segment_embedding,
        }
        for kind, module in modules.items():
            if module is not None:
                path = self._paths[module]
                other = "token_types" if kind == "tokens" else kind
                lines = EmbeddingLine(self._line(kind, path), self._line(other, path))
                self.embeddings[module] = lines

    def _find_biases(self) -> None:
        outside = (site for site in self.sites.linear if layer_of(site.path, self.sites) is None)
        self.heads = {site.module for site in outside}
        norms = {site.module for site in self.sites.norms}
        inside_norms = tuple(f"{site.path}." for site in self.sites.norms)  # trained by PEFT
        for path, module in self.model.named_modules():
            leaf = not any(True for _ in module.children())
            if module in norms:
                bias = getattr(module, "bias", None)
            elif leaf and _is_linear(module) and not path.startswith(inside_norms):
                bias = vars(module).get("bias", _own(module, "bias"))
            else:
                continue
            if isinstance(bias, torch.Tensor):
                self.biases[module] = [(self._line("bias", f"{path}.bias"), 1.0)]

    # Rules that do not conserve -------------------------------------------------------------

    def _find_attentions(self) -> None:
        for site in self.sites.attentions:
            rule = self.recipe.rule_for("attention", site.path)
            norms = [norm for norm in self.sites.norms if norm.path.startswith(f"{site.path}.")]
            if isinstance(rule, UniformAttention):
                self.attentions[site.module] = AttentionLines(
                    self._line("softmax", site.path),
                    self._line("score_bias", site.path),
                    _SHARE_OF_WEIGHTS,
                )
                for norm in norms:  # between the projections, which have the factors, and Q K
                    self.shares[norm.module] = _SHARE_OF_WEIGHTS / 2
            elif not rule.conserves:
                self._bracket_attention(site)
                self._inside.update(norm.path for norm in norms)
                for norm in norms:
                    self.biases.pop(norm.module, None)

    def _bracket_attention(self, site: AttentionSite) -> None:
        line = self._line("rule", site.path)
        self._add(self.inputs, site.output, line, 1.0)
        for module in {site.query.module, site.key.module, site.value.module}:
            self._add(self.outputs, module, line, -1.0)

    def _find_norms(self) -> None:
        for site in self.sites.norms:
            if site.path in self._inside or self.recipe.rule_for("norm", site.path).conserves:
                continue
            self._bracket_module(site)

    def _find_activations(self) -> None:
        for site in self.sites.activations:
            rule = self.recipe.rule_for("activation", site.path)
            if isinstance(site, ActivationSite):
                if not rule.conserves or (
                    isinstance(rule, Identity) and _is_not_zero_at_zero(site)
                ):
                    self._bracket_module(site)
            elif not rule.conserves:
                line = self._line("rule", site.path)
                self._add(self.outputs, site.before, line, -1.0)
                self._add(self.inputs, site.after, line, 1.0)

    def _bracket_module(self, site: NormSite | ActivationSite) -> None:
        line, share = self._line("rule", site.path), self.shares.get(site.module, 1.0)
        self._add(self.outputs, site.module, line, share)
        self._add(self.inputs, site.module, line, -share)
        if site.module in self.biases:
            self.biases[site.module].append((line, -1.0))

    def _find_gates(self) -> None:
        for site in self.sites.gated_products:
            if not self.recipe.rule_for("gate", site.path).conserves:
                line = self._line("rule", site.path)
                self._add(self.inputs, site.output, line, 1.0)
                self._add(self.outputs, site.activation, line, -1.0)
                self._add(self.outputs, site.up, line, -1.0)

    def _find_linear_rules(self) -> None:
        for site, rule in linear_rules(self.model, self.recipe):
            if rule == Epsilon():
                self._find_rounding(site.module)
                continue
            line = self._line("absorbed", site.path)
            self.linear_rules[site.module] = line
            for module in site.module.modules():
                lines = self.biases.get(module, [])
                if lines:
                    lines.append((line, -1.0))
                if module is site.module and lines:  # else inside of an adapter
                    self.rule_biases[module] = self.biases.pop(module)

    def _find_rounding(self, layer: nn.Module) -> None:
        """Layers of classes of their own may round their input: to 8 bits, for example."""
        for _, module in own_linear_layers(layer):
            line = self._line("absorbed", self._paths[module])
            self.linear_rules[module] = line
            if module in self.biases:
                self.biases[module].append((line, -1.0))

    @staticmethod
    def _add(where: dict[nn.Module, Lines], module: nn.Module, line: Line, factor: float) -> None:
        where.setdefault(module, []).append((line, factor))


def _own(module: nn.Module, name: str) -> torch.Tensor | None:
    """A parameter or buffer of a module itself, not what a property looks up elsewhere."""
    for tensors in (module._parameters, module._buffers):  # noqa: SLF001 - getattr finds properties
        if tensors.get(name) is not None:
            return tensors[name]
    return None


def _is_linear(module: nn.Module) -> bool:
    name = type(module).__name__
    return isinstance(module, torch.nn.Linear) or "Linear" in name or name == "Conv1D"


def _is_not_zero_at_zero(site: ActivationSite) -> bool:
    """Whether an activation has a value at 0, which no slope at 0 carries."""
    try:
        with torch.no_grad():
            return bool((site.module(torch.zeros(1, device="cpu")) != 0).any())
    except (RuntimeError, TypeError):  # parameters per feature, or on another device
        return True
