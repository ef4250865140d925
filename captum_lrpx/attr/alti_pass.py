"""One forward pass read as residual streams, branches and directions, for ALTI-Logit."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrpx import _captum
from captum_lrpx.alti.attention_parts import Reader
from captum_lrpx.alti.blocks import Blocks
from captum_lrpx.alti.decomposition import ALTILogitDecomposition
from captum_lrpx.alti.directions import directions_of
from captum_lrpx.alti.formulas import rollout_by_layer
from captum_lrpx.alti.layout import LayoutReader
from captum_lrpx.alti.probe import is_saved, probe
from captum_lrpx.alti.pull import Pull
from captum_lrpx.alti.recording import Recording
from captum_lrpx.attr.engine import ForwardPass
from captum_lrpx.attr.finite import Finite
from captum_lrpx.fast.saved import is_worth_it
from captum_lrpx.fast.unrecorded import places_of
from captum_lrpx.models import base_of
from captum_lrpx.onlookers import hooked, looks_only
from captum_lrpx.parallel import Weights, several_processes
from captum_lrpx.trace.graph import node_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from captum_lrpx._captum import TargetType
    from captum_lrpx.alti.layout import Layout
    from captum_lrpx.attr.alti_logit import ALTILogit
    from captum_lrpx.coverage import Coverage
    from captum_lrpx.forms import Structure
    from captum_lrpx.graph_rules import Plan
    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.traced import TracedPass


@contextmanager
def explained_pass(
    attribution: ALTILogit,
    inputs: tuple[Tensor, ...],
    targets: Sequence[TargetType],
    arguments: object | None,
    *,
    terms: bool = False,
) -> Iterator[Explained]:
    """Run a forward function once and compute the direction of each target.

    Args:
        attribution: Forward function, model and options.
        inputs: Token ids ``[B, T]`` or embeddings ``[B, T, D]``, one for each stream.
        targets: Targets to explain.
        arguments: Further arguments of the forward function, after the inputs.
        terms: Whether the terms of MLPs and biases are wanted.

    Yields:
        The pass.

    Raises:
        ValueError: If the method does not cover the model, or it does not run exactly once.
        RuntimeError: If the forward function runs it without gradients.
    """
    recordings: list[Recording] = []
    model = attribution.model
    weights = Weights(model)
    positions = sum(each.shape[:2].numel() for each in inputs)
    tokens_only = not terms and attribution.value_bias == "tokens"
    # Other processes would wait for one that runs the model again.
    lean = tokens_only and not is_worth_it(None, positions) and not several_processes()

    @contextmanager
    def beside(rules: TracedPass) -> Iterator[None]:
        notes = rules.form.notes
        outside = terms and not notes.get("linear", False)
        recording = Recording(*notes.get("widths", (None,)), outside=outside)
        recordings.append(recording)
        nothing = lean and notes.get("saved", False)
        with _runs_once(model, recording), nullcontext() if nothing else recording:
            yield

    with ForwardPass(attribution, inputs, arguments, targets=targets, beside=beside) as passed:
        finite = Finite(model, attribution.forward_func, inputs, arguments)

        def read() -> list[Tensor]:
            values = [_captum.select_targets(passed.output, target) for target in targets]
            for each in values:
                _check(finite.require(each), len(inputs[0]))
            passed.rules.read(values)
            return values

        values = read()
        structure = passed.rules.structure
        if not recordings[-1].used and structure is not None and "saved" not in structure.notes:
            passed.rules.form.notes["saved"] = False
            passed.run()
            values = read()
        # The model has run in the precision that autocast chose; the decomposition need not.
        with torch.autocast(inputs[0].device.type, enabled=False), weights.released():
            options = {"terms": terms, "lean": lean}
            yield Explained(attribution, passed, recordings[-1], values, inputs, weights, **options)


class _Places:
    """Where the nodes of a graph are in a model.

    Args:
        model: The model.
        places: For each node path and class of its module, and its function.
    """

    def __init__(self, model: nn.Module, places: Mapping[int, tuple[str, str, str]]) -> None:
        self._model, self._places = model, places

    def path(self, number: int) -> str:
        """Path of the module of a node."""
        return self._places.get(number, ("", "", ""))[0]

    def where(self, number: int) -> str:
        """The place of a node in words."""
        path, kind, function = self._places.get(number, ("", "", ""))
        kind = kind or type(self._model).__name__
        inside = f" ({function.rpartition('.')[2]})" if function else ""
        return f"{kind} {path!r}{inside}" if path else f"{kind}{inside}"


class Explained:
    """A forward pass whose graph has been read.

    Nothing that it holds refers to it, so that its tensors are freed as soon as it is let go.

    Attributes:
        directions: One for each explained value.
        layout: The parts of the graph.
        tokens: Positions of each input.
    """

    def __init__(
        self,
        attribution: ALTILogit,
        passed: ForwardPass,
        recording: Recording,
        values: list[Tensor],
        inputs: tuple[Tensor, ...],
        weights: Weights,
        *,
        terms: bool,
        lean: bool,
    ) -> None:
        batch = len(inputs[0])
        self.attribution = attribution
        self.tokens = [each.shape[1] for each in inputs]
        self._rules = rules = passed.rules
        graph, structure = rules.graph, rules.structure
        assert graph is not None and structure is not None  # noqa: S101, PT018 - it has been read
        plan = structure.plans[attribution.recipe]
        places = self._places = _Places(attribution.model, structure.places)
        self._explained = structure.explained
        for source in passed.sources:
            recording.know(source)
        self.layout = self._layout(graph, structure, plan, passed.sources)
        if plan.problems:
            self.coverage.require(strict=attribution.strict)
        self.reader = Reader(
            graph,
            Pull(graph, plan, rules.inputs, lambda number: weights.need(places.path(number))),
            recording,
            places.where,
            places.path,
            dropout=attribution.model.training,
            orders=structure.notes.setdefault("orders", {}),
        )
        notes = rules.form.notes
        self._probe(notes, structure, batch)
        if lean and not recording.frees:
            self.reader.saved = structure.notes.get("saved")
        function = [each for each in self.layout.order if each in self._explained]
        notes["linear"] = all(structure.roles[each].role == "linear" for each in function)
        outputs = self._outputs(recording, function) if terms and not notes["linear"] else {}
        place = self.reader, self.layout
        self.directions = [
            directions_of(*place, each, self.tokens, self._name, outputs, terms=terms)
            for each in values
        ]

    def _layout(
        self, graph: Graph, structure: Structure, plan: Plan, sources: Sequence[Tensor]
    ) -> Layout:
        if "layout" not in structure.notes:
            nodes = (node_of(source) for source in sources)
            starts = [None if node is None else graph.index.get(node) for node in nodes]
            reader = LayoutReader(graph, structure.roles, plan, self._places.where)
            structure.notes["layout"] = reader.read(starts)
        known: Layout = structure.notes["layout"]
        return known

    @cached_property
    def coverage(self) -> Coverage:
        """The operations of streams, heads and the linear ends of attentions."""
        return self._rules.coverage((), self.layout.order)

    def _probe(self, notes: dict[str, Any], structure: Structure, batch: int) -> None:
        """Check the parts of a new form by gradients, and what its nodes have saved."""
        if "widths" in notes:
            return
        probe(self.reader, self.layout, batch, self.tokens)
        if min(self.tokens) > 1:  # one position cannot be mixed with others
            notes["widths"] = self._widths(batch)
            places = places_of(self.reader.graph)
            notes["saved"] = is_saved(self.reader, self.layout, places)
            if notes["saved"]:
                structure.notes["saved"] = places

    def _outputs(self, recording: Recording, function: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of the model used by the explained function, by node; empty if not all known."""
        graph = self.reader.graph
        found: dict[int, Tensor] = {}
        for number in function:
            for edge in graph.operands[number]:
                if edge is None or edge.node in self._explained:
                    continue
                value = recording.given.get((graph.nodes[edge.node], edge.output))
                if value is None or edge.output:
                    return {}
                found[edge.node] = value
        return found

    def blocks(self, **options: bool) -> Blocks:
        """The attention blocks, computed as they are iterated over.

        Args:
            **options: Options of :class:`~captum_lrpx.alti.blocks.Blocks`.
        """
        return Blocks(
            self.reader,
            self.layout,
            self.directions,
            self.tokens,
            memory_budget=self.attribution.memory_budget,
            value_bias=self.attribution.value_bias == "tokens",
            **options,
        )

    def decompositions(self, *, return_alti: bool) -> tuple[ALTILogitDecomposition, ...]:
        """Decompositions of all explained values.

        Args:
            return_alti: Whether they have the ALTI matrices.
        """
        blocks = self.blocks(keep_alti=return_alti, per_head=True)
        carried = rollout_by_layer(blocks)  # [B, L, K H, T]
        shape = (*carried.shape[:2], len(self.directions), -1, carried.shape[-1])
        updates, heads = torch.stack(blocks.updates[::-1], 1).view(shape), carried.view(shape)
        path, layout = self._places.path, self.layout
        found = []
        for index, directions in enumerate(self.directions):
            parts = ALTILogitDecomposition(
                value=directions.value,
                coverage=self.coverage,
                updates=updates[:, :, index],
                heads=heads[:, :, index],
                start=directions.start,
                mlps=directions.mlps,
                biases={**directions.biases, **blocks.value_biases[index]},
                remainder=torch.zeros_like(directions.value),
                output=directions.output,
                alti=torch.stack(blocks.alti[::-1], 1) if return_alti else None,
                sinks=torch.stack(blocks.sinks[::-1], 1) if return_alti else None,
                attention_paths=tuple(path(each.mixing) for each in layout.attentions),
                mlp_paths=tuple(
                    path(each.operand.node) for each in layout.positional if not each.constant
                ),
            )
            found.append(replace(parts, remainder=parts.value - parts.total()))
        return tuple(found)

    # Names ------------------------------------------------------------------------------------

    @cached_property
    def _parameters(self) -> dict[int, str]:
        return {
            each.data_ptr(): name
            for name, each in self.attribution.model.named_parameters(remove_duplicate=False)
        }

    def _name(self, number: int, constant: Any) -> str | None:
        """Name of the constant added at a node; None for an unknown one outside of the model."""
        if number in self._explained:
            address = constant.data_ptr() if isinstance(constant, Tensor) else None
            picked = self.reader.recording.picked.get(address or 0)
            return None if picked is None else self._parameters.get(picked[1].data_ptr())
        path = self._places.path(number)
        model: nn.Module = self.attribution.model
        if path and getattr(model.get_submodule(path), "bias", None) is not None:
            return f"{path}.bias"
        if isinstance(constant, Tensor) and constant.data_ptr() in self._parameters:
            return self._parameters[constant.data_ptr()]
        return f"{path}.constant" if path else "constant"

    def _widths(self, batch: int) -> tuple[int, frozenset[int]]:
        """Width of the stream, and widths of all tensors on the paths of the directions."""
        attention = self.layout.attentions[0]
        tokens = self.tokens[attention.stream]
        width = self.reader.value(attention.residual, batch, tokens).shape[-1]
        nodes: list[Any] = self.reader.graph.nodes
        shapes = (
            metadata.shape
            for number in self.layout.order
            for metadata in nodes[number]._input_metadata  # noqa: SLF001 - no public name
        )
        return width, frozenset(shape[-1] for shape in shapes if len(shape))


@contextmanager
def _runs_once(model: nn.Module, recording: Recording) -> Iterator[None]:
    """Refuse a forward function that does not run a model exactly once, with gradients."""
    # A forward module may run its base, and the head by itself.
    runs = dict.fromkeys([model, base_of(model) or model], 0)

    @looks_only
    def before(module: nn.Module, _args: Any, _kwargs: Any) -> None:
        runs[module] += 1
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "The forward function runs the model without gradients (torch.no_grad), but the "
                "direction of the explained value needs them: enable them."
            )
        if runs[module] > 1:
            raise ValueError(
                "The forward function runs the model more than once, so there is no one "
                "decomposition: let it run the model once, or explain each run for itself."
            )
        recording.depth += 1

    @looks_only
    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        recording.depth -= 1

    with hooked(runs, before=before, after=after):
        yield
        if not any(runs.values()):
            raise ValueError(
                f"The forward function did not run {type(model).__name__}, so there is nothing to "
                "decompose: pass the model that it does run as `model`."
            )


def _check(output: Tensor, batch: int) -> None:
    if output.numel() != batch:
        raise ValueError(
            f"The forward function gave {output.numel()} explained values for {batch} examples: "
            "ALTI-Logit explains one value for each example."
        )
    if not output.requires_grad:
        raise ValueError(
            "The explained value does not depend on the model by a gradient: the forward function "
            "must return a value computed from the model's output, not detached."
        )
