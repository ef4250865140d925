"""The verdict on each operation: linear, ruled, part of what is explained, or without a rule.

The products and the softmax of attention, and the product of a gated MLP, have no module of their
own. Their rules act on the outputs of the declared projections, so they hold only for products of
just these. What descends from which projection is followed through the graph: a *part* is a site
and the role of a tensor in it (``query``, ``scores``, ``weights``, ...).
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from captum_lrpx.coverage.graph import (
    Graph,
    effect_of,
    factors_of,
    is_backward_hook,
    is_own_function,
    name_of,
    own_function,
)
from captum_lrpx.coverage.operations import Coverage, Kind, Operation
from captum_lrpx.coverage.remedies import remedy_for
from captum_lrpx.coverage.trace import Call
from captum_lrpx.rules.verified import is_linear_in_numbers
from captum_lrpx.sites import AttentionSite, GatedProductSite

if TYPE_CHECKING:
    from torch import nn
    from torch.autograd.graph import Node

    from captum_lrpx.coverage.rulebook import Rulebook
    from captum_lrpx.coverage.trace import Traced

__all__ = ["judge"]


class Part(NamedTuple):
    """What a tensor is inside of an attention or a gated MLP.

    Attributes:
        site: The attention or gated product.
        role: ``query``, ``key``, ``value``, ``fused`` (all three), ``scores``, ``weights``;
            ``activation``, ``up``, ``product``; ``mixed``.
    """

    site: AttentionSite | GatedProductSite
    role: str


class Finding(NamedTuple):
    """The verdict on one node."""

    kind: Kind
    rule: str = ""
    reason: str = ""


_LINEAR = Finding("linear")
_BEFORE = Call(-1, "", None)
_IN_PLACE = frozenset({"__setitem__", "copy_", "add_", "sub_", "fill_", "zero_", "masked_fill_"})
_KEYS = frozenset({"key", "fused"})
_QUERIES = frozenset({"query", "fused"})
_VALUES = frozenset({"value", "fused"})
_ONE_WAY = {
    *product(_QUERIES, _KEYS),
    *product({"weights"}, _VALUES),
    ("activation", "up"),
}
_DECLARED = _ONE_WAY | {(second, first) for first, second in _ONE_WAY}
"""What may be multiplied with what."""


def judge(
    traced: Traced, rulebook: Rulebook, model: str, recipe: str | None, around: str
) -> Coverage:
    """Judge a watched forward pass.

    Args:
        traced: What was seen.
        rulebook: Which rules hold where.
        model: Class of the model.
        recipe: Name of the recipe, None without rules.
        around: Class or name of the forward function around the model.

    Returns:
        The operations between sources and explained values.
    """
    visitor = _Judge(traced, rulebook)
    wanted = visitor.graph.between(traced.sources, traced.roots)
    operations: dict[tuple[Call, Finding], Operation] = {}
    for node in visitor.graph.order:
        finding = visitor.visit(node)
        if node not in wanted or _is_leaf(node):
            continue
        call = traced.calls[node]
        path = rulebook.path_of(call.module)
        if finding.kind == "unruled" and path is None and visitor.behind_model(node):
            finding = Finding("explained function")
        function = call.function or name_of(node)
        if is_own_function(node):
            function = type(call.module).__name__
        # One call may make several nodes of a kind: it is one operation.
        operations[call, finding] = Operation(
            module=path or "",
            module_type=around if path is None else type(call.module).__name__,
            function=function,
            kind=finding.kind,
            rule=finding.rule,
            reason=finding.reason,
            remedy=remedy_for(function, name_of(node), path or "") if finding.reason else "",
        )
    in_order = sorted(operations, key=lambda key: key[0].number)
    return Coverage(model, recipe, tuple(operations[key] for key in in_order))


def _is_leaf(node: Node) -> bool:
    return getattr(node, "variable", None) is not None


class _Judge:
    """Visits the nodes of a graph in the order of the forward pass."""

    def __init__(self, traced: Traced, rulebook: Rulebook) -> None:
        self.traced = traced
        self.rules = rulebook
        self.graph = Graph(traced.roots, traced.hidden, traced.inputs)
        self._parts: dict[Node, Part] = {}
        self._in_model: set[Node] = set()

    def behind_model(self, node: Node) -> bool:
        """Whether a node descends from something that the model computes."""
        return node in self._in_model

    def visit(self, node: Node) -> Finding:
        """Judge a node whose operands have been judged."""
        operands = self.graph.operands[node]
        if own_function(node) == "_GatedProduct":  # it stands for the product, which is seen too
            operands = operands[2:3]
        on_way = [each for each in operands if each is not None]
        call = self._call(node)
        path = self.rules.path_of(call.module)
        if (path is not None and on_way) or any(each in self._in_model for each in on_way):
            self._in_model.add(node)
        rule = self.rules.opaque_rule(call.module)
        measured = is_linear_in_numbers(call.module)
        if measured:
            self._pass_on(node, on_way)
            finding = _LINEAR
        elif rule is not None:
            self._pass_on(node, on_way)
            finding = Finding("ruled", rule)
        else:
            finding = self._judged(node, operands, on_way, call)
        bypass = self._bypass(node, on_way, call)
        own = self.rules.part_of(call.module)
        if own is not None:
            self._parts[node] = Part(*own)
        return bypass or (None if measured else self._hidden_factor(node, on_way)) or finding

    # Operations -------------------------------------------------------------------------------

    def _judged(  # noqa: PLR0911 - one for each effect
        self, node: Node, operands: list[Node | None], on_way: list[Node], call: Call
    ) -> Finding:
        effect = effect_of(node)
        if effect == "rule":
            return self._own(node, on_way, call)
        if effect == "product":
            factors = factors_of(node, operands)
            if len(factors) > 1:
                return self._product(node, factors, call)
        elif effect == "quotient" and operands[-1] is not None and len(operands) > 1:
            return Finding("unruled", reason="it divides by something that depends on the input")
        elif effect == "softmax":
            return self._softmax(node, on_way[0], call)
        elif effect == "kernel":
            return self._kernel(operands, call)
        elif effect == "non-linear" or not _is_linear_copy(node, call):
            self._pass_on(node, on_way)
            return Finding("unruled", reason="it is not linear and has no rule")
        self._pass_on(node, on_way)
        return _LINEAR

    def _own(self, node: Node, on_way: list[Node], call: Call) -> Finding:
        """A backward slope of this package."""
        if own_function(node) != "_ConstantWeights":
            self._pass_on(node, on_way)
        rule = self.rules.rule_at(call.module)
        return Finding("ruled", rule) if rule else _LINEAR

    def _product(self, node: Node, factors: list[Node], call: Call) -> Finding:
        parts = [self._parts.get(each) for each in factors]
        first, second = parts[0], parts[-1]
        unruled = Finding(
            "unruled", reason="it multiplies two things that depend on the input, without a rule"
        )
        known = first or second
        if known is None or not self.rules.inside(call.module, known.site):
            return unruled
        # What follows is judged as if this were the declared product, so that it is named once.
        if isinstance(known.site, GatedProductSite):
            result = "product"
        else:
            result = "" if "weights" in {part.role for part in parts if part} else "scores"
        if result:
            self._parts[node] = Part(known.site, result)
        if first is None or second is None or first.site is not second.site:
            return unruled
        if len(factors) != 2 or (first.role, second.role) not in _DECLARED:
            return unruled
        return Finding("ruled", self.rules.rule_of(known.site))

    def _softmax(self, node: Node, operand: Node, call: Call) -> Finding:
        part = self._parts.get(operand)
        if part is not None and part.role == "scores" and self.rules.inside(call.module, part.site):
            self._parts[node] = Part(part.site, "weights")
            return Finding("ruled", self.rules.rule_of(part.site))
        return Finding(
            "unruled", reason="its scores are not the product of a declared query and key"
        )

    def _kernel(self, operands: list[Node | None], call: Call) -> Finding:
        wanted = zip(operands[:3], (_QUERIES, _KEYS, _VALUES), strict=False)
        sites = []
        for operand, roles in wanted:
            part = None if operand is None else self._parts.get(operand)
            if operand is not None and (part is None or part.role not in roles):
                return self._undeclared_kernel(operands)
            if part is not None:
                sites.append(part.site)
        same = sites and all(site is sites[0] for site in sites)
        if not same or not self.rules.inside(call.module, sites[0]) or any(operands[3:]):
            return self._undeclared_kernel(operands)
        return Finding("ruled", self.rules.rule_of(sites[0]))

    def _undeclared_kernel(self, operands: list[Node | None]) -> Finding:
        if operands[:2] == [None, None] and not any(operands[3:]):
            return _LINEAR  # in its values, the weights are constant
        return Finding(
            "unruled", reason="its queries, keys and values are not the declared projections"
        )

    # Parts ------------------------------------------------------------------------------------

    def _pass_on(self, node: Node, on_way: list[Node]) -> None:
        """A linear operation keeps what its operand is; a sum of different things is neither."""
        parts = {self._parts.get(each) for each in on_way}
        part = next((each for each in parts if each is not None), None)
        if part is not None:
            self._parts[node] = part if len(parts) == 1 else Part(part.site, "mixed")

    def _bypass(self, node: Node, on_way: list[Node], call: Call) -> Finding | None:
        """What a rule has scaled must end in the product that the rule is for."""
        gate = self.rules.consumer(call.module)
        if gate is not None:
            self._parts.pop(node, None)
            taken = [each for each in on_way if self.rules.consumer(self._module(each)) is not gate]
            if all(self._parts.get(each) == Part(gate, "product") for each in taken):
                return None
            return Finding("unruled", reason="it takes something else than the declared product")
        part = self._parts.get(node)
        if part is None or self.rules.inside(call.module, part.site):
            return None
        del self._parts[node]
        return Finding(
            "unruled",
            reason=f"it takes the {part.role} of {part.site.path!r} past the declared product",
        )

    def _module(self, node: Node) -> nn.Module | None:
        return self._call(node).module

    def _call(self, node: Node) -> Call:
        return self.traced.calls.get(node, _BEFORE)  # an input may have been made before

    def _hidden_factor(self, node: Node, on_way: list[Node]) -> Finding | None:
        """A value without a graph that depends on the inputs, and that no rule made constant."""
        origins = self.traced.hidden.get(node, set())
        if is_backward_hook(node):
            return None
        if is_own_function(node):
            if own_function(node) != "_ConstantWeights":
                return None
            origins = origins - set(on_way)  # the values have a gradient
        if not origins:
            return None
        if all(self._is_constant(origin) for origin in origins):
            return None
        return Finding(
            "unruled",
            reason="it depends on the input through something without a gradient "
            "(a comparison, an index, a detached tensor)",
        )

    def _is_constant(self, origin: Node) -> bool:
        """Whether a rule holds a tensor constant: query and key in a fused projection."""
        part = self._parts.get(origin)
        return part is not None and self.rules.is_constant(part.site)


def _is_linear_copy(node: Node, call: Call) -> bool:
    """Whether writing into a part of a tensor writes a linear thing."""
    if name_of(node) != "CopySlices":
        return True
    return not call.function or call.function.rpartition(".")[2] in _IN_PLACE
