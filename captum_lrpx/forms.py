"""Forms: keys of calls that run the same operations, and knowledge gathered from earlier ones."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.fast.constant import constant_modules, graph_without
from captum_lrpx.fast.narrow import narrowing_of
from captum_lrpx.rules.node_rules import is_of_python
from captum_lrpx.trace.operations import is_linear_write, is_product_write, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable

    from torch.autograd.graph import Node

    from captum_lrpx.fast.saved import Economy
    from captum_lrpx.graph_rules import Plan
    from captum_lrpx.recipes import Recipe
    from captum_lrpx.trace.graph import Form as GraphForm
    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.trace.roles import Roles
    from captum_lrpx.trace.watch import Call


@dataclass
class Structure:
    """Knowledge about graphs with the same operations in the same order.

    Attributes:
        form: Their common part without nodes.
        roles: The role of each node.
        explained: Indices of the nodes of the explained function, outside of the model.
        plans: The plan of each recipe.
        places: For each node path and class of its module, and its function, if a pass was watched.
        dropping: Paths of the modules in which a function drops values at random.
        detached: Indices of nodes that use a detached number.
        overwritten: Indices of nodes whose results are overwritten behind the graph.
        linear: Indices of the nodes inside of layers that were measured to be linear, where these
            hide a part of what they compute.
        notes: Results that other parts of the package keep for such graphs.
        narrowings: For each recipe the linear nodes whose gradients are mostly zero.
    """

    form: GraphForm
    roles: Roles
    explained: frozenset[int] = frozenset()
    plans: dict[Recipe, Plan] = field(default_factory=dict)
    places: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    dropping: tuple[str, ...] = ()
    detached: frozenset[int] = frozenset()
    overwritten: frozenset[int] = frozenset()
    linear: frozenset[int] = frozenset()
    notes: dict[str, Any] = field(default_factory=dict)
    narrowings: dict[Recipe, frozenset[int]] = field(default_factory=dict)

    def narrowing(self, graph: Graph, plan: Plan, recipe: Recipe) -> frozenset[int]:
        """Linear nodes whose gradients are mostly zero under a recipe."""
        found = self.narrowings.get(recipe)
        if found is None:
            found = self.narrowings[recipe] = narrowing_of(graph, self.roles, plan)
        return found

    def of_part(self, graph: Graph, part: Graph, recipe: Recipe) -> Structure:
        """Knowledge about a graph that lacks nodes without relevance.

        Args:
            graph: A graph of this structure.
            part: The graph that lacks them.
            recipe: The rules, with a plan.
        """
        old = [graph.index[node] for node in part.nodes]
        new = {number: place for place, number in enumerate(old)}

        def kept(numbers: Iterable[int]) -> frozenset[int]:
            return frozenset(new[number] for number in numbers if number in new)

        return replace(
            self,
            form=part.form,
            roles=[self.roles[number] for number in old],
            explained=kept(self.explained),
            plans={recipe: self.plans[recipe].renumbered(new, part)},
            places={new[number]: self.places[number] for number in old if number in self.places},
            detached=kept(self.detached),
            overwritten=kept(self.overwritten),
            linear=kept(self.linear),
            notes={},
            narrowings={},
        )


def written_in_part(graph: Graph, structure: Structure) -> set[int]:
    """Indices of nodes that hide an in-place function on a view, which may not be linear."""
    found = set()
    for number, name in enumerate(graph.names):
        if name == "CopySlices" and number not in structure.linear:
            function = _function_of(structure, number)
            if not is_linear_write(function, factors=any(graph.operands[number][1:])):
                found.add(number)
    return found


def _function_of(structure: Structure, number: int) -> str:
    """Name in Python of the function that made a node, without its module."""
    return structure.places.get(number, ("", "", ""))[2].rpartition(".")[2]


def outside_of(graph: Graph, outputs: Iterable[Node]) -> frozenset[int]:
    """Indices of the nodes that no output of the model depends on."""
    inside = [False] * len(graph.nodes)
    for node in outputs:
        if node in graph.index:
            inside[graph.index[node]] = True
    if not any(inside):
        return frozenset()
    for number in range(len(graph.nodes) - 1, -1, -1):
        if inside[number]:
            for edge in graph.operands[number]:
                if edge is not None:
                    inside[edge.node] = True
    return frozenset(number for number, each in enumerate(inside) if not each)


def overwritten(graph: Graph, nodes: Iterable[Node]) -> frozenset[int]:
    """Indices of nodes whose results are overwritten behind the graph.

    A ``torch.autograd.Function`` may write into its operand: its own node says so.
    """
    found = {graph.index[node] for node in nodes if node in graph.index}
    if found:
        for node, edges in zip(graph.nodes, graph.operands, strict=True):
            if is_of_python(node):
                found.difference_update(edge.node for edge in edges if edge is not None)
    return frozenset(found)


def linear_in_numbers(
    graph: Graph, structure: Structure, measured: Collection[str]
) -> frozenset[int]:
    """Indices of the nodes in layers that are taken as linear because they were measured to be.

    Numbers decide only where a layer hides a part of what it computes: for small inputs, many
    functions look linear.

    Args:
        graph: The graph.
        structure: The rest of what is known of it.
        measured: Paths of the layers that were measured to be linear.
    """
    inside = {number: path for number, (path, _, _) in structure.places.items() if path in measured}
    hiding = {
        path
        for number, path in inside.items()
        if number in structure.detached
        or number in structure.overwritten
        or is_of_python(graph.nodes[number])
        or kind_of(graph.names[number], graph.detail(number)) == "unknown"
        or (
            graph.names[number] == "CopySlices"
            and is_product_write(_function_of(structure, number))
        )
    }
    return frozenset(number for number, path in inside.items() if path in hiding)


@dataclass
class Form:
    """Knowledge about one form of call.

    Attributes:
        structures: Structures by key of the graph.
        entries: Modules that are called from outside of all others.
        watched: Whether each pass must be watched, because hints or overrides name modules.
        needs_inputs: Whether the inputs of some functions must be kept.
        seen: Whether a pass has been watched.
        notes: Results that other parts of the package keep for such calls.
        economy: Tensors that need not be kept in such passes, once known.
        surprises: How many passes did not match the economy.
        shorter: The form of such calls without what the rules hold constant, once known.
        misses: How many passes did not match the shorter form.
    """

    structures: dict[Hashable, Structure] = field(default_factory=dict)
    entries: list[weakref.ref[nn.Module]] = field(default_factory=list)
    watched: bool = False
    needs_inputs: bool = False
    seen: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    economy: Economy | None = None
    surprises: int = 0
    shorter: _Shorter | None = None
    misses: int = 0

    @property
    def is_steady(self) -> bool:
        """Whether such passes match earlier ones: the operations do not depend on the values."""
        return self.surprises <= _MOST_SURPRISES

    def surprise(self) -> None:
        """Forget the economy, which did not match a pass."""
        self.economy = None
        self.surprises += 1

    def miss(self) -> None:
        """Forget the shorter form, which did not match a pass."""
        self.shorter = None
        self.misses += 1

    def learn_shorter(
        self,
        graph: Graph,
        outputs: Iterable[Tensor],
        recipe: Recipe,
        calls: Mapping[Node, Call],
        modules: Iterable[nn.Module],
    ) -> None:
        """Find out which modules need no graph.

        Args:
            graph: A whole graph of a watched pass, with a plan.
            outputs: Its tensors.
            recipe: The rules.
            calls: The call that made each node.
            modules: All modules of the model.
        """
        structure = self.structures[graph.key]
        plan = structure.plans[recipe]
        constant = constant_modules(graph, plan, calls, modules)
        shorter = graph_without(constant, graph, outputs, plan, calls) if constant else None
        if shorter is not None and self.misses <= _MOST_SURPRISES:
            form = Form({shorter.key: structure.of_part(graph, shorter, recipe)}, seen=True)
            form.needs_inputs = self.needs_inputs
            self.shorter = _Shorter(form, tuple(map(weakref.ref, constant)))


class _Shorter(NamedTuple):
    """A form of call in which the results of some modules are detached.

    Attributes:
        form: Knowledge about such calls.
        modules: The modules.
    """

    form: Form
    modules: tuple[weakref.ref[nn.Module], ...]


_MOST_SURPRISES: Final = 3


_MOST_FORMS: Final = 256
"""Changing hooks make ever new forms of the same calls."""


class NewWayError(Exception):
    """A pass took another path than expected, and needs more than was kept."""


_forms: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Form]] = weakref.WeakKeyDictionary()


def forms_of(model: nn.Module) -> dict[Hashable, Form]:
    """Known forms of a model; the oldest are dropped if there are too many."""
    known = _forms.setdefault(model, {})
    while len(known) > _MOST_FORMS:
        known.pop(next(iter(known)), None)
    return known


def argument_kind(argument: object) -> Hashable:
    """Properties of an argument that may decide about the path through a forward function."""
    if isinstance(argument, Tensor):
        return "tensor", argument.is_floating_point()
    if argument is None or isinstance(argument, (bool, str)):
        return argument
    if isinstance(argument, Mapping):
        return tuple((str(key), argument_kind(value)) for key, value in argument.items())
    if isinstance(argument, (tuple, list)):
        return tuple(map(argument_kind, argument))
    return type(argument).__name__


def form_of(
    model: nn.Module,
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    arguments: object | None,
    layers: Iterable[nn.Module],
    targets: Iterable[object] = (),
) -> Hashable | None:
    """Key of a call, equal for calls that run the same operations.

    Args:
        model: The model that the forward function runs.
        forward_func: The forward function.
        inputs: Its inputs.
        arguments: Its further arguments.
        layers: Layers whose tensors are captured.
        targets: Targets within the output.

    Returns:
        A key; None for a forward function that cannot be recognized again.
    """
    forward = _key_of(forward_func, model)
    if forward is None:
        return None
    args = _captum.format_additional_forward_args(arguments)
    kinds = tuple((tensor.dtype, tensor.ndim) for tensor in inputs)
    chosen = tuple((type(target), type(target) is tuple and len(target)) for target in targets)
    return forward, kinds, argument_kind(args), tuple(map(weakref.ref, layers)), chosen


def _key_of(  # noqa: PLR0911 - one for each kind
    value: object, model: nn.Module, depth: int = 0
) -> Hashable:
    """Key of a value in a call, for a dictionary that must not keep the value alive.

    Forward modules of this package are identified by their class and their arguments; anything
    else by itself.

    Returns:
        The key; None for a value that cannot be recognized again.
    """
    if value is model:
        return "model"
    if value is None or isinstance(value, (str, bool, int, float)):
        return (type(value), value)
    if isinstance(value, nn.Module) and type(value).__module__.startswith("captum_lrpx."):
        # Their arguments besides modules decide what they compute: a quantity, a function.
        own = (each for each in vars(value).values() if isinstance(each, str) or callable(each))
        inner = [_key_of(each, model, depth + 1) for each in (*value.children(), *own)]
        return None if None in inner else (type(value), *inner)
    if isinstance(value, MethodType):
        owner = _key_of(value.__self__, model, depth + 1)
        return None if owner is None else (owner, value.__func__)
    if isinstance(value, FunctionType) and depth < _DEEPEST:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inside = [_key_of(each, model, depth + 1) for each in (*cells, *(value.__defaults__ or ()))]
        return None if None in inside else (value.__code__, *inside)
    try:
        found = weakref.ref(value)
        hash(found)  # the value's own hash: arrays and outputs of a processor have none
    except TypeError:
        return None
    return found


_DEEPEST = 3
"""Depth of nested functions up to which closures are searched."""
