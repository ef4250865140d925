"""A recipe applied to whatever a forward function computes, through its autograd graph.

Nothing is declared and nothing attached: the forward pass is the model's own, and afterwards the
rules are put on the nodes of its graph. The first pass of each form of call is watched, for the
names in the coverage table and for facts that a graph does not show; later ones are plain.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from captum_lrpx.coverage import FORWARD_FUNCTION, Coverage, Operation
from captum_lrpx.fast.checkpointing import Checkpoints, WatchOfBlocks
from captum_lrpx.fast.constant import without_graph
from captum_lrpx.fast.direct import direct
from captum_lrpx.fast.narrow import narrow
from captum_lrpx.fast.saved import Saved, economy_of, is_worth_it
from captum_lrpx.forms import (
    Form,
    NewWayError,
    Structure,
    forms_of,
    linear_in_numbers,
    outside_of,
    overwritten,
    written_in_part,
)
from captum_lrpx.graph_rules import Plan, Seen, attach, plan_of
from captum_lrpx.hints import has_hints, natures_of
from captum_lrpx.linear_rules import is_linear_in_numbers, linear_attachments
from captum_lrpx.module_patches import Attachment, Patched
from captum_lrpx.onlookers import fingerprint
from captum_lrpx.parallel import require_no_stages
from captum_lrpx.rule_words import reason_and_remedy, rule_in_words
from captum_lrpx.rules.node_rules import NEED_INPUT, Unasked, Zeros
from captum_lrpx.structure import blocks_of, modules_of
from captum_lrpx.trace.graph import Graph, node_of
from captum_lrpx.trace.roles import roles_of
from captum_lrpx.trace.watch import Call, Watch, results_of
from captum_lrpx.training import (
    checkpointed,
    warn_if_dropping,
    warn_if_training,
    without_checkpoints,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn
    from torch.autograd.graph import Node
    from torch.utils.hooks import RemovableHandle

    from captum_lrpx.coverage import Kind
    from captum_lrpx.recipes import Recipe
    from captum_lrpx.trace.graph import Edge
    from captum_lrpx.trace.natures import Nature

_FUNCTIONS_WITH_INPUT = frozenset(name.lower() for name in NEED_INPUT)


_thread = threading.local()


def passes_of_this_thread() -> set[TracedPass]:
    """Attributions whose model may be running now, each with its own rules."""
    found: set[TracedPass] = _thread.__dict__.setdefault("passes", set())
    return found


class TracedPass:
    """One forward pass and the rules on its graph.

    Attributes:
        handles: Handles of the hooks on nodes, removed when the pass is over.
        done: Nodes that have their rules.

    Args:
        model: The module whose parameters are frozen, and inside of which rules hold.
        recipe: The rules.
        form: Key shared with calls of the same operations; None if it is unknown.
        watched: Whether to watch it although the form is known, for the names of functions.
        values: Whether to keep the result of each function, for a ledger.
        fast: Whether to skip multiplications of zeros.
        whole: Whether the graph must have the operations that the rules hold constant, too.
        positions: Number of input positions. Where there are many, tensors that no rule reads are
            not stored either.
        checkpointing: Whether blocks are recomputed in the backward pass.
        freeze: Whether the parameters of the model need no gradient.
        before: An earlier pass, whose graph may be part of this one's.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        form: Hashable | None,
        *,
        watched: bool = False,
        values: bool = False,
        fast: bool = False,
        whole: bool = True,
        positions: int = 1,
        checkpointing: bool = False,
        freeze: bool = True,
        before: TracedPass | None = None,
    ) -> None:
        require_no_stages(model)
        self.model = model
        self._modules = modules_of(model)
        self._freeze = freeze
        self._fast = fast and not values and form is not None  # otherwise nothing is learned
        self._watched = watched or values
        self._values = values
        self.recipe = recipe
        known = {} if form is None else forms_of(model)
        self.form = known.setdefault((form, recipe, fingerprint(model, self._modules)), Form())
        # Overrides name modules, which only a watched pass knows.
        self.form.watched |= bool(recipe.overrides) or (not fast and self._speaks_of_modules())
        self._checkpointed = checkpointed(self._modules)
        blocks = (checkpointing or (self._checkpointed and blocks_of(model))) and not values
        lean = checkpointing or is_worth_it(self.form.economy, positions)
        self._economical = self._fast and lean and self.form.is_steady
        self._whole = whole or blocks or self._watched or not (self._fast and self.form.is_steady)
        self._longer = self.form
        self._constant: Sequence[weakref.ref[nn.Module]] = ()
        if (shorter := self.form.shorter) is not None and not (self._whole or lean):
            self.form, self._constant = shorter
        self._positions = positions
        self._zeros, self._blocks = Zeros(), None
        economy = self.form.economy if self._economical else None
        self._saved = Saved(economy, self._zeros) if self._economical else None
        if blocks:
            self._saved = self._blocks = Checkpoints(economy, self._zeros, _FUNCTIONS_WITH_INPUT)
        self.graph: Graph | None = None
        self.structure: Structure | None = None
        self.watch: Watch | None = None
        self._outputs: list[Node] = []
        self._inputs: Mapping[Node, Tensor] | None = None
        self._before = before
        self.done: set[Node] = set() if before is None else set(before.done)
        self.handles: list[RemovableHandle | Unasked] = []

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Prepare the model for the pass, in a ``with`` block, until it is explained."""
        warn_if_training(self._modules)
        attachments = linear_attachments(self.model, self._modules, self.recipe)
        if self._blocks is not None:
            attachments += [Attachment(*each) for each in self._blocks.patches(self.model)]
        with ExitStack() as stack:
            stack.callback(self.release)
            running = passes_of_this_thread()
            stack.callback(running.discard, self)
            running.add(self)
            stack.enter_context(Patched(self._modules, attachments, freeze=self._freeze))
            stack.enter_context(without_checkpoints(self._checkpointed))
            yield

    @contextmanager
    def watching(self, running: nn.Module | None = None) -> Iterator[None]:
        """Record facts about the forward pass, which runs inside of a ``with`` block.

        Args:
            running: The module that has been called already.
        """
        with ExitStack() as stack:
            stack.enter_context(without_graph(_living(self._constant)))
            if self.form.seen and not self.form.watched and not self._watched:
                stack.enter_context(results_of(_living(self.form.entries), self._outputs))
                if self.form.needs_inputs:
                    self._inputs = stack.enter_context(self._watch((), names=False)).inputs
            else:
                self.watch = stack.enter_context(self._watch(self._modules))
                self._inputs = self.watch.inputs
                if running is not None:
                    self.watch.enter(running)
            if self._saved is not None:
                stack.enter_context(self._saved)
            yield

    def _watch(self, modules: Iterable[nn.Module], *, names: bool = True) -> Watch:
        if self._blocks is not None:
            return WatchOfBlocks(self._blocks, modules, _FUNCTIONS_WITH_INPUT, names=names)
        return Watch(modules, _FUNCTIONS_WITH_INPUT, values=self._values, names=names)

    def release(self) -> None:
        """Remove the hooks, which keep their nodes alive as these keep them."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    # Rules ------------------------------------------------------------------------------------

    def attach(self, *outputs: Tensor, at_once: int = 1) -> None:
        """Attach the rules to everything that some outputs depend on.

        Args:
            *outputs: Tensors, and all that is to be explained upstream of them.
            at_once: Number of gradients that one backward pass will compute.

        Raises:
            NewWayError: If this pass needs more tensors, or more of the graph, than were kept.
            ValueError: If parts of the graph are made in the backward pass only.
        """
        outputs = tuple(each for each in outputs if each.requires_grad)
        if not outputs:
            return
        graph, plan = self.read(outputs)
        assert self.structure is not None  # noqa: S101 - the graph has been read
        if self._saved is not None and self._economical and self.form.economy is None:
            self.form.economy = economy_of(graph, plan, self._saved, self._positions)
        if self._blocks is not None:
            self._blocks.allow(self.form.economy if self._economical else None, graph.key)
        if self._fast and at_once == 1:
            self.handles += narrow(graph, self.structure.narrowing(graph, plan, self.recipe))
            self.handles += direct(graph, plan)
        frozen = self._saved.frozen() if self._saved is not None else ()
        self.handles += attach(graph, plan, self.inputs, self.done, self._zeros, frozen)

    def read(self, outputs: Sequence[Tensor]) -> tuple[Graph, Plan]:
        """Graph of everything that some outputs depend on, and the rules for it.

        Args:
            outputs: Tensors with a graph.

        Raises:
            NewWayError: If this pass needs more tensors, or more of the graph, than were kept.
            ValueError: If parts of the graph are made in the backward pass only.
        """
        parameters = () if self._freeze else map(node_of, self.model.parameters())
        graph = self.graph = Graph(outputs, filter(None, parameters))
        if self._saved is not None and not self._saved.fits(graph.key):
            self.form.surprise()
            raise NewWayError
        structure = self._structure(graph)
        warn_if_dropping(self._modules, structure.dropping)
        plan = structure.plans.get(self.recipe)
        if plan is None:
            plan = plan_of(graph, structure.roles, self.recipe, self._seen(graph, structure))
            structure.plans[self.recipe] = plan
            self.form.needs_inputs |= plan.needs_inputs()
            # Only a watched pass knows of writes into a part of a tensor.
            self.form.watched |= any(graph.names[number] == "CopySlices" for number in plan.alive)
        if self.watch is not None and not (self._whole or self.form.watched or plan.problems):
            calls = self.watch.calls
            self.form.learn_shorter(graph, outputs, self.recipe, calls, self._modules)
        return graph, plan

    @property
    def inputs(self) -> Mapping[Node, Tensor]:
        """Inputs of functions that do not save them."""
        own = self._inputs or {}
        return own if self._before is None else {**self._before.inputs, **own}

    def _seen(self, graph: Graph, structure: Structure) -> Seen:
        """Knowledge that the plan needs beyond the graph."""
        return Seen(
            explained=structure.explained,
            detached=structure.detached - structure.linear,
            written=written_in_part(graph, structure),
            overwritten=structure.overwritten - structure.linear,
            inputs=None if self._inputs is None else self.inputs,
            paths={number: path for number, (path, _, _) in structure.places.items()},
        )

    def _structure(self, graph: Graph) -> Structure:
        key = graph.key
        structure = self.form.structures.get(key)
        if structure is None and self._constant:
            self._longer.miss()
            raise NewWayError
        unwatched = self._fast and self.watch is None
        if structure is None and unwatched and self._speaks_of_modules():
            self.form.seen = False
            raise NewWayError
        unnamed = structure is not None and self.watch is not None and not structure.places
        if structure is None or unnamed or self._writes_differ(graph, structure):
            structure = self.form.structures[key] = self._new(graph)
        graph.is_like(structure.form)
        # No graph shows whether the next pass will do so too.
        self.form.watched |= bool(structure.overwritten)
        self.form.seen = bool(structure.places)  # if not watched, the next pass will be
        self.structure = structure
        return structure

    def _writes_differ(self, graph: Graph, structure: Structure) -> bool:
        """Whether a watched pass writes something else behind its graph than is known."""
        behind = () if self.watch is None else self.watch.behind.nodes
        if self.watch is None or not (behind or structure.overwritten):
            return False
        graph.is_like(structure.form)
        return overwritten(graph, behind) != structure.overwritten

    def _speaks_of_modules(self) -> bool:
        """Whether hints or measured layers depend on modules, which only a watched pass knows."""
        return has_hints(self.model) or any(map(is_linear_in_numbers, self._modules))

    def _new(self, graph: Graph) -> Structure:
        watch, outputs = self.watch, self._outputs
        structure = Structure(graph.form, [])
        hints: dict[Edge, Nature] = {}
        if watch is not None:
            outputs = watch.outputs
            self.form.entries = [weakref.ref(module) for module in watch.entered]
            self._name(graph, structure)
            hints = natures_of(graph, structure.places, dict(self.model.named_modules()))
        structure.roles = roles_of(graph, hints, structure.linear)
        structure.explained = outside_of(graph, outputs)
        return structure

    def _name(self, graph: Graph, structure: Structure) -> None:
        """Record which module and function made which node."""
        watch = self.watch
        assert watch is not None  # noqa: S101 - for the type checker
        paths = {module: path for path, module in self.model.named_modules()}
        before = Call(-1, "", None)
        for number, node in enumerate(graph.nodes):
            call = watch.calls.get(node, before)
            inside = call.module is not None and call.module in paths
            path = paths.get(call.module, "") if inside else ""
            kind = type(call.module).__name__ if inside else ""
            structure.places[number] = (path, kind, call.function)
        structure.detached = frozenset(
            number for number, node in enumerate(graph.nodes) if node in watch.detached
        )
        structure.overwritten = overwritten(graph, watch.behind.nodes)
        structure.dropping = tuple(sorted(paths.get(each, "") for each in watch.dropping))
        measured = {path for module, path in paths.items() if is_linear_in_numbers(module)}
        structure.linear = linear_in_numbers(graph, structure, measured)

    # Coverage ---------------------------------------------------------------------------------

    def require_rules(self, sources: Sequence[Tensor], *, strict: bool) -> None:
        """Refuse operations between sources and output without a rule, or warn of them.

        Args:
            sources: Tensors of the graph; all leaves if there are none.
            strict: Whether to refuse them.

        Raises:
            ValueError: If there is one and ``strict`` is set.
        """
        graph, structure = self.graph, self.structure
        if graph is None or structure is None or not structure.plans[self.recipe].problems:
            return
        earlier = set() if self._before is None else self._before.done
        new = {number for number, node in enumerate(graph.nodes) if node not in earlier}
        self.coverage(sources, new).require(strict=strict)

    def coverage(
        self, sources: Sequence[Tensor] = (), within: Collection[int] | None = None
    ) -> Coverage:
        """Operations between sources and the output, with the rules attached to them.

        Args:
            sources: Tensors of the graph; all leaves if there are none.
            within: Indices of the nodes to list; default: all.
        """
        graph, structure = self.graph, self.structure
        assert graph is not None and structure is not None  # noqa: S101, PT018
        plan = structure.plans[self.recipe]
        wanted = graph.leading_to(sources).intersection(plan.alive)
        problems = {number: reason_and_remedy(why) for number, why in plan.problems.items()}
        operations = []
        for number in sorted(wanted):
            if graph.names[number] == "AccumulateGrad" or not (within is None or number in within):
                continue
            operations.append(self._operation(number, *problems.get(number, ("", ""))))
        return Coverage(type(self.model).__name__, self.recipe.name, tuple(operations))

    def _operation(self, number: int, reason: str, remedy: str) -> Operation:
        graph, structure = self.graph, self.structure
        assert graph is not None and structure is not None  # noqa: S101, PT018
        path, kind, function = structure.places.get(number, ("", type(self.model).__name__, ""))
        role = structure.roles[number]
        verdict: Kind
        if number in structure.explained:
            verdict = "explained function"
        elif reason:
            verdict = "unruled"
        else:
            gated = graph.names[number] == "Glu"
            verdict = "linear" if role.role == "linear" and not gated else "ruled"
        ruled = verdict == "ruled"
        rule = rule_in_words(graph, structure.roles, number, self.recipe, path) if ruled else ""
        return Operation(
            module=path,
            module_type=kind or FORWARD_FUNCTION,
            function=function or graph.names[number],
            kind=verdict,
            rule=rule,
            reason=reason,
            remedy=remedy,
        )


def _living(modules: Iterable[weakref.ref[nn.Module]]) -> list[nn.Module]:
    return [module for each in modules if (module := each()) is not None]
